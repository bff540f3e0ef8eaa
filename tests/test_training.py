"""`make train` on the real engines: the run folder it leaves, exact repetition, interruption, and what goes wrong."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dig_rl.metrics import read_metrics, undocumented
from tests.doomed import Plan
from tests.processes import MARK, started_by
from tests.tiny import ENVIRONMENT, ROOT, TinyWorld

pytestmark = pytest.mark.slow

SEED = 20261121
# Not reproducible, by nature.
CLOCKS_AND_MEMORY = ("timing/", "memory/", "rollout/tokens_per_s")


def what_must_repeat(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(CLOCKS_AND_MEMORY)}
        for line in read_metrics(run_dir)
    ]


@pytest.fixture(scope="module")
def finished(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run through all three stages."""
    runs = tmp_path_factory.mktemp("runs")
    done = tiny_world.train(runs, "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3/3  mixed  reward" in done.stdout
    return runs / "whole"


def test_run_folder_holds_what_the_contract_says(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["rollout_engine"] == "vllm 0.32.0"
    assert summary["learner_engine"] == "deepspeed 0.19.8"
    assert summary["ray"] == "2.60.0"
    assert summary["device"] == "cpu"
    assert summary["model"]["architecture"] == "Qwen3VLForConditionalGeneration"
    assert summary["model"]["parameters"] > 100_000
    assert [(stage["name"], stage["steps"]) for stage in summary["stages"]] == [
        ("single", 1),
        ("dual", 1),
        ("mixed", 1),
    ]
    assert summary["heldout"]["before"].keys() == summary["heldout"]["after"].keys()
    assert summary["heldout"]["after"]["pairs"] == 4
    lines = read_metrics(finished)
    controls = [line["control/same_answer_frac"] for line in lines if "heldout/f1" in line]
    assert len(controls) == 2 and all(0 <= share <= 1 for share in controls)
    validation = {line["step"]: line["validation/f1"] for line in lines if "validation/f1" in line}
    assert list(validation) == [0, 2, 3]  # every two steps, and the last
    best = json.loads((finished / "checkpoints/best.json").read_text())
    assert best["score"] == validation[best["step"]] == max(validation[2], validation[3])
    assert (finished / "checkpoints" / best["folder"] / "manifest.json").is_file()
    assert (finished / "validation/predictions_step-2.jsonl").is_file()
    assert 0 <= summary["mismatch_kl_max"] < 1e-6
    seconds = summary["seconds"]
    assert sum(value for name, value in seconds.items() if name != "total") == pytest.approx(seconds["total"], abs=0.1)
    for name in ("config.json", "metrics.jsonl", "report.html", "checkpoints/step-3/manifest.json"):
        assert (finished / name).is_file(), name
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    names = {name for line in read_metrics(finished) for name in line} - {"step", "stage"}
    assert undocumented(names) == []


def test_trained_policy_opens_in_transformers_and_differs_from_the_start(finished: Path, tiny_world: TinyWorld) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoProcessor.from_pretrained(finished / "policy")
    after = AutoModelForImageTextToText.from_pretrained(finished / "policy").state_dict()
    before = AutoModelForImageTextToText.from_pretrained(tiny_world.policy).state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_trained_policy_opens_in_vllm_with_the_figures_of_the_run(
    finished: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    command = [*tiny_world.train_command(tmp_path, "x")[:2], "launch.evaluate", "--out", str(tmp_path / "eval")]
    config = ["--config", str(ROOT / "launch/configs/tiny.toml"), "--data", str(tiny_world.data)]
    done = subprocess.run(
        [*command, *config, "--checkpoint", str(finished / "policy")],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    expected = json.loads((finished / "summary.json").read_text())["heldout"]["after"]
    assert evaluation["pairs"] == expected.pop("pairs")
    assert {name: evaluation["figures"][name]["value"] for name in expected} == pytest.approx(expected, abs=1e-12)
    seconds = evaluation["seconds"]
    assert 0 < seconds["vllm"] < seconds["answer"] and 0 < evaluation["outside_vllm_share"] < 1
    assert "% of it outside vLLM" in done.stdout

    # The stored answers give the same figures without an engine.
    again = [*command[:2], "launch.evaluate", "--predictions", str(tmp_path / "eval" / "predictions.jsonl")]
    done = subprocess.run([*again, "--out", str(tmp_path / "again")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recomputed = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert recomputed["figures"] == evaluation["figures"] and recomputed["slices"] == evaluation["slices"]


def test_recorded_rollouts_are_replayed_with_the_loss_of_the_run(finished: Path, tiny_world: TinyWorld) -> None:
    assert sorted(path.name for path in (finished / "rollouts").iterdir()) == [f"step-{n}.jsonl.gz" for n in (1, 2, 3)]
    command = [sys.executable, "-m", "launch.replay", "--runs-dir", str(finished.parent), "--run", finished.name]

    def replay(*options: str) -> str:
        done = subprocess.run(
            [*command, *options], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for step in (2, 3):
        assert "0 completions are paid otherwise than they were" in replay("--step", str(step), "--no-loss")
    said = replay("--step", "1")
    assert "0 completions are paid otherwise than they were" in said
    assert f"{tiny_world.policy}, which sampled them\n" in said
    found = json.loads((finished / "replay/step-1.json").read_text())["figures"]
    (recorded,) = [line for line in read_metrics(finished) if line["step"] == 1 and line["stage"]]
    for name in ("learner/loss", "learner/kl", "learner/grad_norm", "learner/entropy"):
        assert found[name] == pytest.approx(recorded[name], rel=1e-3, abs=1e-6), name


def test_same_seed_and_config_give_the_same_run_exactly(finished: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    done = tiny_world.train(tmp_path, "whole")
    assert done.returncode == 0, done.stderr
    assert what_must_repeat(tmp_path / "whole") == what_must_repeat(finished)


def test_finished_run_is_left_alone(finished: Path, tiny_world: TinyWorld) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    done = tiny_world.train(finished.parent, "whole")
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert (finished / "metrics.jsonl").read_bytes() == before


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended before it could be interrupted:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "the run did not get far enough to be interrupted"
        time.sleep(0.05)


def all_children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def start_training(world: TinyWorld, runs: Path, run: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        world.train_command(runs, run, *more),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that Ctrl-C can reach the whole foreground group, as a terminal sends it
    )


def test_ctrl_c_stops_within_seconds_and_the_same_command_continues_exactly(
    finished: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    process = start_training(tiny_world, tmp_path, "whole")
    wait_for((tmp_path / "whole/checkpoints/step-1/manifest.json").is_file, process)
    children = all_children(process)
    assert len(children) > 3  # Ray's own and the actors
    os.killpg(process.pid, signal.SIGINT)
    interrupted_at = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert time.monotonic() - interrupted_at < 60  # a few seconds where nothing else is running
    assert "the same command continues" in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(children, timeout=60)
    assert [child.name() for child in alive] == []
    assert json.loads((tmp_path / "whole/summary.json").read_text())["status"] == "interrupted"

    done = tiny_world.train(tmp_path, "whole")
    assert done.returncode == 0, done.stderr
    assert what_must_repeat(tmp_path / "whole") == what_must_repeat(finished)


def test_a_run_whose_learner_is_killed_leaves_nothing_behind_and_continues_exactly_even_from_an_older_checkpoint(
    finished: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """One case of the kills in tests/test_kill_schedule.py, and a newest checkpoint that is damaged besides."""
    chance = random.Random(SEED)
    (last_step,) = [line for line in read_metrics(finished) if line["step"] == 3 and line["stage"] is not None]
    seconds = {phase: last_step.get(f"timing/{phase}_s") for phase in ("generate", "learn", "sync")}
    seconds |= {"evaluate": 0.3, "save": 0.3}
    phase = chance.choice([name for name, known in seconds.items() if known])  # a step without signal learns nothing
    plan = Plan(str(tmp_path / "draws"), 3, phase, chance.uniform(0, seconds[phase]))
    _, _, _, *arguments = tiny_world.train_command(tmp_path, "whole")
    done = subprocess.run(
        [sys.executable, "-m", "tests.doomed", plan.to_json(), *arguments],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {MARK: str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    assert "learner-0 died: it was killed" in done.stderr and "learner-0.log" in done.stderr, done.stderr
    assert "raylet" not in done.stdout + done.stderr
    _, alive = psutil.wait_procs(started_by(tmp_path), timeout=60)
    assert [process.name() for process in alive] == []
    assert json.loads((tmp_path / "whole/summary.json").read_text())["status"] == "failed"

    newest = max(int(folder.name.removeprefix("step-")) for folder in tmp_path.glob("whole/checkpoints/step-?"))
    weights = tmp_path / f"whole/checkpoints/step-{newest}/learner/learner/mp_rank_00_model_states.pt"
    contents = bytearray(weights.read_bytes())
    contents[len(contents) // 2] ^= 1
    weights.write_bytes(contents)
    done = tiny_world.train(tmp_path, "whole")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint of step {newest} is damaged and passed over: {weights} has other contents" in done.stdout
    assert f"continuing after step {newest - 1}" in done.stdout
    assert what_must_repeat(tmp_path / "whole") == what_must_repeat(finished)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('policy.path="nowhere"', "no policy at nowhere"),
        ('data.path="nowhere"', "nowhere"),
        ("rollout.max_model_len=100", "its prompt takes"),
        ('curriculum="curricula/none.toml"', "curricula/none.toml"),
        ("learner.lrr=1", "did you mean learner.lr"),
        ('reward.terms={f1={use="rewards/box_f1.py:nothing", weight=1.0}}', "box_f1"),
    ],
)
def test_mistakes_end_with_one_message(tiny_world: TinyWorld, tmp_path: Path, override: str, message: str) -> None:
    done = tiny_world.train(tmp_path, "wrong", override)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) <= 4


def test_an_alarm_can_stop_the_run_with_its_checkpoint_saved(tiny_world: TinyWorld, tmp_path: Path) -> None:
    # The tiny policy's answers can be read and hit little; a threshold of 0 makes sure.
    stopping = [
        "alarms.window=1",
        "alarms.format_hacking=0",
        'alarms.stop=["format_hacking"]',
        "checkpoint.every_steps=9",
    ]
    stopped = tiny_world.train(tmp_path, "alarm", *stopping)
    assert stopped.returncode == 1
    assert "alarm format_hacking at step 1: Answers can be read and hit nothing" in stopped.stdout
    assert "error: stopped at step 1 by alarms.stop: format_hacking" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert json.loads((tmp_path / "alarm/summary.json").read_text())["status"] == "failed"
    assert [folder.name for folder in (tmp_path / "alarm/checkpoints").iterdir()] == ["step-1"]


BREAKS = """
[[stages]]
name = "sound"
differences = [1, 2]
steps = 2
[[stages]]
name = "too fast"
differences = [1, 2]
steps = 2
overrides = { lr = 1e6 }
"""


@pytest.mark.long
def test_a_rate_that_ruins_the_policy_ends_the_run_and_the_checkpoint_before_stays(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    (tmp_path / "breaks.toml").write_text(BREAKS)
    settings = [f'curriculum="{tmp_path / "breaks.toml"}"', "checkpoint.keep_last=1"]
    for _ in range(2):  # the same command continues, and ends in the same way
        done = tiny_world.train(tmp_path, "breaks", *settings)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        error = done.stderr[done.stderr.index("error: ") :]
        assert error.startswith("error: stopped after step 3: ")
        assert "All weights are finite; the largest value is " in error
        assert "Kept as they were: the checkpoints of steps 2" in error
        assert f"Next: make export CHECKPOINT={tmp_path}/breaks/checkpoints/step-2" in error
        assert json.loads((tmp_path / "breaks/summary.json").read_text())["status"] == "failed"
        assert [folder.name for folder in (tmp_path / "breaks/checkpoints").glob("step-*")] == ["step-2"]
    assert "continuing after step 2" in done.stdout


@pytest.mark.long
def test_a_disk_that_fills_up_at_a_checkpoint_is_one_message_and_the_run_goes_on_when_there_is_room(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(runs)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk here")
    try:
        done = tiny_world.train(runs, "full")
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        error = done.stderr[done.stderr.index("error: ") :]
        assert re.match(
            r"error: no room for the checkpoint of step \d: .* are free in .*, about .* are needed", error
        ), error
        assert json.loads((runs / "full/summary.json").read_text())["status"] == "failed"
        subprocess.run([*mount[:3], "-o", "remount,size=100m", str(runs)], check=True)
        done = tiny_world.train(runs, "full")
        assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    finally:
        subprocess.run(["umount", "-l", str(runs)], check=True)
