"""What commands tell a user to run next, where that takes a look at what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dig_rl.config import LearnerConfig, load_config
from dig_rl.curriculum import open_curriculum
from dig_rl.data import load_examples, read_records
from dig_rl.errors import ConfigError, MissingSplitError
from dig_rl.next_command import next_command
from dig_rl.overrides import parse_override
from dig_rl.types import Example
from launch.arguments import run_name

ROOT = Path(__file__).resolve().parent.parent
SMALL_RUN = "launch/configs/demo.toml"
"""Trains the policy that ships; it makes every picture small enough for its context."""
SMALL_POLICY = "nano/policy"
ANY_STAGE = "curricula/any.toml"
_TOKENS_OF_A_BOX = 10
"""Of an answer; twice what one box takes, as `SMALL_RUN` has it for four."""
_CHARACTERS_OF_A_BOX = 32
"""Of an answer; four integers, brackets and separators take 26 at most."""
LONGEST_PROMPT_TOKENS = 88
"""The room that `SMALL_RUN` leaves for a prompt."""


def print_next(*commands: str) -> None:
    """One line a command, as all commands end."""
    for command in commands:
        print(f"Next: {command}", flush=True)


def new_run(name: str, runs_dir: str | Path = "runs") -> str:
    """`name`, or with a number where there is a run of that name."""
    name = run_name(name) or "first"
    number, found = 1, name
    while Path(runs_dir, found).exists():
        number += 1
        found = f"{name}-{number}"
    return found


def reward_settings(use: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a reward that is one plugin alone."""
    term = f"reward.terms.{run_name(use.rpartition(':')[2]) or 'mine'}"
    arguments = {f"{term}.kwargs.{key}": value for key, value in kwargs.items()}
    return {f"{term}.use": use, f"{term}.weight": 1.0, **arguments}


def training_with(config: Sequence[str], settings: Sequence[str] = ()) -> str:
    """`make train` with the configs and settings that a command was given, as a run of its own."""
    named = [file for file in config if file != SMALL_RUN]  # whose own name belongs to the demo
    name = Path(named[-1]).stem if named else "mine"
    return next_command("train", CONFIG=config, RUN=new_run(name), SET=settings)


def after_data(folder: Path) -> str:
    """Train the small policy on a sound data folder, or ask it about its pairs where none are for training."""
    if command := training_on(folder):
        return command
    splits = {record.split for _, record in read_records(folder, allow_no_change=True)}
    split = None if "test" in splits else min(splits)
    return next_command("eval", CHECKPOINT=SMALL_POLICY, DATA=folder, SPLIT=split)


def training_on(folder: Path, *, policy: str | None = None) -> str | None:
    """`make train` on a sound data folder, with the settings that make all of its pairs fit.

    Args:
        folder: without pairs to train on, there is no command.
        policy: in place of the small one.
    """
    try:
        examples = load_examples(folder, "train", allow_no_change=True, check_images=False)
    except MissingSplitError:
        return None
    settings = {"data.path": str(folder), **_fitting(folder, examples)}
    if policy is not None and Path(policy).resolve() != Path(SMALL_POLICY).resolve():
        settings["policy.path"] = policy
    return next_command("train", CONFIG=SMALL_RUN, RUN=new_run(f"on-{folder.absolute().name}"), SET=settings)


def after_not_finite(run: Path, config: Sequence[str], settings: Sequence[str], lr: float) -> list[str]:
    """From a run that broke: its newest checkpoint as a policy, and a run that starts there, at a lower learning rate.

    Args:
        run: folder of the run; without a checkpoint, the new one starts where it did.
        config: files that it was started with.
        settings: `SET` values that it was started with.
        lr: its learning rate.
    """
    usual = LearnerConfig().lr
    changed = dict(map(parse_override, settings)) | {"learner.lr": lr / 10 if lr <= 1000 * usual else usual}
    steps = [int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*[0-9]")]
    commands = []
    if steps:
        policy = Path("policies") / new_run(f"{run.name}-step-{max(steps)}", "policies")
        commands = [next_command("export", CHECKPOINT=run / "checkpoints" / f"step-{max(steps)}", OUT=policy)]
        changed["policy.path"] = str(policy)
    return [*commands, next_command("train", CONFIG=config, RUN=new_run(run.name, run.parent), SET=changed)]


def _fitting(folder: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """What `SMALL_RUN` must be told so that it takes all of these pairs."""
    settings: dict[str, Any] = {}
    if not all(record.num_differences for _, record in read_records(folder, allow_no_change=True)):
        settings["data.allow_no_change"] = True
    small = load_config([ROOT / SMALL_RUN])
    try:
        fits = open_curriculum(small, examples, ROOT).stages[-1].admits
    except ConfigError:  # a stage has no pair
        settings["curriculum"] = ANY_STAGE
    else:
        if not all(map(fits, examples)):
            settings["curriculum"] = ANY_STAGE
    most = max(example.num_differences for example in examples)
    if most > small.reward.max_boxes:
        settings["reward.max_boxes"] = most
    if most * _CHARACTERS_OF_A_BOX > small.reward.max_answer_characters:
        settings["reward.max_answer_characters"] = most * _CHARACTERS_OF_A_BOX
    answer_tokens = most * _TOKENS_OF_A_BOX
    if answer_tokens > small.rollout.max_completion_tokens:
        settings["rollout.max_completion_tokens"] = answer_tokens
        settings["rollout.max_model_len"] = answer_tokens + LONGEST_PROMPT_TOKENS
    return settings
