"""Replayed pairs and adaptive draws: how often which pair comes."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from dig_rl.curriculum import Curriculum
from tests.curriculum_world import PAIRS, curriculum, draw, group, pairs, stage

# Replay


@pytest.mark.parametrize(("share", "prompts_per_step"), [(0.1, 3), (0.25, 4), (0.3, 7), (0.5, 1), (0.99, 2), (0.7, 10)])
def test_replayed_share_is_exact_over_a_run(share: float, prompts_per_step: int) -> None:
    stages = [stage("single", 1, 1, steps=1), stage("dual", 2, 2, steps=60, replay=share)]
    source = Curriculum(stages, pairs(d1=11, d2=13), seed=0, prompts_per_step=prompts_per_step)
    drawn = [ids for name, ids in draw(source) if name == "dual"]
    replayed = [sum(pair_id.startswith("d1") for pair_id in ids) for ids in drawn]
    hundredths = round(100 * share)
    for steps in range(1, 61):
        assert sum(replayed[:steps]) == hundredths * prompts_per_step * steps // 100
    assert max(replayed) - min(replayed) <= 1
    assert all(len(ids) == prompts_per_step for ids in drawn)


def test_replay_takes_the_pairs_of_all_earlier_stages_in_passes() -> None:
    stages = [stage("single", 1, 1, steps=1), stage("dual", 2, 2, steps=1), stage("late", 3, 4, steps=20, replay=0.5)]
    source = Curriculum(stages, PAIRS, seed=0, prompts_per_step=4)
    replayed = Counter(
        pair_id for name, ids in draw(source) for pair_id in ids if name == "late" and pair_id[1] in "12"
    )
    # 40 pairs out of 7 + 6: each three times, one of them once more.
    assert sorted(replayed.values()) == [3] * 12 + [4]


def test_no_step_holds_a_pair_twice_although_replayed_pairs_fit_the_stage_too() -> None:
    stages = [stage("single", 1, 1, steps=1), stage("mixed", 1, 2, steps=50, replay=0.5)]
    source = Curriculum(stages, pairs(d1=8, d2=4), seed=0, prompts_per_step=8)
    assert all(len(set(ids)) == 8 for name, ids in draw(source) if name == "mixed")


def test_replay_leaves_the_order_of_the_stages_own_pairs() -> None:
    def own_stream(share: float) -> list[str]:
        stages = [stage("single", 1, 1, steps=1), stage("dual", 2, 2, steps=8, replay=share)]
        source = Curriculum(stages, pairs(d1=8, d2=9), seed=0, prompts_per_step=4)
        return [pair_id for _, ids in draw(source) for pair_id in ids if pair_id.startswith("d2")]

    assert own_stream(0.5) == own_stream(0.0)[:16]


def test_figures_name_stage_and_replayed_share_of_the_last_draw() -> None:
    stages = [stage("single", 1, 1, steps=1), stage("dual", 2, 2, steps=1, replay=0.5)]
    source = Curriculum(stages, pairs(d1=8, d2=9), seed=0, prompts_per_step=4)
    source.next_examples()
    assert source.figures() == {"curriculum/stage_index": 0, "curriculum/replay_frac": 0}
    source.next_examples()
    assert source.figures() == {"curriculum/stage_index": 1, "curriculum/replay_frac": 0.5}


def test_replayed_pairs_that_repeat_are_counted_each_time() -> None:
    # Two pairs for four places, and the stage's own four are all there are.
    stages = [stage("single", 1, 1, steps=1), stage("mixed", 1, 2, steps=1, replay=0.5)]
    source = Curriculum(stages, pairs(d1=2, d2=2), seed=0, prompts_per_step=8)
    source.next_examples()
    drawn = source.next_examples()
    assert source.num_replayed == 4 and {example.num_differences for example in drawn[-4:]} == {1}
    assert source.figures()["curriculum/replay_frac"] == 0.5


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 1 / 3, 0.5, 0.95])
@pytest.mark.parametrize("prompts_per_step", [1, 3, 8])
def test_epochs_of_a_stage_with_replay_count_its_own_pairs(share: float, prompts_per_step: int) -> None:
    one = stage("x", 1, 1, epochs=1, replay=share)
    for num_pairs in range(1, 40):
        own, steps = 0, 0
        while own < num_pairs:  # the slow way
            steps += 1
            own = prompts_per_step * steps - math.floor(Fraction(str(share)) * prompts_per_step * steps)
        assert one.steps_for(num_pairs, prompts_per_step) == steps


# Adaptive draws


def adaptive_frequencies(
    groups: list[tuple[float, ...]], *, prompts_per_step: int, num_steps: int = 4000, floor: float = 0.05
) -> np.ndarray:
    """Share of the steps that hold each pair, after each was observed once; `()` is a pair not seen yet."""
    examples = pairs(d1=len(groups))
    stages = [stage("single", 1, 1, steps=num_steps, adaptive={"floor": floor})]
    source = Curriculum(stages, examples, seed=5, prompts_per_step=prompts_per_step)
    source.observe([group(example, "single", *rewards) for example, rewards in zip(examples, groups, strict=True)])
    counts = Counter(pair_id for _, ids in draw(source) for pair_id in ids)
    return np.array([counts[example.pair_id] for example in examples]) / num_steps


def test_adaptive_draws_follow_the_last_reward_spread() -> None:
    # Standard deviations 0.5, 0.25 and 0, the last one raised to the floor of 0.05; a pair not seen weighs 0.5.
    found = adaptive_frequencies([(0.0, 1.0), (0.25, 0.75), (0.3, 0.3), ()], prompts_per_step=1)
    expected = np.array([0.5, 0.25, 0.05, 0.5]) / 1.3
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))
    assert found[2] == pytest.approx(expected[2], abs=4 * math.sqrt(expected[2] / 4000))


def test_adaptive_draws_take_no_pair_twice_in_a_step() -> None:
    # Weights 2 : 1 : 1, two of three. The first pair is missed if both others come: 2 * 1/4 * 1/3 = 1/6.
    found = adaptive_frequencies([(0.0, 1.0), (0.25, 0.75), (0.25, 0.75)], prompts_per_step=2)
    assert found == pytest.approx([5 / 6, 7 / 12, 7 / 12], abs=4 * math.sqrt(0.25 / 4000))


def test_every_pair_stays_reachable_when_none_disagrees_any_more() -> None:
    found = adaptive_frequencies([(1.0, 1.0)] * 9 + [(0.0, 1.0)], prompts_per_step=1, floor=0.01)
    assert found[:9].min() > 0
    assert found[9] == pytest.approx(0.5 / 0.59, abs=4 * math.sqrt(0.25 / 4000))


def test_groups_of_which_too_little_is_known_leave_the_last_spread() -> None:
    source = Curriculum([stage("single", 1, 1, steps=9, adaptive={})], pairs(d1=2), seed=0, prompts_per_step=1)
    first, second = pairs(d1=2)
    source.observe([group(first, "single", 0.0, 0.5), group(second, "single", None, None)])
    source.observe([group(first, "single", 0.7, None)])
    assert source.state_dict()["spreads"] == {"d1-0": 0.25}


def test_spreads_are_remembered_only_where_a_stage_asks_for_them() -> None:
    source = curriculum()
    source.observe([group(PAIRS[0], "single", 0.0, 1.0)])
    assert source.state_dict()["spreads"] == {}
