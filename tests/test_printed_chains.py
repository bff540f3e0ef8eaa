"""Printed commands, pasted into a shell one after the other until nothing more is printed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.next_commands import printed
from tests.tiny import ENVIRONMENT, ROOT

RUNS = ROOT / "runs"
SHORT = {"train": "curriculum=curricula/tiny.toml", "warmup": "warmup.steps=20", "submit": ""}
"""What makes a printed command end soon."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a user keeps things; the runs that the test adds go with it."""
    before = set(RUNS.glob("*"))
    (tmp_path / "it's mine").mkdir()
    yield tmp_path / "it's mine"
    for run in set(RUNS.glob("*")) - before:
        shutil.rmtree(run) if run.is_dir() else run.unlink()


def paste(command: str) -> str:
    """Run a command as it is pasted into a shell; returns what it prints."""
    command = command.replace("make ", "make --old-file=setup --old-file=setup-blender ", 1)
    # RAY_ADDRESS and the like are those of a user who has none.
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def shortened(command: str) -> str:
    """The same with fewer steps: one more setting behind those that are printed."""
    words = shlex.split(command)
    if more := SHORT.get(words[1]):
        given = [word for word in words if word.startswith("SET=")]
        words = [word for word in words if word not in given] + [f"{(given or ['SET='])[0]} {more}"]
    return " ".join(
        f"{name}={shlex.quote(value)}" if value else name for name, _, value in (w.partition("=") for w in words)
    )


def follow(command: str, *, as_printed: bool = False) -> list[str]:
    """Paste a command, and what it tells to run next, and so on; returns the targets in order."""
    output = paste(command if as_printed else shortened(command))
    targets = [shlex.split(command)[1]]
    for after in printed(output):
        targets += follow(after, as_printed=as_printed)
    return targets


@pytest.mark.long
def test_the_chain_of_the_default_recipe_is_printed_and_runs_to_its_end_as_printed(folder: Path) -> None:
    start = f"make data COUNT=24 OUT={shlex.quote(str(folder / 'my data'))}"
    assert follow(start, as_printed=True) == ["data", "data-check", "train"]
    assert (RUNS / "on-my-data" / "policy" / "config.json").is_file()


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["tiny", "nano", "paper", "unseen"])
def test_the_chain_of_every_other_recipe_runs_to_its_end(folder: Path, recipe: str) -> None:
    start = f"make data CONFIG=launch/configs/data/{recipe}.toml COUNT=12 OUT={shlex.quote(str(folder / recipe))}"
    last = "eval" if recipe == "unseen" else "train"
    assert follow(start) == ["data", "data-check", last]


@pytest.mark.long
def test_from_random_weights_through_warm_up_to_evaluation_and_export(folder: Path) -> None:
    policy = shlex.quote(str(folder / "small"))
    assert follow(f"make policy OUT={policy}") == ["policy", "warmup", "train"]
    assert follow("make eval CHECKPOINT=nano/policy DATA=nano/data SET=evaluation.max_pairs=4") == ["eval", "train"]


@pytest.mark.long
def test_what_follows_a_run_and_a_report(folder: Path) -> None:
    settings = "SET='curriculum=curricula/tiny.toml evaluation.max_pairs=4'"
    paste(f"make train RUN=printed {settings}")
    exported = shlex.quote(str(folder / "exported"))
    assert follow(f"make export CHECKPOINT=runs/printed/checkpoints/step-3 OUT={exported}")[:2] == ["export", "eval"]
    assert follow("make eval CHECKPOINT=runs/printed") == ["eval", "compare"]
    assert follow("make compare-runs RUNS=printed OUT=runs/printed/side-by-side.html") == ["compare-runs", "report"]
    assert follow("make reward-test REWARD=rewards/box_iou.py:box_iou") == ["reward-test", "reward-report", "train"]
    assert follow("make curriculum-preview") == ["curriculum-preview", "train"]
    assert follow("make doctor") == ["doctor", "train"]
    paste("make tensorboard --dry-run")
