"""The objective against a slow float64 reference, and log-probabilities against the whole softmax."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

from dig_rl.algo.aggregation import aggregate, completion_means
from dig_rl.algo.importance import importance_weights
from dig_rl.algo.kl import estimate_kl
from dig_rl.algo.loss import LossTerms, policy_loss
from dig_rl.algo.statistics import UpdateStatistics, reduce_statistics
from dig_rl.config import ImportanceCorrection, KLEstimator, LearnerConfig, Loss
from dig_rl.metrics import undocumented
from tests.loss_reference import Batch, Rows
from tests.loss_reference import loss as reference_loss

LENGTHS = (1, 7, 3, 12, 5, 2, 4, 6, 1, 3)
BUDGET = 16
"""max_completion_tokens"""


def random_batch(seed: int = 40) -> Batch:
    """Ratios of tokens and of completions on both sides of every bound, advantages of both signs."""
    rng = np.random.default_rng(seed)

    def near(rows: list[list[float]]) -> list[list[float]]:
        # float32, as the learner has them, so that only the arithmetic is compared
        return [np.float32(np.array(row) + rng.normal(rng.normal(0, 0.3), 0.4, len(row))).tolist() for row in rows]

    old = [np.float32(-rng.exponential(2.0, length)).tolist() for length in LENGTHS]
    advantages = np.float32([1.3, -0.8, 0.4, -1.7, 0.9, -0.1, 0.6, -0.6, -1.1, 0.3]).tolist()
    return Batch(near(old), old, near(old), near(old), advantages)


def flat(rows: Rows) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row])


def library_loss(batch: Batch, learner: LearnerConfig) -> tuple[torch.Tensor, torch.Tensor, LossTerms]:
    """Loss, the log-probabilities it depends on, and its pieces, in float32."""
    lengths = torch.tensor([len(row) for row in batch.new])
    completion = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    new = flat(batch.new).requires_grad_()
    terms = policy_loss(
        new,
        flat(batch.old),
        flat(batch.rollout),
        flat(batch.ref) if batch.ref is not None else None,
        torch.tensor(batch.advantages)[completion],
        completion,
        learner,
    )
    loss = aggregate(
        terms.loss_N,
        (1 / lengths.float())[completion],
        learner.loss,
        num_completions=len(lengths),
        num_tokens=int(lengths.sum()),
        max_completion_tokens=BUDGET,
    )
    return loss, new, terms


def moved(batch: Batch, row: int, token: int, by: float) -> Batch:
    rows = [list(values) for values in batch.new]
    rows[row][token] += by
    return replace(batch, new=rows)


EVERY_VARIANT = [
    LearnerConfig(
        loss=loss,
        kl_coef=0.0 if kl is None else 0.3,
        kl_estimator=kl or "k3",
        importance=importance,
        dual_clip=dual_clip,
        clip_low=0.2,
        clip_high=0.3,
        importance_cap=1.4,
        importance_band=(0.9, 1.1),
    )
    for loss, kl, importance, dual_clip in product(
        get_args(Loss), [None, *get_args(KLEstimator)], get_args(ImportanceCorrection), [None, 1.5]
    )
]


@pytest.mark.parametrize(
    "learner", EVERY_VARIANT, ids=lambda c: f"{c.loss}-{c.kl_coef}-{c.kl_estimator}-{c.importance}-{c.dual_clip}"
)
def test_loss_and_its_derivative_equal_the_float64_reference(learner: LearnerConfig) -> None:
    batch = random_batch()
    if not learner.kl_coef:
        batch = replace(batch, ref=None)
    loss, new, _ = library_loss(batch, learner)
    assert loss.item() == pytest.approx(reference_loss(batch, learner, BUDGET), abs=1e-5)
    loss.backward()
    h = 1e-6
    slopes = [
        (
            reference_loss(moved(batch, row, token, h), learner, BUDGET)
            - reference_loss(moved(batch, row, token, -h), learner, BUDGET)
        )
        / (2 * h)
        for row, length in enumerate(LENGTHS)
        for token in range(length)
    ]
    np.testing.assert_allclose(new.grad.numpy(), slopes, atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_the_random_batch_reaches_every_branch(loss: Loss) -> None:
    # Otherwise agreement with the reference would say little about clips and cuts.
    terms = library_loss(random_batch(), LearnerConfig(loss=loss, clip_low=0.2, clip_high=0.3, dual_clip=1.5))[2]
    for clipped_N in (terms.clipped_low_N, terms.clipped_high_N, terms.clipped_dual_N):
        assert 0 < clipped_N.sum() < sum(LENGTHS)
    for rule in ("token_truncate", "geometric_mask"):
        learner = LearnerConfig(loss=loss, importance=rule, importance_cap=1.4, importance_band=(0.9, 1.1))
        assert 0 < library_loss(random_batch(), learner)[2].importance.cut_N.sum() < sum(LENGTHS)


def test_the_default_is_grpo_as_it_always_was() -> None:
    # Clipped ratio at 0.2, importance weight truncated at 2, k3 times 0.01, mean over completions: bit for bit.
    batch = random_batch(1)
    new, old, rollout, ref = map(flat, (batch.new, batch.old, batch.rollout, batch.ref or []))
    lengths = torch.tensor(LENGTHS)
    completion = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    advantage = torch.tensor(batch.advantages)[completion]
    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    expected = -torch.exp(old - rollout).clamp(max=2.0) * surrogate
    expected = expected + 0.01 * (torch.exp(ref - new) - (ref - new) - 1)
    loss, _, terms = library_loss(batch, LearnerConfig())
    assert torch.equal(terms.loss_N, expected)
    assert torch.equal(loss, (expected * (1 / lengths.float())[completion]).sum() * (1 / len(lengths)))


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_loss_in_parts_is_the_whole_loss(loss: Loss) -> None:
    whole, _, terms = library_loss(random_batch(), LearnerConfig(loss=loss))
    lengths = torch.tensor(LENGTHS)
    weights = (1 / lengths.float()).repeat_interleave(lengths)
    sizes = {"num_completions": len(LENGTHS), "num_tokens": sum(LENGTHS), "max_completion_tokens": BUDGET}
    cuts = [1, 8, 23]  # between completions
    parts = zip(terms.loss_N.tensor_split(cuts), weights.tensor_split(cuts), strict=True)
    shares = [aggregate(part, weight, loss, **sizes).item() for part, weight in parts]
    assert sum(shares) == pytest.approx(whole.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # Two completions with token losses 1 and 2, 3, 4 under a budget of 10.
        ("grpo", (1 + 3) / 2),
        ("gspo", (1 + 3) / 2),
        ("dapo", (1 + 2 + 3 + 4) / 4),
        ("dr_grpo", (1 / 10 + 9 / 10) / 2),
    ],
)
def test_aggregation_by_hand(loss: Loss, expected: float) -> None:
    weights = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    got = aggregate(
        torch.tensor([1.0, 2.0, 3.0, 4.0]), weights, loss, num_completions=2, num_tokens=4, max_completion_tokens=10
    )
    assert float(got) == pytest.approx(expected)


def test_means_of_completions_by_hand() -> None:
    means = completion_means(torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([0, 1, 1, 2]))
    assert means.tolist() == [1.0, 4.0, 4.0, 5.0]


def one_token(new: float, old: float, rollout: float, advantage: float, learner: LearnerConfig) -> tuple[float, float]:
    """Loss and its derivative by the token's log-probability, without a reference."""
    value = torch.tensor([new], requires_grad=True)
    columns = (torch.tensor([column]) for column in (old, rollout))
    terms = policy_loss(value, *columns, None, torch.tensor([advantage]), torch.tensor([0]), learner)
    terms.loss_N.sum().backward()
    return float(terms.loss_N.detach()), float(value.grad)


