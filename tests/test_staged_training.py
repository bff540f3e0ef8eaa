"""A curriculum with rules and overrides on the real engines: what a stage changes, holds in sampler and learner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dig_rl.metrics import read_metrics
from tests.test_training import what_must_repeat
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow

STAGES = """
[[stages]]
name = "promoted"
differences = [1, 1]
steps = 3
promotion = { level = 0.001, window = 1 }

[[stages]]
name = "changed"
differences = [2, 2]
steps = 2
replay = 0.5
adaptive = {}
overrides = { temperature = 0.7, lr = 4e-4, lr_end = 2e-4, max_completion_tokens = 9, group_size = 3 }

[[stages]]
name = "back"
differences = [1, 4]
steps = 1
"""


@pytest.fixture(scope="module")
def runs(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the stage file and one finished run."""
    folder = tmp_path_factory.mktemp("staged")
    (folder / "stages.toml").write_text(STAGES)
    train(tiny_world, folder)
    return folder


def train(world: TinyWorld, folder: Path) -> str:
    done = world.train(folder, "run", f'curriculum="{folder / "stages.toml"}"', "checkpoint.keep_last=9")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return done.stdout


def test_settings_of_a_stage_hold_in_it_and_nowhere_else(runs: Path) -> None:
    lines = [line for line in read_metrics(runs / "run") if line["stage"] is not None]
    assert [line["stage"] for line in lines] == ["promoted", "changed", "changed", "back"]
    assert [line["curriculum/replay_frac"] for line in lines] == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert [line["learner/lr"] for line in lines] == pytest.approx([1e-3, 4e-4, 3e-4, 1e-3])
    # The sampler's and the learner's temperature are the same, or their log-probabilities would be far apart.
    assert max(line["rollout/mismatch_kl"] for line in lines) < 1e-6
    lengths = [line["rollout/completion_tokens"] for line in lines]
    assert max(lengths[1:3]) <= 9 < min(lengths[0], lengths[3])
    summary = json.loads((runs / "run/summary.json").read_text())
    assert [(stage["name"], stage["steps"]) for stage in summary["stages"]] == [
        ("promoted", 1),
        ("changed", 2),
        ("back", 1),
    ]
    assert summary["heldout"]["before"]["pairs"] == 4


def test_end_of_a_promoted_stage_is_told(runs: Path) -> None:
    output = (runs / "output.txt").read_text()
    assert "stage promoted ends with its step 1: reward 0." in output
    assert "step 4/4  back" in output


@pytest.mark.long
def test_run_continued_within_a_stage_has_its_settings(runs: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    shutil.copy(runs / "stages.toml", tmp_path)
    run = tmp_path / "run"
    for step in (3, 4):
        shutil.rmtree(run / f"checkpoints/step-{step}")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"curriculum": str(tmp_path / "stages.toml")}))
    assert "continuing after step 2" in train(tiny_world, tmp_path)
    assert what_must_repeat(run) == what_must_repeat(runs / "run")
