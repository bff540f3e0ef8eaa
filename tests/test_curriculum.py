"""Which pairs are drawn, in which order, when a stage ends, and that an interruption changes none of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.curriculum import Curriculum, Stage, load_stages
from dig_rl.errors import CheckpointError, ConfigError
from dig_rl.types import Example, RolloutGroup, SampledGroup, Score

ROOT = Path(__file__).resolve().parent.parent
BOX = (1.0, 1.0, 9.0, 9.0)

Rewards = Callable[[str, int], tuple[float, ...]]
"""Rewards of a pair's group in a step, by pair id and step."""


def pairs(**count_by_differences: int) -> list[Example]:
    """`pairs(d1=3, d2=2)`: three pairs with one change, two with two."""
    return [
        Example(
            f"{key}-{index}", "/a.png", "/b.png", (96, 64), (BOX,) * int(key[1:]), ("color",) * int(key[1:]), "train"
        )
        for key, count in count_by_differences.items()
        for index in range(count)
    ]


def stage(name: str, fewest: int, most: int, **more: Any) -> Stage:
    return Stage.model_validate({"name": name, "differences": [fewest, most], **more})


STAGES = (stage("single", 1, 1, steps=5), stage("dual", 2, 2, epochs=2), stage("mixed", 1, 4, steps=7))
PAIRS = pairs(d1=7, d2=6, d3=5, d4=4)


def curriculum(prompts_per_step: int = 4, seed: int = 0, examples: list[Example] = PAIRS) -> Curriculum:
    return Curriculum(STAGES, examples, seed=seed, prompts_per_step=prompts_per_step)


def draw(source: Curriculum, num_steps: int | None = None) -> list[tuple[str, list[str]]]:
    """(stage, pair ids) of each step, to the end unless told how many."""
    steps = []
    while not source.finished and (num_steps is None or len(steps) < num_steps):
        name = source.stage.name
        steps.append((name, [example.pair_id for example in source.next_examples()]))
    return steps


def group(example: Example, stage_name: str, *rewards: float | None, f1: float = 0.0) -> RolloutGroup:
    sampled = SampledGroup(example, (1,), (), 0, (96, 64), 0)
    scores = tuple(None if reward is None else Score(reward, {"f1": f1}, "ok") for reward in rewards)
    return RolloutGroup(sampled, scores, stage_name)


def train(source: Curriculum, rewards: Rewards) -> list[tuple[str, list[str]]]:
    """Draw and observe to the end; (stage, pair ids) of each step."""
    steps = []
    while not source.finished:
        steps.append(train_one_step(source, rewards, len(steps)))
    return steps


def train_one_step(source: Curriculum, rewards: Rewards, step: int) -> tuple[str, list[str]]:
    name = source.stage.name
    examples = source.next_examples()
    groups = []
    for example in examples:
        values = rewards(example.pair_id, step)
        groups.append(group(example, name, *values, f1=float(np.mean(values))))
    source.observe(groups)
    return name, [example.pair_id for example in examples]


def test_stages_follow_one_another_for_their_length() -> None:
    # Dual: 2 passes over 6 pairs, 4 a step, make 3 steps.
    source = curriculum()
    assert source.total_steps == 15
    assert not source.is_open
    assert [name for name, _ in draw(source)] == ["single"] * 5 + ["dual"] * 3 + ["mixed"] * 7
    assert source.finished
    assert source.stage.name == "mixed"
    with pytest.raises(RuntimeError, match="finished after 15 steps"):
        source.next_examples()


def test_length_in_epochs_is_rounded_up_to_whole_steps() -> None:
    source = Curriculum([stage("single", 1, 1, epochs=1)], pairs(d1=9), seed=0, prompts_per_step=4)
    assert source.total_steps == 3


def test_stage_draws_only_pairs_that_it_admits() -> None:
    for name, drawn in draw(curriculum()):
        counts = {int(pair_id[1]) for pair_id in drawn}
        assert counts <= {"single": {1}, "dual": {2}, "mixed": {1, 2, 3, 4}}[name]