def test_clipping_stops_the_gradient_only_in_the_direction_of_the_advantage() -> None:
    # ratio e^0.5 = 1.65 is above 1.2: a good token is not pushed further up, a bad one is still pushed down.
    assert one_token(0.5, 0.0, 0.0, 1.0, LearnerConfig()) == pytest.approx((-1.2, 0.0))
    assert one_token(0.5, 0.0, 0.0, -1.0, LearnerConfig()) == pytest.approx((math.exp(0.5), math.exp(0.5)))


def test_dual_clip_bounds_a_bad_token_whose_ratio_exploded() -> None:
    # ratio e^2 = 7.4; with the dual clip it counts 3 times, and no longer pushes.
    assert one_token(2.0, 0.0, 0.0, -1.0, LearnerConfig()) == pytest.approx((math.exp(2), math.exp(2)))
    assert one_token(2.0, 0.0, 0.0, -1.0, LearnerConfig(dual_clip=3.0)) == pytest.approx((3.0, 0.0))
    assert one_token(1.0, 0.0, 0.0, -1.0, LearnerConfig(dual_clip=3.0)) == pytest.approx((math.e, math.e))
    assert one_token(2.0, 0.0, 0.0, 1.0, LearnerConfig(dual_clip=3.0)) == pytest.approx((-1.2, 0.0))


