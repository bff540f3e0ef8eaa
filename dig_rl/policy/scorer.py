"""A policy as the learner runs it: a packed group in, log-probabilities of its completion tokens out."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from dig_rl.algo.batch import PackedGroup, packed_positions, tree_mask
from dig_rl.algo.loss import TokenLogprobs, token_logprobs
from dig_rl.config import Config
from dig_rl.errors import PolicyError
from dig_rl.policy.load import BAN_BIAS, PolicyFrontend


class PolicyScorer(torch.nn.Module):
    """Wraps a Qwen-VL model so that a DeepSpeed engine's forward is a completion's log-probabilities."""

    logit_bias_V: torch.Tensor

    def __init__(self, model: PreTrainedModel, frontend: PolicyFrontend, config: Config) -> None:
        super().__init__()
        self.model = model
        self._frontend = frontend
        self.temperature = config.rollout.temperature
        self._chunk_tokens = config.learner.logprob_chunk_tokens
        bias = torch.zeros(model.config.get_text_config().vocab_size)
        bias[list(frontend.banned_token_ids)] = BAN_BIAS
        self.register_buffer("logit_bias_V", bias, persistent=False)

    def forward(self, packed: PackedGroup) -> TokenLogprobs:
        """Log-probabilities and entropies of a packed group's completion tokens.

        Raises:
            PolicyError: the prompt does not tokenise to what the sampler used; then the two saw different images.
        """
        device = self.logit_bias_V.device
        encoded = self._frontend.encode(packed.example)
        prompt_ids = encoded["input_ids"][0]
        if not torch.equal(prompt_ids, packed.token_ids_L[: packed.num_prompt_tokens]):
            raise PolicyError(
                f"pair {packed.example.pair_id}: the learner's prompt has {len(prompt_ids)} tokens, the sampler's "
                f"{packed.num_prompt_tokens}, or they differ: both must use one policy folder and one resize rule"
            )
        positions_3P = self._prompt_positions(encoded)
        hidden_1LH = self.model.model(
            input_ids=packed.token_ids_L[None].to(device),
            attention_mask=tree_mask(packed.segment_L, packed.offset_L).to(device),
            position_ids=packed_positions(positions_3P, packed).to(device),
            pixel_values=encoded["pixel_values"].to(device, self.model.dtype),
            image_grid_thw=encoded["image_grid_thw"].to(device),
            use_cache=False,
        ).last_hidden_state
        return token_logprobs(
            hidden_1LH[0, packed.predictor_N.to(device)],
            packed.target_N.to(device),
            self.model.lm_head,
            logit_bias_V=self.logit_bias_V,
            temperature=self.temperature,
            chunk_tokens=self._chunk_tokens,
        )

    def _prompt_positions(self, encoded: dict[str, torch.Tensor]) -> torch.Tensor:
        options = {"mm_token_type_ids": encoded["mm_token_type_ids"]} if "mm_token_type_ids" in encoded else {}
        positions_31P, _ = self.model.model.get_rope_index(
            encoded["input_ids"], image_grid_thw=encoded["image_grid_thw"], **options
        )
        return positions_31P[:, 0]