@pytest.mark.parametrize("prompts_per_step", [1, 2, 3, 4, 5, 6, 7])
def test_each_epoch_takes_every_pair_once_and_no_step_takes_one_twice(prompts_per_step: int) -> None:
    num_steps = 5 * 7
    source = Curriculum(
        [stage("single", 1, 1, steps=num_steps)], pairs(d1=7), seed=3, prompts_per_step=prompts_per_step
    )
    steps = [drawn for _, drawn in draw(source)]
    assert all(len(set(drawn)) == prompts_per_step for drawn in steps)
    stream = [pair_id for drawn in steps for pair_id in drawn]
    epochs = [stream[start : start + 7] for start in range(0, len(stream), 7)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # epochs are shuffled anew


@pytest.mark.parametrize("adaptive", [None, {}])
def test_fewer_pairs_than_a_step_needs_are_drawn_again(adaptive: dict[str, float] | None) -> None:
    source = Curriculum([stage("single", 1, 1, steps=2, adaptive=adaptive)], pairs(d1=3), seed=0, prompts_per_step=8)
    first, second = (Counter(drawn) for _, drawn in draw(source))
    assert first.total() == second.total() == 8
    assert set(first.values()) <= {2, 3}
    assert set((first + second).values()) <= {4, 5, 6}


def test_every_pair_comes_first_about_equally_often() -> None:
    firsts = Counter(draw(curriculum(seed=seed), 1)[0][1][0] for seed in range(700))
    # 700 draws of 7 pairs: mean 100, standard deviation 9.3.
    assert set(firsts) == {f"d1-{index}" for index in range(7)}
    assert max(abs(count - 100) for count in firsts.values()) < 50


def test_draws_follow_from_the_seed() -> None:
    assert draw(curriculum(seed=1)) == draw(curriculum(seed=1))
    assert draw(curriculum(seed=1)) != draw(curriculum(seed=2))


# Promotion


def promoted(rule: dict[str, Any], levels: list[float | None], **length: int) -> tuple[int, str | None]:
    """Steps of a stage under a rule, and the sentence it ended with.

    `levels` are F1 (and half of it the reward) step by step, None where every completion is masked.
    """
    stages = [stage("single", 1, 1, promotion=rule, **length), stage("dual", 2, 2, steps=1)]
    source = Curriculum(stages, pairs(d1=5, d2=5), seed=0, prompts_per_step=2, reward_terms=["f1"])
    done, sentence = 0, None
    while source.stage.name == "single":
        level = levels[done]
        rewards = (None, None) if level is None else (level / 2, level / 2)
        groups = [group(example, "single", *rewards, f1=level or 0.0) for example in source.next_examples()]
        sentence = source.observe(groups)
        done += 1
    return done, sentence


def test_promotion_comes_when_the_mean_over_the_window_reaches_the_level() -> None:
    rule = {"metric": "f1", "level": 0.5, "window": 2}
    # Means of two: 0.35, 0.45, 0.5.
    assert promoted(rule, [0.2, 0.5, 0.4, 0.6, 0.9], steps=5) == (
        4,
        "stage single ends with its step 4: f1 0.500 over the last 2",
    )


def test_promotion_waits_for_the_least_length() -> None:
    rule = {"metric": "f1", "level": 0.5, "window": 2, "min_steps": 3}
    # Means of two: 0.6 too early, 0.35, 0.5.
    assert promoted(rule, [0.6, 0.6, 0.1, 0.9, 0.0], steps=5)[0] == 4


def test_promotion_needs_a_whole_window() -> None:
    assert promoted({"metric": "f1", "level": 0.5, "window": 3}, [1.0, 1.0, 1.0, 1.0], steps=4)[0] == 3


def test_stage_without_promotion_ends_at_its_greatest_length() -> None:
    rule = {"metric": "f1", "level": 0.5, "window": 2}
    assert promoted(rule, [0.4] * 5, steps=5) == (5, None)
    assert promoted(rule, [0.4] * 3, epochs=1) == (3, None)  # 5 pairs, 2 a step
    assert promoted(rule, [0.4] * 4, until_step=4) == (4, None)


def test_promotion_by_reward_reads_the_total() -> None:
    assert promoted({"level": 0.3, "window": 1}, [0.5, 0.6], steps=9)[0] == 2  # rewards 0.25, 0.3


def test_steps_whose_completions_are_all_masked_do_not_enter_the_window() -> None:
    assert promoted({"metric": "f1", "level": 0.5, "window": 2}, [0.6, None, None, 0.4, 0.0], steps=5)[0] == 4


def test_equal_values_reach_their_own_mean() -> None:
    # numpy's mean of ten 0.7 is 0.7000000000000001 or 0.6999999999999998, as the order has it.
    for level in (0.1, 0.3, 0.7):
        assert promoted({"metric": "f1", "level": level, "window": 10}, [level] * 20, steps=20)[0] == 10


def test_each_stage_fills_a_window_of_its_own() -> None:
    rule = {"level": 0.5, "window": 3}
    stages = [stage(name, 1, 1, steps=9, promotion=rule) for name in ("first", "second")]
    source = Curriculum(stages, pairs(d1=5), seed=0, prompts_per_step=2)
    names = [name for name, _ in train(source, lambda pair_id, step: (1.0, 1.0))]
    assert names == ["first"] * 3 + ["second"] * 3


def test_replayed_pairs_do_not_count_towards_promotion() -> None:
    rule = {"level": 0.5, "window": 1}
    stages = [stage("single", 1, 1, steps=1), stage("dual", 2, 2, steps=6, replay=0.5, promotion=rule)]
    source = Curriculum(stages, pairs(d1=8, d2=8), seed=0, prompts_per_step=4)
    easy_is_right: Rewards = lambda pair_id, step: (1.0, 1.0) if pair_id.startswith("d1") else (0.0, 0.8)  # noqa: E731
    assert len(train(source, easy_is_right)) == 7


def test_total_steps_are_a_bound_until_promotion_is_settled() -> None:
    rule = {"level": 0.75, "window": 2}
    stages = [stage("single", 1, 1, steps=6, promotion=rule), stage("dual", 2, 2, steps=3)]
    source = Curriculum(stages, pairs(d1=5, d2=5), seed=0, prompts_per_step=2)
    seen = []
    for step in range(7):
        seen.append((source.total_steps, source.is_open))
        train_one_step(source, lambda pair_id, step: (float(step >= 2),) * 2, step)
    # Rewards 0, 0, 1, 1: the second 1 ends the stage after 4 steps of 6.
    assert seen == [(9, True)] * 4 + [(7, False)] * 3
    assert source.finished


def test_last_step_before_the_greatest_length_is_no_longer_open() -> None:
    source = Curriculum(
        [stage("single", 1, 1, steps=2, promotion={"level": 1, "window": 1})],
        pairs(d1=5),
        seed=0,
        prompts_per_step=2,
    )
    assert source.is_open
    train_one_step(source, lambda pair_id, step: (0.0, 0.0), 0)
    assert (source.total_steps, source.is_open) == (2, False)


def test_until_step_gives_a_stage_what_the_earlier_ones_left() -> None:
    stages = [
        stage("single", 1, 1, steps=6, promotion={"level": 0.5, "window": 2}),
        stage("dual", 2, 2, until_step=10),
    ]
    source = Curriculum(stages, pairs(d1=5, d2=5), seed=0, prompts_per_step=2)
    assert (source.total_steps, source.is_open) == (10, False)
    names = [name for name, _ in train(source, lambda pair_id, step: (1.0, 1.0))]
    assert names == ["single"] * 2 + ["dual"] * 8


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


# Interruption


def with_everything_on(stages: tuple[Stage, ...], prompts_per_step: int) -> tuple[Stage, ...]:
    """The stages with promotion and adaptive draws in all of them, and replay in all but the first."""
    return tuple(
        Stage.model_validate(
            one.model_dump()
            | {"promotion": {"metric": "f1", "level": 0.75, "window": 1}, "adaptive": {"floor": 0.02}}
            | {"replay": 0.3 if index else 0.0}
        )
        for index, one in enumerate(stages)
    )


def rising_rewards(pair_id: str, step: int) -> tuple[float, ...]:
    """What a learning policy might earn: better with the steps, worse with the number of changes, different by pair."""
    rng = np.random.default_rng([step, *pair_id.encode()])
    return tuple(np.clip(rng.normal(step / 60 + 0.6 - int(pair_id[1]) / 10, 0.2, size=4), 0, 1).tolist())


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("file", sorted((ROOT / "curricula").glob("*.toml")), ids=lambda file: file.stem)
def test_run_interrupted_after_every_step_draws_the_pairs_of_an_uninterrupted_one(file: Path, everything: bool) -> None:
    stages = load_stages(file)
    if everything:
        stages = with_everything_on(stages, 6)

    def fresh() -> Curriculum:
        return Curriculum(stages, pairs(d1=17, d2=13, d3=9, d4=8), seed=2, prompts_per_step=6, reward_terms=["f1"])

    whole = train(fresh(), rising_rewards)
    source, interrupted = fresh(), []
    while not source.finished:
        interrupted.append(train_one_step(source, rising_rewards, len(interrupted)))
        saved = json.dumps(source.state_dict(), allow_nan=False)
        resumed = fresh()
        resumed.load_state_dict(json.loads(saved))
        assert json.dumps(resumed.state_dict()) == saved
        assert (resumed.finished, resumed.stage_index, resumed.total_steps, resumed.is_open) == (
            source.finished,
            source.stage_index,
            source.total_steps,
            source.is_open,
        )
        source = resumed
    assert interrupted == whole
    assert {name for name, _ in whole} == {one.name for one in stages}
    if everything and file.stem == "staged":
        assert 3 < len(whole) < 75  # promotion did come


def test_state_taken_after_a_step_is_not_changed_by_the_next() -> None:
    stages = with_everything_on(STAGES, 4)
    source = Curriculum(stages, PAIRS, seed=0, prompts_per_step=4)
    train_one_step(source, rising_rewards, 0)
    state = source.state_dict()
    before = json.dumps(state)
    train_one_step(source, rising_rewards, 1)
    assert json.dumps(state) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"examples": PAIRS[1:]}, "training pairs"),
        ({"examples": [replace(PAIRS[0], target_boxes_px=((1.0, 1.0, 9.0, 8.0),)), *PAIRS[1:]]}, "training pairs"),
        ({"examples": [replace(PAIRS[0], kinds=("size",)), *PAIRS[1:]]}, "training pairs"),
        ({"prompts_per_step": 3}, "pairs per step"),
        ({"seed": 1}, "seed"),
    ],
)
def test_checkpoint_of_a_run_that_draws_other_pairs_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{named} differ from those of the checkpoint.* new name"):
        curriculum(**changed).load_state_dict(curriculum().state_dict())


