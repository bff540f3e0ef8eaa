"""Group-relative advantages by hand, and which groups are left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_rl.algo.advantages import compute_advantages, drop_groups_without_signal, has_signal
from dig_rl.types import Completion, Example, RolloutGroup, SampledGroup, Score

rewards_lists = st.lists(st.floats(0, 1), min_size=2, max_size=8).map(np.array)


def group(*rewards: float | None) -> RolloutGroup:
    example = Example("pair", "/a.png", "/b.png", (96, 64), ((1.0, 1.0, 9.0, 9.0),), ("color",), "train")
    completions = tuple(Completion((1,), (-1.0,), "", "stop", seed) for seed in range(len(rewards)))
    sampled = SampledGroup(example, (1,), completions, 0, (96, 64), 0)
    scores = tuple(None if reward is None else Score(reward, {}, "ok") for reward in rewards)
    return RolloutGroup(sampled, scores, "single")


def test_advantages_by_hand() -> None:
    # Mean 0.5, squared deviations 0.25 + 0 + 0.25, divided by G - 1 = 2: standard deviation 0.5.
    np.testing.assert_allclose(compute_advantages(np.array([0.0, 0.5, 1.0]), 0.0), [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(compute_advantages(np.array([0.0, 0.5, 1.0]), 0.5), [-0.5, 0.0, 0.5])


def test_equal_rewards_have_no_advantage() -> None:
    np.testing.assert_array_equal(compute_advantages(np.full(8, 0.25), 1e-4), np.zeros(8))


def test_float32_rewards_are_computed_in_float64() -> None:
    assert compute_advantages(np.array([0, 1], dtype=np.float32), 1e-4).dtype == np.float64


def test_one_completion_has_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="expected 2 or more rewards, found 1"):
        compute_advantages(np.array([1.0]), 1e-4)


@given(rewards_lists)
def test_advantages_sum_to_zero_and_keep_the_order(rewards: np.ndarray) -> None:
    advantages = compute_advantages(rewards, 1e-4)
    assert abs(advantages.sum()) < 1e-9
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@given(rewards_lists)
def test_advantages_do_not_depend_on_shift_or_on_the_order_of_completions(rewards: np.ndarray) -> None:
    advantages = compute_advantages(rewards, 1e-4)
    np.testing.assert_allclose(compute_advantages(rewards + 3.0, 1e-4), advantages, atol=1e-6)
    np.testing.assert_allclose(compute_advantages(rewards[::-1], 1e-4)[::-1], advantages, atol=1e-9)


def test_signal_is_the_distance_between_best_and_worst() -> None:
    assert has_signal(np.array([0.5, 0.5, 0.75]), 0.25)
    assert not has_signal(np.array([0.5, 0.5, 0.75]), 0.2501)
    assert has_signal(np.array([0.5, 0.5]), 0.0)


def test_groups_are_dropped_in_place_and_counted_by_reason() -> None:
    useful, also_useful = group(0.0, 1.0), group(0.3, 0.4)
    groups = [group(0.0, 0.0), useful, group(1.0, 1.0), group(0.5, 0.5), also_useful, group(0.0, 1e-7)]
    kept, dropped = drop_groups_without_signal(groups, 1e-6)
    assert kept == [useful, also_useful]
    assert dropped == {"masked": 0, "all_zero": 2, "all_one": 1, "all_equal": 1}


def test_masked_completions_leave_their_group_and_a_group_of_one_is_dropped() -> None:
    groups = [group(0.0, None, 1.0, 0.5), group(None, 1.0), group(None, None), group(None, 0.25, 0.25)]
    kept, dropped = drop_groups_without_signal(groups, 1e-6)
    assert dropped == {"masked": 2, "all_zero": 0, "all_one": 0, "all_equal": 1}
    (left,) = kept
    assert [completion.seed for completion in left.sampled.completions] == [0, 2, 3]
    # As if the masked one had never been sampled: mean 1/2, standard deviation 1/2.
    np.testing.assert_allclose(compute_advantages(left.rewards, 0.0), [-1.0, 1.0, 0.0])
