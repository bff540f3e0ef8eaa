"""The GRPO objective on completion tokens, and the log-probabilities it is made of.

Shapes: N completion tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from dig_rl.config import LearnerConfig


@dataclass(frozen=True)
class TokenLogprobs:
    """Of N completion tokens."""

    logprobs_N: torch.Tensor
    """float32, natural logarithm."""
    entropy_N: torch.Tensor
    """float32, nats, without gradient."""


def token_logprobs(
    hidden_NH: torch.Tensor,
    target_N: torch.Tensor,
    lm_head: torch.nn.Module,
    *,
    logit_bias_V: torch.Tensor,
    temperature: float,
    chunk_tokens: int,
) -> TokenLogprobs:
    """Log-probabilities of the target tokens under the distribution that the sampler drew from.

    Logits exist for one chunk at a time and are recomputed in the backward pass, so a full `[N, V]` never does.

    Args:
        hidden_NH: hidden states that predict each token.
        target_N: int64 token ids.
        lm_head: module from `[n, H]` to `[n, V]`.
        logit_bias_V: added to the logits, as the sampler does for banned tokens.
        temperature: the sampler's temperature.
        chunk_tokens: tokens a chunk.
    """

    def one_chunk(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = (lm_head(hidden).float() + logit_bias_V) / temperature
        logprobs = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, target[:, None])[:, 0], entropy

    parts = [
        checkpoint(one_chunk, hidden, target, use_reentrant=False)
        for hidden, target in zip(hidden_NH.split(chunk_tokens), target_N.split(chunk_tokens), strict=True)
    ]
    return TokenLogprobs(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


@dataclass(frozen=True)
class LossTerms:
    """Per-token pieces of the objective, `[N]` float32."""

    loss_N: torch.Tensor
    kl_N: torch.Tensor
    """k3 estimate of KL(policy || reference); zeros without a reference."""
    ratio_N: torch.Tensor
    """policy now / policy before this batch's first update."""
    clipped_low_N: torch.Tensor
    """1 where the lower clip removes the gradient."""
    clipped_high_N: torch.Tensor
    importance_N: torch.Tensor
    """learner / rollout before truncation."""
    mismatch_kl_N: torch.Tensor
    """float64; exp(d) - 1 - d with d = learner - rollout log-probability, before the update."""


def grpo_loss(
    logprobs_N: torch.Tensor,
    logprobs_old_N: torch.Tensor,
    logprobs_rollout_N: torch.Tensor,
    logprobs_ref_N: torch.Tensor | None,
    advantage_N: torch.Tensor,
    config: LearnerConfig,
) -> LossTerms:
    """Token-wise clipped policy loss with a KL penalty and a truncated importance weight.

        loss = -w * min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) + beta * k3
        w    = min(exp(old - rollout), cap)                      (no gradient)
        k3   = exp(ref - new) - (ref - new) - 1

    Args:
        logprobs_N: of the policy now, with gradient.
        logprobs_old_N: of the learner before this batch's first update.
        logprobs_rollout_N: as the sampler had them; they enter the importance weight only.
        logprobs_ref_N: of the frozen reference, or None for no KL term.
        advantage_N: each token's completion's advantage.
        config: clip bounds, beta and cap.

    Source:
        Clipping and k3: DeepSeekMath (arXiv 2402.03300, eq. 3-4). Truncated importance weight: Yao et al., "Your
        efficient RL framework secretly brings you off-policy RL training" (2025).
    """
    ratio_N = torch.exp(logprobs_N - logprobs_old_N)
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    mismatch_N = logprobs_old_N - logprobs_rollout_N
    importance_N = torch.exp(mismatch_N)
    loss_N = -importance_N.clamp(max=config.importance_cap) * surrogate_N
    kl_N = torch.zeros_like(loss_N)
    if logprobs_ref_N is not None:
        toward_ref_N = logprobs_ref_N - logprobs_N
        kl_N = torch.exp(toward_ref_N) - toward_ref_N - 1
        loss_N = loss_N + config.kl_coef * kl_N
    return LossTerms(
        loss_N=loss_N,
        kl_N=kl_N.detach(),
        ratio_N=ratio_N.detach(),
        clipped_low_N=((ratio_N < 1 - config.clip_low) & (advantage_N < 0)).float(),
        clipped_high_N=((ratio_N > 1 + config.clip_high) & (advantage_N > 0)).float(),
        importance_N=importance_N.detach(),
        # In float64: for d near 0 the float32 difference is rounding alone.
        mismatch_kl_N=(torch.expm1(mismatch_N.double()) - mismatch_N.double()).detach(),
    )