@pytest.mark.parametrize(
    "change", [{"steps": 6}, {"replay": 0.1}, {"adaptive": {}}, {"overrides": {"lr": 1e-3}}, {"kinds": ["color"]}]
)
def test_checkpoint_of_other_stages_is_refused(change: dict[str, Any]) -> None:
    changed = Stage.model_validate(STAGES[2].model_dump() | change)
    source = Curriculum([*STAGES[:2], changed], PAIRS, seed=0, prompts_per_step=4)
    with pytest.raises(CheckpointError, match=r"^stages differ from those of the checkpoint"):
        source.load_state_dict(curriculum().state_dict())


def test_data_may_be_moved_between_two_parts_of_a_run() -> None:
    moved = [replace(example, image_a_path="/elsewhere/a.png") for example in PAIRS]
    source, continued = curriculum(), curriculum(examples=moved)
    draw(source, 3)
    continued.load_state_dict(source.state_dict())
    assert draw(continued) == draw(source)


def test_checkpoint_of_an_earlier_version_is_refused() -> None:
    state = {"stage_index": 1, "step": 2, "mean_rewards": {"single": [0.5]}, "fingerprint": "00ff"}
    with pytest.raises(CheckpointError, match="has version 1, expected 3: another version of dig-rl wrote it"):
        curriculum().load_state_dict(state)


