"""Which stage comes when, when it ends, and which stages are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dig_rl.curriculum import Curriculum, Stage
from dig_rl.errors import ConfigError
from tests.curriculum_world import STAGES, Rewards, curriculum, draw, group, pairs, stage, train, train_one_step


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
