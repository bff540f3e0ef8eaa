"""Estimates of KL(policy || reference) from the log-probabilities of the tokens that were sampled."""

from __future__ import annotations

import torch

from dig_rl.config import KLEstimator


def estimate_kl(logprobs_N: torch.Tensor, logprobs_ref_N: torch.Tensor, estimator: KLEstimator) -> torch.Tensor:
    """One estimate a token.

        k1  new - ref                                unbiased as a value, any sign
        k2  (new - ref)^2 / 2                        its gradient is that of the KL itself, on policy
        k3  exp(ref - new) - (ref - new) - 1         unbiased as a value, never negative

    As a loss, k1 has a gradient that is zero in expectation on policy: it adds noise and no pull.

    Args:
        logprobs_N: `[N]` of the policy.
        logprobs_ref_N: `[N]` of the reference, for the same tokens.
        estimator: which one.

    Returns:
        `[N]`, nats.

    Source:
        Schulman, "Approximating KL divergence" (2020). k3 in GRPO: DeepSeekMath (arXiv 2402.03300), equation 4.
        Gradients: Liu et al., "Rethinking KL regularization in RLHF" (arXiv 2510.01555).
    """
    toward_ref_N = logprobs_ref_N - logprobs_N
    if estimator == "k1":
        return -toward_ref_N
    if estimator == "k2":
        return toward_ref_N**2 / 2
    return torch.exp(toward_ref_N) - toward_ref_N - 1
