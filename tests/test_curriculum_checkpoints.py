"""That an interruption changes no draw, and which checkpoints are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.curriculum import Curriculum, Stage, load_stages
from dig_rl.errors import CheckpointError
from tests.curriculum_world import PAIRS, STAGES, curriculum, draw, pairs, train, train_one_step

ROOT = Path(__file__).resolve().parent.parent


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
