"""A policy as the learner runs it: packed groups in, log-probabilities of their completion tokens out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from dig_rl.algo.logprobs import LogprobHead, TokenLogprobs
from dig_rl.algo.packing import PackedBatch, packed_positions, tree_block_mask, tree_mask
from dig_rl.config import Config
from dig_rl.errors import PolicyError
from dig_rl.policy.load import BAN_BIAS, PolicyFrontend, uses_flex_attention


class PolicyScorer(torch.nn.Module):
    """Wraps a Qwen-VL model so that a DeepSpeed engine's forward is the log-probabilities of completions."""

    def __init__(self, model: PreTrainedModel, frontend: PolicyFrontend, config: Config) -> None:
        super().__init__()
        self.model = model
        self._frontend = frontend
        self.temperature = config.rollout.temperature
        bias = torch.zeros(model.config.get_text_config().vocab_size)
        bias[list(frontend.banned_token_ids)] = BAN_BIAS
        self._vision_token_ids = torch.tensor(frontend.vision_token_ids)
        self.head = LogprobHead(model.lm_head, bias, config.learner.logprob_chunk_tokens)

    def encode(self, packed: PackedBatch) -> list[dict[str, torch.Tensor]]:
        """Prompt and pixels of each group's pair, as `PolicyFrontend.encode`; policy and reference can share them.

        Raises:
            DataError: an image cannot be read.
            PolicyError: a prompt does not tokenise to what the sampler used; then the two saw different images.
        """
        encoded = []
        for group in packed.groups:
            pair = self._frontend.encode(group.example)
            found, expected = pair["input_ids"][0].tolist(), group.prompt_token_ids
            if tuple(found) != expected:
                raise PolicyError(
                    f"pair {group.example.pair_id}: the learner's prompt has {len(found)} tokens, the sampler's "
                    f"{len(expected)}, or they differ: both must use one policy folder and one resize rule"
                )
            encoded.append(pair)
        return encoded

    def forward(self, packed: PackedBatch, encoded: Sequence[dict[str, torch.Tensor]]) -> TokenLogprobs:
        """Log-probabilities and entropies of the completion tokens.

        Args:
            packed: the groups.
            encoded: what `encode` made of them.
        """
        device = self.head.logit_bias_V.device
        positions_3BL = packed_positions([self._prompt_positions(pair) for pair in encoded], packed)
        hidden_BLH = self.model.model(
            input_ids=self._token_ids(packed).to(device),
            attention_mask=self._mask(packed, device),
            position_ids=positions_3BL.to(device),
            pixel_values=torch.cat([pair["pixel_values"] for pair in encoded]).to(device, self.model.dtype),
            image_grid_thw=torch.cat([pair["image_grid_thw"] for pair in encoded]).to(device),
            use_cache=False,
        ).last_hidden_state
        predicting_NH = hidden_BLH.flatten(0, 1)[packed.predictor_N.to(device)]
        return TokenLogprobs(*self.head(predicting_NH, packed.target_N.to(device), self.temperature))

    def _token_ids(self, packed: PackedBatch) -> torch.Tensor:
        """Vision tokens in a completion would be taken for images that are not there; padding stands in for them.

        Samplers never draw them, so this is for answers from elsewhere; as targets they keep their tiny probability.
        """
        is_vision_BL = (packed.segment_BL >= 0) & torch.isin(packed.token_ids_BL, self._vision_token_ids)
        return packed.token_ids_BL.masked_fill(is_vision_BL, self._frontend.pad_token_id)

    def _mask(self, packed: PackedBatch, device: torch.device) -> torch.Tensor | BlockMask:
        if uses_flex_attention(self.model):
            return tree_block_mask(packed, device)
        return tree_mask(packed).to(device)

    def _prompt_positions(self, pair: dict[str, torch.Tensor]) -> torch.Tensor:
        options = {"mm_token_type_ids": pair["mm_token_type_ids"]} if "mm_token_type_ids" in pair else {}
        positions_31P, _ = self.model.model.get_rope_index(
            pair["input_ids"], image_grid_thw=pair["image_grid_thw"], **options
        )
        return positions_31P[:, 0]
