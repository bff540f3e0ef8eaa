"""Group-relative advantages by hand, and which groups are left out."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_rl.algo.advantages import compute_advantages, drop_groups_without_signal, group_advantages, has_signal
from dig_rl.config import Advantage, Config, LearnerConfig, load_config
from dig_rl.types import Completion, Example, FinishReason, RolloutGroup, SampledGroup, Score

rewards_lists = st.lists(st.floats(0, 1), min_size=2, max_size=8).map(np.array)
rules = st.sampled_from([LearnerConfig(advantage=rule) for rule in get_args(Advantage)])

DEFAULT = LearnerConfig()


def group(*rewards: float | None, finish: FinishReason = "stop") -> RolloutGroup:
    scores = [None if reward is None else Score(reward, {}, "ok") for reward in rewards]
    return with_scores(scores, [finish] * len(rewards))


def with_scores(scores: list[Score | None], finish: list[FinishReason]) -> RolloutGroup:
    example = Example("pair", "/a.png", "/b.png", (96, 64), ((1.0, 1.0, 9.0, 9.0),), ("color",), "train")
    completions = tuple(Completion((1,), (-1.0,), "", reason, seed) for seed, reason in enumerate(finish))
    sampled = SampledGroup(example, (1,), completions, 0, (96, 64), 0)
    return RolloutGroup(sampled, tuple(scores), "single")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Mean 0.4. Squared deviations 0.16 + 0.01 + 0.25 = 0.42, divided by G - 1 = 2: standard deviation 0.4582576.
        ("group_norm", [-0.8728716, 1.0910895, -0.2182179]),
        ("group_mean", [-0.4, 0.5, -0.1]),
        # Means of the other two: 0.6, 0.15, 0.45.
        ("leave_one_out", [-0.6, 0.75, -0.15]),
    ],
)
def test_advantages_by_hand(rule: Advantage, expected: list[float]) -> None:
    # pydantic asks for an eps above 0; this one is far below what is compared
    learner = LearnerConfig(advantage=rule, advantage_eps=1e-12)
    np.testing.assert_allclose(compute_advantages(np.array([0.0, 0.9, 0.3]), learner), expected, atol=1e-7)


def test_eps_is_added_to_the_spread() -> None:
    # Mean 0.5, standard deviation (ddof 1) 0.5.
    learner = LearnerConfig(advantage_eps=0.5)
    np.testing.assert_allclose(compute_advantages(np.array([0.0, 0.5, 1.0]), learner), [-0.5, 0.0, 0.5])


@pytest.mark.parametrize("rule", get_args(Advantage))
def test_equal_rewards_have_no_advantage(rule: Advantage) -> None:
    np.testing.assert_array_equal(compute_advantages(np.full(8, 0.25), LearnerConfig(advantage=rule)), np.zeros(8))


def test_float32_rewards_are_computed_in_float64() -> None:
    assert compute_advantages(np.array([0, 1], dtype=np.float32), DEFAULT).dtype == np.float64


def test_one_completion_has_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="expected 2 or more rewards, found 1"):
        compute_advantages(np.array([1.0]), DEFAULT)


@given(rewards_lists, rules)
def test_advantages_sum_to_zero_and_keep_the_order(rewards: np.ndarray, learner: LearnerConfig) -> None:
    advantages = compute_advantages(rewards, learner)
    assert abs(advantages.sum()) < 1e-9
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@given(rewards_lists, rules)
def test_advantages_do_not_depend_on_shift_or_on_the_order_of_completions(
    rewards: np.ndarray, learner: LearnerConfig
) -> None:
    advantages = compute_advantages(rewards, learner)
    np.testing.assert_allclose(compute_advantages(rewards + 3.0, learner), advantages, atol=1e-6)
    np.testing.assert_allclose(compute_advantages(rewards[::-1], learner)[::-1], advantages, atol=1e-9)


def terms_config(*overrides: str) -> Config:
    terms = 'reward.terms={f1={use="a.py:f", weight=0.75}, format={use="b.py:g", weight=0.25}}'
    return load_config([], [terms, "learner.advantage_eps=1e-12", *overrides])


def test_terms_are_compared_on_their_own_before_the_weighted_sum_by_hand() -> None:
    # f1 0, 0.1 and format 0, 1: each is -1 / sqrt 2, 1 / sqrt 2 of its own spread, whatever its size.
    # In the third completion f1 is in the middle and format low.
    f1, form = [0.0, 0.1, 0.05], [1.0, 0.0, 0.0]
    scores = [Score(0.75 * a + 0.25 * b, {"f1": a, "format": b}, "ok") for a, b in zip(f1, form, strict=True)]
    rated = with_scores([*scores], ["stop"] * 3)
    # f1: mean 0.05, standard deviation 0.05 -> -1, 1, 0. format: mean 1/3, standard deviation 0.57735
    # -> 2/3 and -1/3 divided by it: 1.154701, -0.577350, -0.577350.
    expected = 0.75 * np.array([-1.0, 1.0, 0.0]) + 0.25 * np.array([1.154701, -0.577350, -0.577350])
    np.testing.assert_allclose(
        group_advantages(rated, terms_config("learner.normalize_terms=true")), expected, atol=1e-6
    )
    # On the total, 0.25, 0.075, 0.0375, format outweighs f1 and the second completion is below the mean.
    assert group_advantages(rated, terms_config())[1] < 0


def test_one_term_alone_is_the_total() -> None:
    rewards = [0.2, 0.9, 0.4]
    rated = with_scores([Score(reward, {"f1": reward}, "ok") for reward in rewards], ["stop"] * 3)
    one_term = 'reward.terms={f1={use="a.py:f", weight=1.0}}'
    split, total = (load_config([], [one_term, f"learner.normalize_terms={value}"]) for value in ("true", "false"))
    np.testing.assert_array_equal(group_advantages(rated, split), group_advantages(rated, total))


def test_signal_is_the_distance_between_best_and_worst() -> None:
    assert has_signal(np.array([0.5, 0.5, 0.75]), 0.25)
    assert not has_signal(np.array([0.5, 0.5, 0.75]), 0.2501)
    assert has_signal(np.array([0.5, 0.5]), 0.0)


NONE_DROPPED = {"masked": 0, "truncated": 0, "all_zero": 0, "all_one": 0, "all_equal": 0}


def test_groups_are_dropped_in_place_and_counted_by_reason() -> None:
    useful, also_useful = group(0.0, 1.0), group(0.3, 0.4)
    groups = [group(0.0, 0.0), useful, group(1.0, 1.0), group(0.5, 0.5), also_useful, group(0.0, 1e-7)]
    kept, dropped = drop_groups_without_signal(groups, DEFAULT)
    assert kept == [useful, also_useful]
    assert dropped == NONE_DROPPED | {"all_zero": 2, "all_one": 1, "all_equal": 1}


def test_masked_completions_leave_their_group_and_a_group_of_one_is_dropped() -> None:
    groups = [group(0.0, None, 1.0, 0.5), group(None, 1.0), group(None, None), group(None, 0.25, 0.25)]
    kept, dropped = drop_groups_without_signal(groups, DEFAULT)
    assert dropped == NONE_DROPPED | {"masked": 2, "all_equal": 1}
    (left,) = kept
    assert [completion.seed for completion in left.sampled.completions] == [0, 2, 3]
    # As if the masked one had never been sampled: mean 1/2, standard deviation 1/2.
    np.testing.assert_allclose(compute_advantages(left.rewards, DEFAULT), [-1.0, 1.0, 0.0], atol=1e-3)


def test_terms_that_cancel_in_the_total_are_a_signal_where_they_are_compared_on_their_own() -> None:
    cancelling = with_scores([Score(0.5, {"f1": a, "iou": 1 - a}, "ok") for a in (0.0, 1.0)], ["stop"] * 2)
    assert drop_groups_without_signal([cancelling], DEFAULT)[1]["all_equal"] == 1
    assert drop_groups_without_signal([cancelling], LearnerConfig(normalize_terms=True))[0] == [cancelling]


def test_a_group_of_truncated_completions_is_dropped_only_where_these_are_masked() -> None:
    cut = group(0.0, 1.0, finish="length")
    assert drop_groups_without_signal([cut], DEFAULT)[0] == [cut]
    masking = LearnerConfig(mask_truncated_completions=True)
    assert drop_groups_without_signal([cut], masking) == ([], NONE_DROPPED | {"truncated": 1})
    # One that ended, but has no score, does not save it.
    ended_unscored = with_scores([*cut.scores, None], ["length", "length", "stop"])
    assert drop_groups_without_signal([ended_unscored], masking)[1]["truncated"] == 1
