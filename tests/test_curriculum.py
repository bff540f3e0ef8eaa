"""Which pairs are drawn, in which order, and that an interruption does not change it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dig_rl.curriculum import Curriculum, Stage, load_stages
from dig_rl.errors import CheckpointError, ConfigError
from dig_rl.types import Example, RolloutGroup, SampledGroup, Score

BOX = (1.0, 1.0, 9.0, 9.0)


def pairs(**count_by_differences: int) -> list[Example]:
    """`pairs(d1=3, d2=2)`: three pairs with one change, two with two."""
    return [
        Example(
            f"{key}-{index}", "/a.png", "/b.png", (96, 64), (BOX,) * int(key[1:]), ("color",) * int(key[1:]), "train"
        )
        for key, count in count_by_differences.items()
        for index in range(count)
    ]


def stage(name: str, fewest: int, most: int, **length: int) -> Stage:
    return Stage.model_validate({"name": name, "differences": [fewest, most], **length})


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


def test_stages_follow_one_another_for_their_length() -> None:
    # Dual: 2 passes over 6 pairs, 4 a step, make 3 steps.
    source = curriculum()
    assert source.total_steps == 15
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


def test_fewer_pairs_than_a_step_needs_are_drawn_again() -> None:
    source = Curriculum([stage("single", 1, 1, steps=2)], pairs(d1=3), seed=0, prompts_per_step=8)
    first, second = (Counter(drawn) for _, drawn in draw(source))
    assert first.total() == second.total() == 8
    assert set((first + second).values()) <= {5, 6}


def test_every_pair_comes_first_about_equally_often() -> None:
    firsts = Counter(draw(curriculum(seed=seed), 1)[0][1][0] for seed in range(700))
    # 700 draws of 7 pairs: mean 100, standard deviation 9.3.
    assert set(firsts) == {f"d1-{index}" for index in range(7)}
    assert max(abs(count - 100) for count in firsts.values()) < 50


def test_draws_follow_from_the_seed() -> None:
    assert draw(curriculum(seed=1)) == draw(curriculum(seed=1))
    assert draw(curriculum(seed=1)) != draw(curriculum(seed=2))


@pytest.mark.parametrize("num_done", range(16))
def test_interrupted_run_draws_the_pairs_of_an_uninterrupted_one(num_done: int) -> None:
    whole = draw(curriculum(prompts_per_step=4))
    interrupted = curriculum(prompts_per_step=4)
    before = draw(interrupted, num_done)
    resumed = curriculum(prompts_per_step=4)
    resumed.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))
    assert (resumed.finished, resumed.stage_index) == (interrupted.finished, interrupted.stage_index)
    assert before + draw(resumed) == whole


@pytest.mark.parametrize("changed", [{"examples": PAIRS[1:]}, {"prompts_per_step": 3}, {"seed": 1}])
def test_checkpoint_of_a_run_that_draws_other_pairs_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="differ from those of the checkpoint"):
        curriculum(**changed).load_state_dict(curriculum().state_dict())


def test_observed_rewards_are_kept_by_stage_and_survive_a_checkpoint() -> None:
    def group(example: Example, *rewards: float | None) -> RolloutGroup:
        sampled = SampledGroup(example, (1,), (), 0, (96, 64), 0)
        scores = tuple(None if reward is None else Score(reward, {}, "ok") for reward in rewards)
        return RolloutGroup(sampled, scores, "single")

    source = curriculum()
    source.observe([group(PAIRS[0], 0.0, 0.5), group(PAIRS[1], 0.5, 1.0)])
    source.observe([group(PAIRS[0], 1.0, None), group(PAIRS[1], None, None)])  # masked: not observed
    source.observe([])
    resumed = curriculum()
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert resumed.mean_rewards == {"single": [0.5, 1.0], "dual": [], "mixed": []}


def test_stage_that_no_pair_fits_names_the_filter_and_what_the_data_offers() -> None:
    message = r'stage "dual" wants pairs with 2 to 2 .* 3 pairs with 1, 2 pairs with 4'
    with pytest.raises(ConfigError, match=message):
        Curriculum(STAGES, pairs(d1=3, d4=2), seed=0, prompts_per_step=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stages"),
        ("stages = []", "at least 1 item"),
        ("[[stages]]\nname = 'a'\ndifferences = [1, 1]", "either steps or epochs"),
        ("[[stages]]\nname = 'a'\ndifferences = [1, 1]\nsteps = 1\nepochs = 1", "either steps or epochs"),
        ("[[stages]]\nname = 'a'\ndifferences = [2, 1]\nsteps = 1", r"\[fewest, most\]"),
        ("[[stages]]\nname = 'a'\ndifferences = [-1, 1]\nsteps = 1", "greater than or equal to 0"),
        ("[[stages]]\nname = 'a'\ndifferences = [1]\nsteps = 1", "stage 1"),
        ("[[stages]]\nname = 'a'\ndifferences = [1, 1]\nsteps = 0", "greater than or equal to 1"),
        ("[[stages]]\nname = 'a'\ndiferences = [1, 1]\nsteps = 1", "did you mean differences"),
        ("[[stages]]\nname = 'a'\ndifferences = [1, 1]\nsteps = 1\n" * 2, "names must differ, found a"),
        ("stages = 3", "stages"),
        ("[[stages]", "not valid TOML"),
    ],
)
def test_mistakes_in_a_stage_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "stages.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_stages(path)
    assert "stages.toml" in str(caught.value)


def test_shipped_curricula(repo_root: Path) -> None:
    files = sorted((repo_root / "curricula").glob("*.toml"))
    stages = {path.stem: load_stages(path) for path in files}
    for name in ("staged", "demo", "tiny"):
        assert [(stage.name, stage.differences) for stage in stages[name]] == [
            ("single", (1, 1)),
            ("dual", (2, 2)),
            ("mixed", (1, 4)),
        ]
    # Equal budgets, so that the three can be compared.
    lengths = {
        name: sum(stage.steps or 0 for stage in stages[name]) for name in ("staged", "mixed_only", "single_only")
    }
    assert set(lengths.values()) == {75}
