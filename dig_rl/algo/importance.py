"""Correction for what the sampler computes differently from the learner.

The two run different kernels, often in different precision, so completions come from a slightly different policy than
the one that is updated.

Shapes: N completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dig_rl.algo.aggregation import completion_means
from dig_rl.config import LearnerConfig


@dataclass(frozen=True)
class Importance:
    """Learner over rollout probability, `[N]`, without gradient."""

    weight_N: torch.Tensor
    """What the policy term is multiplied with."""
    cut_N: torch.Tensor
    """bool; where the weight was truncated or the completion masked."""
    token_N: torch.Tensor
    """Ratio of each token, before any cut."""
    sequence_N: torch.Tensor
    """Geometric mean of the token ratios of the token's completion."""


@torch.no_grad()
def importance_weights(
    logprobs_old_N: torch.Tensor, logprobs_rollout_N: torch.Tensor, completion_N: torch.Tensor, learner: LearnerConfig
) -> Importance:
    """Weights by the rule `learner.importance`.

        token_truncate  min(token ratio, importance_cap)
        geometric_mask  1 if the completion's geometric mean ratio is within importance_band, else 0
        off             1

    Args:
        logprobs_old_N: of the learner before this batch's first update.
        logprobs_rollout_N: as the sampler had them.
        completion_N: int64 index of each token's completion.
        learner: the rule and its bounds.

    Source:
        token_truncate: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025).
        geometric_mask: Liu, Li et al., "When speed kills stability: demystifying RL collapse from the
        training-inference mismatch" (2025).
    """
    log_ratio_N = logprobs_old_N - logprobs_rollout_N
    token_N = torch.exp(log_ratio_N)
    sequence_N = torch.exp(completion_means(log_ratio_N, completion_N))
    weight_N, cut_N = torch.ones_like(token_N), torch.zeros_like(token_N, dtype=torch.bool)
    if learner.importance == "token_truncate":
        weight_N, cut_N = token_N.clamp(max=learner.importance_cap), token_N > learner.importance_cap
    elif learner.importance == "geometric_mask":
        lowest, highest = learner.importance_band
        cut_N = (sequence_N < lowest) | (sequence_N > highest)
        weight_N = (~cut_N).to(token_N.dtype)
    return Importance(weight_N, cut_N, token_N, sequence_N)