# What does not go together


def test_stage_that_no_pair_fits_names_the_filter_and_what_the_data_offers() -> None:
    message = r'stage "dual" wants pairs with 2 to 2 .* 3 pairs with 1, 2 pairs with 4; change'
    with pytest.raises(ConfigError, match=message):
        Curriculum(STAGES, pairs(d1=3, d4=2), seed=0, prompts_per_step=4)


def test_empty_filter_counts_what_each_demand_leaves() -> None:
    one = stage("small", 1, 1, steps=1, kinds=["color", "add"], size=[0, 0.001], visibility=[0.5, 1])
    message = (
        r"wants pairs with 1 to 1 differences, only kinds color, add, boxes of 0 to 0.001 of the picture, visible "
        r"fractions of 0.5 to 1, but the training data has 3 pairs with 1; 3 of all have only kinds color, add; 0 of "
        r"all have boxes .*; 0 of all have visible fractions"
    )
    with pytest.raises(ConfigError, match=message):
        Curriculum([one], pairs(d1=3), seed=0, prompts_per_step=4)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [stage("a", 1, 1, steps=4, promotion={"level": 0.5, "window": 5})],
            r'mine.toml: stage "a" ends after 4 steps at the latest, before its promotion rule can hold after 5',
        ),
        (
            [stage("a", 1, 1, epochs=1, promotion={"level": 0.5, "window": 1, "min_steps": 4})],  # 5 pairs, 2 a step
            "ends after 3 steps at the latest, .* after 4 .window 1, min_steps 4.",
        ),
        (
            [stage("a", 1, 1, steps=4, promotion={"metric": "f2", "level": 0.5, "window": 1})],
            'stage "a", promotion.metric: expected reward or a term of the config\'s reward .f1, iou., found f2',
        ),
        (
            [stage("a", 1, 1, steps=4), stage("b", 1, 1, until_step=4)],
            'stage "b" ends at step 4 of the run, but may begin as late as after step 4; raise until_step',
        ),
        ([stage("a", 1, 1, steps=4, replay=0.5)], 'stage "a" is the first, so it has no earlier pairs to replay'),
        ([stage("a", 1, 1, steps=4), stage("a", 1, 1, steps=4)], "names must differ, found a"),
    ],
)
def test_stages_that_do_not_go_together_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Curriculum(stages, pairs(d1=5), seed=0, prompts_per_step=2, reward_terms=["f1", "iou"], source="mine.toml")
