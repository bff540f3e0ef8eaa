"""The objective against a slow float64 reference, and log-probabilities against the whole softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dig_rl.algo.loss import grpo_loss, token_logprobs
from dig_rl.config import LearnerConfig


def reference_loss(new: float, old: float, rollout: float, ref: float, advantage: float, c: LearnerConfig) -> float:
    """One token, written as the formulas read, in Python floats."""
    ratio = math.exp(new - old)
    clipped = max(1 - c.clip_low, min(1 + c.clip_high, ratio))
    weight = min(math.exp(old - rollout), c.importance_cap)
    k3 = math.exp(ref - new) - (ref - new) - 1
    return -weight * min(ratio * advantage, clipped * advantage) + c.kl_coef * k3


def random_tokens(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    base = -rng.exponential(2.0, n)
    return [base + rng.normal(0, 0.5, n) for _ in range(4)] + [rng.normal(0, 1, n)]


def test_loss_equals_the_float64_reference_token_by_token() -> None:
    config = LearnerConfig(clip_low=0.2, clip_high=0.3, kl_coef=0.05, importance_cap=1.5)
    columns = random_tokens(500)
    new, old, rollout, ref, advantage = (torch.tensor(column, dtype=torch.float64) for column in columns)
    terms = grpo_loss(new, old, rollout, ref, advantage, config)
    expected = [reference_loss(*(float(column[i]) for column in columns), config) for i in range(500)]
    np.testing.assert_allclose(terms.loss_N.numpy(), expected, atol=1e-12)


def test_gradient_equals_a_central_difference_of_the_reference() -> None:
    config = LearnerConfig(kl_coef=0.05)
    columns = random_tokens(200)
    new, old, rollout, ref, advantage = (torch.tensor(column, dtype=torch.float64) for column in columns)
    new.requires_grad_()
    grpo_loss(new, old, rollout, ref, advantage, config).loss_N.sum().backward()
    h = 1e-6
    for i in range(200):
        rest = [float(column[i]) for column in columns[1:]]
        up, down = (reference_loss(float(columns[0][i]) + d, *rest, config) for d in (h, -h))
        assert float(new.grad[i]) == pytest.approx((up - down) / (2 * h), abs=1e-5)


def test_clipping_stops_the_gradient_only_in_the_direction_of_the_advantage() -> None:
    # ratio e^0.5 = 1.65 is above 1.2: a good token is not pushed further up, a bad one is still pushed down.
    config = LearnerConfig(kl_coef=0.0)
    new = torch.tensor([0.5, 0.5], requires_grad=True)
    zero = torch.zeros(2)
    terms = grpo_loss(new, zero, zero, None, torch.tensor([1.0, -1.0]), config)
    terms.loss_N.sum().backward()
    assert new.grad[0] == 0
    assert new.grad[1] == pytest.approx(math.exp(0.5))
    assert terms.clipped_high_N.tolist() == [1.0, 0.0]
    assert terms.clipped_low_N.tolist() == [0.0, 0.0]


def test_importance_weight_is_truncated_and_carries_no_gradient() -> None:
    config = LearnerConfig(kl_coef=0.0, importance_cap=2.0)
    new = torch.tensor([0.0], requires_grad=True)
    # the learner finds the token e^3 = 20 times likelier than the sampler did: the weight stops at 2
    terms = grpo_loss(new, torch.tensor([0.0]), torch.tensor([-3.0]), None, torch.tensor([1.0]), config)
    terms.loss_N.sum().backward()
    assert float(terms.loss_N) == -2.0
    assert float(new.grad) == -2.0
    assert float(terms.importance_N) == pytest.approx(math.exp(3.0))


def test_on_policy_ratio_is_one_and_all_divergences_are_zero() -> None:
    logprobs = torch.tensor([-0.1, -2.0, -7.5])
    terms = grpo_loss(logprobs, logprobs, logprobs, logprobs, torch.ones(3), LearnerConfig())
    assert terms.ratio_N.tolist() == [1.0, 1.0, 1.0]
    assert terms.kl_N.tolist() == terms.mismatch_kl_N.tolist() == [0.0, 0.0, 0.0]
    assert terms.loss_N.tolist() == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 100])
def test_chunked_logprobs_and_gradients_equal_the_whole_softmax(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False).double()
    hidden = torch.randn(30, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 50, (30,))
    bias = torch.zeros(50, dtype=torch.float64)
    bias[3] = -100.0
    # what the function does in float32 is compared in float64, so that only the arithmetic is at stake
    got = token_logprobs(hidden, target, head, logit_bias_V=bias, temperature=0.7, chunk_tokens=chunk_tokens)
    whole = torch.log_softmax((head(hidden) + bias) / 0.7, dim=-1)
    expected = whole[torch.arange(30), target]
    torch.testing.assert_close(got.logprobs_N.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.entropy_N.double(), -(whole.exp() * whole).sum(-1), atol=1e-5, rtol=0)
    (got_grad,) = torch.autograd.grad(got.logprobs_N.sum(), hidden)
    (expected_grad,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(got_grad, expected_grad, atol=1e-5, rtol=0)
