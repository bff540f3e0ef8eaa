"""`make ablations` on the real engines, stopped in the middle of a run and continued by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from dig_rl.ablations.ledger import Entry, append_entries, read_entries
from dig_rl.ablations.plan import plan_runs
from dig_rl.ablations.recipe import load_recipe
from tests.tiny import CONFIG, ENVIRONMENT, ROOT, TinyWorld

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]  # engines start for every run of every arm

RECIPE = """
config = {config}
set = {settings}
seeds = [3]
curriculum = "curricula/tiny.toml"
reward_weights = {{ format = 0.1, f1 = 0.45, iou = 0.45 }}

[arms.all]
axis = "reward"

[arms.staged]
axis = "curriculum"
same_run_as = "all"

[arms.blank_image_b]
axis = "control"
control = "blank_image_b"
later = true

[arms.sft_more]
axis = "control"
control = "sft_more"
minutes_of = "all"
later = true
training = {{ lr = 1e-3, lr_others = 5e-4, lr_warmup_steps = 2, single_steps = 0, batch_size = 4 }}
"""


class Ablations:
    """The command on the folders of one test."""

    def __init__(self, world: TinyWorld, folder: Path) -> None:
        self.recipe, self.work, self.ledger = folder / "recipe.toml", folder / "work", folder / "docs/ablations.json"
        text = RECIPE.format(config=json.dumps(str(CONFIG)), settings=json.dumps(world.overrides()))
        self.recipe.write_text(text)

    def start(self, *arms: str) -> subprocess.Popen[str]:
        folders = ["--recipe", str(self.recipe), "--work", str(self.work), "--ledger", str(self.ledger)]
        return subprocess.Popen(
            [sys.executable, "-m", "launch.ablations", *folders, "--only", *arms],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arms: str) -> str:
        process = self.start(*arms)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def interrupt_when(self, condition: Callable[[], bool], *arms: str) -> None:
        """Start, press Ctrl-C when it is time, and make sure that nothing is left."""
        process = self.start(*arms)
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output
        assert "the same command goes on" in output and "Traceback" not in output
        _, alive = psutil.wait_procs(children, timeout=60)
        assert [child.name() for child in alive] == []

    def entries(self) -> dict[str, Entry]:
        return {entry.arm: entry for entry in read_entries(self.ledger)}


def test_ctrl_c_in_a_run_loses_nothing_and_the_same_command_finishes_all_arms(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    command = Ablations(tiny_world, tmp_path)
    command.interrupt_when((command.work / "all-3/checkpoints/step-1/manifest.json").is_file, "all", "blank_image_b")
    assert command.entries() == {}
    output = command.run("all", "blank_image_b")
    assert "continuing after step" in output
    found = command.entries()
    assert list(found) == ["all", "staged", "blank_image_b"]
    assert found["staged"].model_copy(update={"axis": "reward", "arm": "all"}) == found["all"]
    for arm in ("all", "blank_image_b"):
        summary = json.loads((command.work / f"{arm}-3/summary.json").read_text())
        for moment, figures in (("before", found[arm].before), ("after", found[arm])):
            for name in ("f1", "mean_iou", "count_accuracy", "parse_rate"):
                assert getattr(figures, name) == summary["heldout"][moment][name]
        assert (found[arm].steps, found[arm].completions, found[arm].seed) == (3, 36, 3)
        assert 0 < found[arm].training_seconds < found[arm].seconds
        assert (command.work / f"{arm}-3/policy/model.safetensors").is_file()
    answers = (command.work / "blank_image_b-3/heldout/predictions_after.jsonl").read_text().splitlines()
    assert len(answers) == 4 and all("gray_64x64.png" in json.loads(line)["image_b"] for line in answers)
    page = command.ledger.with_suffix(".md").read_text()
    assert f"{found['all'].f1:.3f}" in page

    before = command.ledger.read_bytes()
    assert "2 runs of 3 steps x 3 pairs x 4 answers = 36 scored answers; 2 are finished" in command.run(
        "all", "blank_image_b"
    )
    assert command.ledger.read_bytes() == before


def test_supervised_control_takes_the_minutes_of_its_model_and_goes_on_after_ctrl_c(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    command = Ablations(tiny_world, tmp_path)
    (model,) = plan_runs(load_recipe(command.recipe), ROOT, arms=["all"])
    figures = {"f1": 0.1, "mean_iou": 0.1, "count_accuracy": 0.1, "parse_rate": 1.0}
    values: dict[str, Any] = figures | {"axis": "reward", "arm": "all", "seed": 3, "steps": 3, "before": figures}
    values |= {"seconds": 99.0, "training_seconds": 30.0, "completions": 36, "fingerprint": model.fingerprint}
    append_entries(command.ledger, [Entry.model_validate(values)])
    folder = command.work / "sft_more-3"
    command.interrupt_when((folder / "supervised.json").is_file, "sft_more")
    steps = json.loads((folder / "supervised.json").read_text())["steps"]
    command.run("sft_more")
    entry = command.entries()["sft_more"]
    known = json.loads((folder / "supervised.json").read_text())
    assert entry.steps == steps == known["steps"] == max(1, round(30.0 / known["step_seconds"]))
    assert entry.completions == 0 and entry.before.f1 == 0.1
    assert entry.training_seconds == known["training_seconds"]
    history = json.loads((folder / "history.json").read_text())
    losses = [line["eval_loss"] for line in history if "eval_loss" in line]
    assert len(losses) >= 5 and losses[-1] < losses[0]
    assert history[-1]["step"] == steps
