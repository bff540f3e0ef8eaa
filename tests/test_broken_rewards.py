"""`make train` with a reward plugin that breaks on some completions: masked within a budget, stopped without one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import psutil
import pytest

from dig_rl.checkpoint import CheckpointStore
from dig_rl.metrics import read_metrics, undocumented
from dig_rl.plugins import plugin_hash
from tests.processes import MARK, started_by
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow

# The process dies once, before it has scored anything; half of the answers break the plugin for good.
FLAWED = """
import hashlib, os
from pathlib import Path

HERE = Path(__file__).parent

def plugin(item):
    if not (HERE / "died").exists():
        (HERE / "died").touch()
        os._exit(1)
    if int(hashlib.sha256(item.completion.encode()).hexdigest(), 16) % 2 == 0:
        with (HERE / "broken").open("a") as log:
            log.write(f"{item.step}\\n")
        raise ValueError("on purpose")
    return sum(iou for _, _, iou in item.assignment) / max(len(item.predicted_boxes_unit), len(item.target_boxes_unit))
"""

# Works in the first step, so that there is a checkpoint.
HANGS = """
import time

def plugin(item):
    if item.step > 0:
        time.sleep(3600)
    return item.num_tokens / 100
"""


def settings(folder: Path, source: str) -> list[str]:
    (folder / "plugin.py").write_text(source)
    terms = (
        f'{{mine={{use="{folder}/plugin.py:plugin", weight=0.5}}, '
        'format={use="rewards/answer_format.py:answer_format", weight=0.5}}'
    )
    # Plugins see valid answers only, and the tiny policy writes few: more samples make sure of some.
    return [f"reward.terms={terms}", "reward.time_limit_s=1", "rollout.group_size=24"]


def test_broken_completions_are_masked_within_the_budget(tiny_world: TinyWorld, tmp_path: Path) -> None:
    done = tiny_world.train(tmp_path, "masked", *settings(tmp_path, FLAWED), "reward.max_failed_frac=0.9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "died").exists()
    broken = Counter(map(int, (tmp_path / "broken").read_text().split()))
    lines = [line for line in read_metrics(tmp_path / "masked") if line["stage"] is not None]
    # A step is 3 groups of 24. The broken ones are counted from what the plugin itself wrote down.
    assert [line["reward/failed_frac"] for line in lines] == pytest.approx([broken[step] / 72 for step in range(3)])
    assert 0 < sum(broken.values()) < 216
    first = next(broken[step] for step in range(3) if broken[step])
    assert f"{first} completions masked, at most 64 may be: reward plugin" in done.stdout
    assert undocumented({name for line in lines for name in line} - {"step", "stage"}) == []
    for line in lines:
        dropped = sum(value for name, value in line.items() if name.startswith("groups/") and "frac" not in name)
        assert line["groups/dropped_frac"] == pytest.approx(dropped / 3)


def test_without_a_budget_the_run_stops_and_a_changed_plugin_is_refused_unless_told_to(
    tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    use = f"{tmp_path}/plugin.py:plugin"
    hanging = settings(tmp_path, HANGS)
    stopped = tiny_world.train(tmp_path, "stopped", *hanging)
    assert stopped.returncode == 1
    message = stopped.stderr.split("error: ")[1]
    assert message.startswith(f'reward plugin "{use}" (term mine) took longer than 1 s (reward.time_limit_s), twice')
    for part in (" on pair ", "for the completion '", "ALLOW_CHANGED_PLUGINS=1"):
        assert part in message
    assert "Traceback" not in stopped.stderr
    assert json.loads((tmp_path / "stopped/summary.json").read_text())["status"] == "failed"
    _, alive = psutil.wait_procs(started_by(tmp_path), timeout=60)
    assert [process.cmdline() for process in alive] == []
    checkpoint = CheckpointStore(tmp_path / "stopped/checkpoints", 2).latest()
    assert checkpoint and f"at step {checkpoint.step} " in message
    old = plugin_hash(use, tmp_path)
    assert checkpoint.state["plugins"][use] == old

    settings(tmp_path, HANGS.replace("3600", "0"))
    new = plugin_hash(use, tmp_path)
    refused = tiny_world.train(tmp_path, "stopped", *hanging)
    assert refused.returncode == 1
    assert f'{use}: "{old}" -> "{new}"' in refused.stderr
    continued = tiny_world.train(tmp_path, "stopped", *hanging, "--allow-changed-plugins")
    assert continued.returncode == 0, continued.stderr
    assert json.loads((tmp_path / "stopped/summary.json").read_text())["status"] == "finished"
    versions = json.loads((tmp_path / "stopped/plugins.json").read_text())["versions"]
    assert [version["sha256"][use] for version in versions] == [old, new]
