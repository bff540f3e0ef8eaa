"""The objective on completion tokens. Shapes: N completion tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dig_rl.algo.aggregation import completion_means
from dig_rl.algo.importance import Importance, importance_weights
from dig_rl.algo.kl import estimate_kl
from dig_rl.config import LearnerConfig


@dataclass(frozen=True)
class LossTerms:
    """Per-token pieces of the objective, `[N]`; all but the loss without gradient."""

    loss_N: torch.Tensor
    kl_N: torch.Tensor | None
    """k3 estimate of KL(policy || reference), whatever the loss uses; None without a reference."""
    ratio_N: torch.Tensor
    """policy now / policy before this batch's first update: of the token, with gspo of its completion."""
    clipped_low_N: torch.Tensor
    """1 where the lower clip removes the gradient."""
    clipped_high_N: torch.Tensor
    """1 where the upper clip removes the gradient."""
    clipped_dual_N: torch.Tensor
    """1 where the dual clip removes the gradient."""
    importance: Importance
    mismatch_kl_N: torch.Tensor
    """float64; exp(d) - 1 - d with d = learner - rollout log-probability, before the update."""


def policy_loss(
    logprobs_N: torch.Tensor,
    logprobs_old_N: torch.Tensor,
    logprobs_rollout_N: torch.Tensor,
    logprobs_ref_N: torch.Tensor | None,
    advantage_N: torch.Tensor,
    completion_N: torch.Tensor,
    learner: LearnerConfig,
) -> LossTerms:
    """Clipped policy loss of each token, with a KL penalty and an importance weight.

        ratio     = exp(new - old)                  gspo: exp(mean of new - old over the completion)
        surrogate = min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
                    where A < 0 and there is a dual clip: max(surrogate, dual * A)
        loss      = -w * surrogate + beta * kl      w: see `importance_weights`, kl: see `estimate_kl`

    Args:
        logprobs_N: of the policy now, with gradient.
        logprobs_old_N: of the learner before this batch's first update.
        logprobs_rollout_N: as the sampler had them; they enter the importance weight only.
        logprobs_ref_N: of the frozen reference, or None for no KL term.
        advantage_N: each token's completion's advantage.
        completion_N: int64 index of each token's completion; completions are whole.
        learner: the variant, clip bounds, beta.

    Source:
        Clipping: PPO as in DeepSeekMath (arXiv 2402.03300), equation 3; separate bounds: DAPO (arXiv 2503.14476),
        equation 10. Dual clip: Ye et al. (arXiv 1912.09729), section "Dual-clip PPO". Sequence ratio: GSPO
        (arXiv 2507.18071), equations 5 and 7.
    """
    log_ratio_N = logprobs_N - logprobs_old_N
    if learner.loss == "gspo":
        log_ratio_N = completion_means(log_ratio_N, completion_N)
    ratio_N = torch.exp(log_ratio_N)
    clipped_N = ratio_N.clamp(1 - learner.clip_low, 1 + learner.clip_high)
    surrogate_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    clipped_dual_N = torch.zeros_like(advantage_N)
    if learner.dual_clip is not None:
        # Below zero the minimum has no floor: one ratio that exploded would outweigh the batch.
        floor_N = torch.where(advantage_N < 0, learner.dual_clip * advantage_N, -torch.inf)
        surrogate_N = torch.maximum(surrogate_N, floor_N)
        clipped_dual_N = ((ratio_N > learner.dual_clip) & (advantage_N < 0)).float()
    importance = importance_weights(logprobs_old_N, logprobs_rollout_N, completion_N, learner)
    loss_N = -importance.weight_N * surrogate_N
    kl_N = None
    if logprobs_ref_N is not None:
        loss_N = loss_N + learner.kl_coef * estimate_kl(logprobs_N, logprobs_ref_N, learner.kl_estimator)
        kl_N = estimate_kl(logprobs_N.detach(), logprobs_ref_N, "k3")
    # In float64: for a difference near 0 the float32 one is rounding alone.
    mismatch_N = (logprobs_old_N - logprobs_rollout_N).detach().double()
    return LossTerms(
        loss_N=loss_N,
        kl_N=kl_N,
        ratio_N=ratio_N.detach(),
        clipped_low_N=((ratio_N < 1 - learner.clip_low) & (advantage_N < 0)).float(),
        clipped_high_N=((ratio_N > 1 + learner.clip_high) & (advantage_N > 0)).float(),
        clipped_dual_N=clipped_dual_N,
        importance=importance,
        mismatch_kl_N=torch.expm1(mismatch_N) - mismatch_N,
    )