def test_importance_weight_is_truncated_and_carries_no_gradient() -> None:
    # the learner finds the token e^3 = 20 times likelier than the sampler did: the weight stops at 2
    assert one_token(0.0, 0.0, -3.0, 1.0, LearnerConfig()) == (-2.0, -2.0)
    assert one_token(0.0, 0.0, -3.0, 1.0, LearnerConfig(importance="off")) == (-1.0, -1.0)


def test_geometric_mask_looks_at_whole_completions_and_raw_ratios_stay_visible() -> None:
    # First completion: ratios e^0.4 and e^-0.4, geometric mean 1, kept although each token is far off.
    # Second: e^0.1 and 1, geometric mean e^0.05 = 1.051, out of the band.
    log_ratio = torch.tensor([0.4, -0.4, 0.1, 0.0])
    got = importance_weights(
        log_ratio, torch.zeros(4), torch.tensor([0, 0, 1, 1]), LearnerConfig(importance="geometric_mask")
    )
    assert got.weight_N.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert got.cut_N.tolist() == [False, False, True, True]
    torch.testing.assert_close(got.token_N, log_ratio.exp())
    torch.testing.assert_close(got.sequence_N, torch.tensor([0.0, 0.0, 0.05, 0.05]).exp())


def test_k2_has_the_gradient_of_the_kl_and_k1_none_on_policy() -> None:
    # Expectation over all tokens of a softmax, so nothing is left to chance.
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64), dim=0)
    policy = torch.log_softmax(logits, dim=0)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)

    def gradient(estimator: KLEstimator) -> torch.Tensor:
        mean = (policy.exp().detach() * estimate_kl(policy, reference, estimator)).sum()
        return torch.autograd.grad(mean, logits, retain_graph=True)[0]

    torch.testing.assert_close(gradient("k2"), exact)
    torch.testing.assert_close(gradient("k1"), torch.zeros(4, dtype=torch.float64))
    assert not torch.allclose(gradient("k3"), exact, atol=1e-2)


def test_on_policy_ratio_is_one_and_all_divergences_are_zero() -> None:
    logprobs = torch.tensor([-0.1, -2.0, -7.5])
    completion = torch.tensor([0, 0, 1])
    terms = policy_loss(logprobs, logprobs, logprobs, logprobs, torch.ones(3), completion, LearnerConfig())
    assert terms.ratio_N.tolist() == [1.0, 1.0, 1.0]
    assert terms.kl_N is not None
    assert terms.kl_N.tolist() == terms.mismatch_kl_N.tolist() == [0.0, 0.0, 0.0]
    assert terms.loss_N.tolist() == [-1.0, -1.0, -1.0]


def test_without_a_reference_no_kl_is_reported() -> None:
    assert library_loss(replace(random_batch(), ref=None), LearnerConfig(kl_coef=0.0))[2].kl_N is None


def test_statistics_are_those_of_all_tokens_whatever_the_passes_and_ranks() -> None:
    batch = random_batch()
    loss, _, terms = library_loss(batch, LearnerConfig(dual_clip=1.5))
    whole = UpdateStatistics()
    whole.add(terms, torch.full((sum(LENGTHS),), 0.5), loss.item())
    alone = reduce_statistics([whole.sums], num_updates=1)
    ranks = [UpdateStatistics(), UpdateStatistics(), UpdateStatistics()]  # the last has no group
    for index, length in enumerate(LENGTHS):
        part = Batch(*([rows[index]] for rows in (batch.new, batch.old, batch.rollout, batch.ref, batch.advantages)))
        terms = library_loss(part, LearnerConfig(dual_clip=1.5))[2]
        ranks[index % 2].add(terms, torch.full((length,), 0.5), loss.item() / len(LENGTHS))
    assert reduce_statistics([rank.sums for rank in ranks], num_updates=1) == pytest.approx(alone)
    assert undocumented(alone) == []
    ratio = np.exp(flat(batch.new).numpy() - flat(batch.old).numpy())
    raw = np.exp(flat(batch.old).numpy() - flat(batch.rollout).numpy())
    bad = np.repeat(np.array(batch.advantages) < 0, LENGTHS)
    assert alone["learner/ratio_max"] == pytest.approx(ratio.max())
    assert alone["learner/clip_low_frac"] == pytest.approx(np.mean((ratio < 0.8) & bad))
    assert alone["learner/clip_high_frac"] == pytest.approx(np.mean((ratio > 1.2) & ~bad))
    assert alone["learner/clip_dual_frac"] == pytest.approx(np.mean((ratio > 1.5) & bad))
    assert alone["rollout/importance_mean"] == pytest.approx(raw.mean())
    assert alone["rollout/importance_cut_frac"] == pytest.approx(np.mean(raw > 2.0))
    assert alone["learner/entropy"] == pytest.approx(0.5)
