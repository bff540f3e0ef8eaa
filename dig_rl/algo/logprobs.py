"""Log-probabilities of completion tokens without ever holding their logits.

Logits exist for one chunk of tokens at a time and are computed again in the backward pass, so that memory does not grow
with the number of tokens. They are float32 for any type of the weights, as the sampler's are. Written out by hand,
because a checkpoint around the output head recomputes it under ZeRO-3 when its weight is no longer gathered, and
computes the gradient of a tied weight twice under ZeRO-2.

Shapes: N completion tokens, n tokens of a chunk, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

COLUMNS = 16_384
"""Words whose weights are held in float32 at one time, on a CPU."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Of N completion tokens."""

    logprobs_N: torch.Tensor
    """float32, natural logarithm."""
    entropy_N: torch.Tensor
    """float32, nats, without gradient."""


class LogprobHead(torch.nn.Module):
    """Hidden states in, log-probabilities of given tokens out, under the distribution that the sampler drew from."""

    logit_bias_V: torch.Tensor

    def __init__(self, lm_head: torch.nn.Linear, logit_bias_V: torch.Tensor, chunk_tokens: int) -> None:
        """Make a head.

        Args:
            lm_head: the policy's output head, without a bias of its own.
            logit_bias_V: added to the logits, as the sampler does for banned tokens.
            chunk_tokens: tokens whose logits exist at one time.
        """
        super().__init__()
        self._lm_head = (lm_head,)  # in a tuple, so that the policy alone owns the weight
        self._chunk_tokens = chunk_tokens
        self.register_buffer("logit_bias_V", logit_bias_V, persistent=False)

    @property
    def weight_VH(self) -> torch.nn.Parameter:
        """The output head's weight."""
        return self._lm_head[0].weight

    def forward(
        self, hidden_NH: torch.Tensor, target_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score tokens.

        Args:
            hidden_NH: hidden states that predict each token.
            target_N: int64 token ids.
            temperature: the sampler's temperature.

        Returns:
            The two fields of `TokenLogprobs`, as a tuple because ZeRO-3 looks for tensors in nothing else.
        """
        logprobs_N, entropy_N = _ChunkedLogprobs.apply(
            hidden_NH, self.weight_VH, target_N, self.logit_bias_V, temperature, self._chunk_tokens
        )
        return logprobs_N, entropy_N


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax((h W^T + bias) / temperature) at the targets.

    Its derivative by the logits of a token is (one-hot of the target - probabilities) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        target_N: torch.Tensor,
        logit_bias_V: torch.Tensor,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(hidden_NH, weight_VH, target_N, logit_bias_V)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        logprobs, entropies = [], []
        for hidden_nH, target_n in zip(hidden_NH.split(chunk_tokens), target_N.split(chunk_tokens), strict=True):
            logits_nV = _logits(hidden_nH, weight_VH, logit_bias_V, temperature)
            total_n = logits_nV.logsumexp(-1)
            logprobs.append(logits_nV.gather(-1, target_n[:, None])[:, 0] - total_n)
            # A banned token's logit is huge but finite, and its probability 0.
            probabilities_nV = (logits_nV - total_n[:, None]).exp_()
            entropies.append(total_n - probabilities_nV.mul_(logits_nV).sum(-1))
        entropy_N = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    def backward(ctx: Any, gradient_N: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, target_N, logit_bias_V = ctx.saved_tensors
        by_hidden_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        # Summed over chunks in float32, also where the weight is bfloat16.
        by_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(target_N), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            by_logits_nV = _logits(hidden_NH[chunk], weight_VH, logit_bias_V, ctx.temperature)
            by_logits_nV.sub_(by_logits_nV.logsumexp(-1, keepdim=True)).exp_().neg_()
            by_logits_nV[torch.arange(len(by_logits_nV)), target_N[chunk]] += 1
            by_logits_nV *= (gradient_N[chunk] / ctx.temperature)[:, None]
            by_logits_nV = by_logits_nV.to(weight_VH.dtype)
            if by_hidden_NH is not None:
                by_hidden_NH[chunk] = by_logits_nV @ weight_VH
            if by_weight_VH is not None:
                by_weight_VH += _product(by_logits_nV.T, hidden_NH[chunk])
        by_weight = None if by_weight_VH is None else by_weight_VH.to(weight_VH.dtype)
        return by_hidden_NH, by_weight, None, None, None, None


def _logits(
    hidden_nH: torch.Tensor, weight_VH: torch.Tensor, logit_bias_V: torch.Tensor, temperature: float
) -> torch.Tensor:
    return _product(hidden_nH, weight_VH.T).add_(logit_bias_V).div_(temperature)


def _product(left_nk: torch.Tensor, right_km: torch.Tensor) -> torch.Tensor:
    """The matrix product in float32, whatever the type of both, since bfloat16 has too few digits for a logit."""
    if left_nk.dtype == torch.float32:
        return left_nk @ right_km
    if left_nk.is_cuda:
        return torch.mm(left_nk, right_km, out_dtype=torch.float32)
    # Torch has no such product on CPUs; a part of the columns at a time, so that no float32 copy of a head is held.
    left_nk = left_nk.float()
    product_nm = left_nk.new_empty(len(left_nk), right_km.shape[1])
    for columns, out in zip(right_km.split(COLUMNS, 1), product_nm.split(COLUMNS, 1), strict=True):
        torch.mm(left_nk, columns.float(), out=out)
    return product_nm
