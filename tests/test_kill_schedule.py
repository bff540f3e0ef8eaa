"""A staged run whose learner is killed in each of its steps, at random moments, and ends like one left in peace."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dig_rl.metrics import read_metrics
from tests.doomed import Plan
from tests.processes import MARK, started_by
from tests.test_training import what_must_repeat
from tests.tiny import ENVIRONMENT, ROOT, TinyWorld

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]  # a dozen runs

SEED = 20261121
NUM_STEPS = 10
STAGES = """
[[stages]]
name = "single"
differences = [1, 1]
steps = 3
adaptive = {}

[[stages]]
name = "dual"
differences = [2, 2]
steps = 3
replay = 0.5
adaptive = {}
overrides = { temperature = 0.7, lr = 4e-4, max_completion_tokens = 12, group_size = 3 }

[[stages]]
name = "mixed"
differences = [1, 4]
steps = 4
replay = 0.3
"""
EVERY_TWO_STEPS = ("checkpoint.every_steps=2", "evaluation.every_steps=2")


def train(world: TinyWorld, runs: Path, plan: Plan) -> subprocess.CompletedProcess[str]:
    stages = f'curriculum="{runs.parent / "stages.toml"}"'
    _, _, _, *arguments = world.train_command(runs, "run", stages, *EVERY_TWO_STEPS)
    return subprocess.run(
        [sys.executable, "-m", "tests.doomed", plan.to_json(), *arguments],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {MARK: str(runs)},
        capture_output=True,
        text=True,
    )


def drawn_pairs(file: Path) -> dict[int, list[list[str]]]:
    """Draws of each step, one for each time that it was begun."""
    draws: dict[int, list[list[str]]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        draws.setdefault(line["step"], []).append(line["pairs"])
    return draws


def kill_schedule(peaceful: Path) -> list[Plan]:
    """One kill in each step, twice in each phase, at a random moment of the time that the phase took undisturbed."""
    chance = random.Random(SEED)
    steps = {line["step"]: line for line in read_metrics(peaceful / "run") if line["stage"] is not None}
    in_odd_steps = chance.sample(["generate", "learn", "learn", "sync", "sync"], 5)
    in_even_steps = chance.sample(["generate", "evaluate", "evaluate", "save", "save"], 5)  # others have no such phases
    plans = []
    for step in range(1, NUM_STEPS + 1):
        phase = (in_odd_steps if step % 2 else in_even_steps).pop()
        duration_s = steps[step].get(f"timing/{phase}_s", 0.3)
        plans.append(Plan("", step, phase, chance.uniform(0, duration_s)))
    return plans


def test_a_run_killed_in_each_of_its_steps_draws_and_measures_as_if_it_had_not_been(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    (tmp_path / "stages.toml").write_text(STAGES)
    peaceful, killed = tmp_path / "peaceful", tmp_path / "killed"
    draws = {runs: tmp_path / f"{runs.name}.jsonl" for runs in (peaceful, killed)}
    done = train(tiny_world, peaceful, Plan(str(draws[peaceful])))
    assert done.returncode == 0, done.stdout + done.stderr
    for plan in kill_schedule(peaceful):
        print(plan, flush=True)
        done = train(tiny_world, killed, Plan(str(draws[killed]), plan.step, plan.phase, plan.after_s))
        assert done.returncode == 1 and "learner-0 died" in done.stderr, done.stdout + done.stderr
        _, alive = psutil.wait_procs(started_by(killed), timeout=60)
        assert [process.name() for process in alive] == []
    done = train(tiny_world, killed, Plan(str(draws[killed])))
    assert done.returncode == 0, done.stdout + done.stderr

    assert what_must_repeat(killed / "run") == what_must_repeat(peaceful / "run")
    assert (killed / "run/superseded.jsonl").exists()
    expected = drawn_pairs(draws[peaceful])
    assert expected.keys() == set(range(1, NUM_STEPS + 1))
    for step, attempts in drawn_pairs(draws[killed]).items():
        assert attempts == expected[step] * len(attempts), step
    for name in ("policy/model.safetensors", "checkpoints/best.json"):
        assert (killed / "run" / name).read_bytes() == (peaceful / "run" / name).read_bytes(), name
