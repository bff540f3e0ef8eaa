"""Groups without signal are made up for, within a bound, and always in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dig_rl.algo.advantages import drop_groups_without_signal
from dig_rl.config import LearnerConfig
from dig_rl.metrics import undocumented
from dig_rl.refill import Collected, collect_with_refills, spare_examples
from dig_rl.types import Example, RolloutGroup, SampledGroup, Score


def pair(name: str) -> Example:
    return Example(name, "/a.png", "/b.png", (96, 64), ((1.0, 1.0, 9.0, 9.0),), ("color",), "train")


class Sampler:
    """Pairs called `good-*` get different rewards, the others equal ones; remembers what it was asked."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []

    def __call__(
        self, examples: Sequence[Example], before: Sequence[RolloutGroup]
    ) -> tuple[list[RolloutGroup], dict[str, float]]:
        assert names(before).split() == [name for one_round in self.rounds for name in one_round]
        self.rounds.append([example.pair_id for example in examples])
        groups = []
        for example in examples:
            rewards = (0.0, 1.0) if example.pair_id.startswith("good") else (0.0, 0.0)
            scores = tuple(Score(reward, {}, "ok") for reward in rewards)
            groups.append(RolloutGroup(SampledGroup(example, (1,), (), 0, (96, 64), 0), scores, "single"))
        return groups, {"timing/generate_s": 2.0, "timing/score_s": 0.5}


def collect(names: str, spare: str, max_refills: int) -> tuple[Collected, list[list[str]]]:
    sampler = Sampler()
    collected = collect_with_refills(
        sampler,
        lambda groups: drop_groups_without_signal(groups, LearnerConfig()),
        [pair(name) for name in names.split()],
        [pair(name) for name in spare.split()],
        max_refills,
    )
    return collected, sampler.rounds


def names(groups: Sequence[RolloutGroup]) -> str:
    return " ".join(group.sampled.example.pair_id for group in groups)


def test_without_refills_a_step_is_what_was_drawn() -> None:
    collected, rounds = collect("good-1 bad-1 bad-2", "good-2 good-3", max_refills=0)
    assert rounds == [["good-1", "bad-1", "bad-2"]]
    assert names(collected.kept) == "good-1"
    assert collected.dropped["all_zero"] == 2
    assert collected.figures == {
        "timing/generate_s": 2.0,
        "timing/score_s": 0.5,
        "rollout/refilled_groups": 0.0,
        "rollout/missing_groups": 2.0,
    }
    assert undocumented(collected.figures) == []


def test_each_round_draws_as_many_as_are_missing_and_stops_when_full() -> None:
    collected, rounds = collect("good-1 bad-1 bad-2", "bad-3 good-2 good-3 good-4", max_refills=5)
    assert rounds == [["good-1", "bad-1", "bad-2"], ["bad-3", "good-2"], ["good-3"]]
    assert names(collected.kept) == "good-1 good-2 good-3"
    assert names(collected.groups) == "good-1 bad-1 bad-2 bad-3 good-2 good-3"
    assert collected.dropped["all_zero"] == 3
    assert collected.figures["rollout/refilled_groups"] == 3
    assert collected.figures["rollout/missing_groups"] == 0
    assert collected.figures["timing/generate_s"] == 6.0


@pytest.mark.parametrize(
    ("spare", "max_refills", "num_rounds"), [("bad-2 bad-3 bad-4", 2, 3), ("bad-2", 9, 2), ("", 9, 1)]
)
def test_a_step_that_stays_empty_is_reported_and_not_an_error(spare: str, max_refills: int, num_rounds: int) -> None:
    collected, rounds = collect("bad-1", spare, max_refills)
    assert len(rounds) == num_rounds
    assert collected.kept == []
    assert collected.figures["rollout/missing_groups"] == 1


def test_a_full_step_asks_once() -> None:
    collected, rounds = collect("good-1 good-2", "good-3", max_refills=3)
    assert rounds == [["good-1", "good-2"]]
    assert collected.figures["rollout/missing_groups"] == 0


def test_spare_pairs_are_the_others_in_an_order_of_seed_and_step() -> None:
    examples = [pair(f"p{index}") for index in range(40)]
    drawn = examples[3:9]

    def order(seed: int, step: int) -> list[str]:
        return [example.pair_id for example in spare_examples(examples, drawn, seed=seed, step=step)]

    assert sorted(order(0, 0)) == sorted(example.pair_id for example in examples if example not in drawn)
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3
