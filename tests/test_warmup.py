"""The supervised warm-up: it learns, writes a whole policy or none, and refuses to overwrite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dig_rl.errors import ConfigError, PolicyError
from dig_rl.warmup import warm_up
from launch import warmup as launch_warmup
from tests.tiny import CONFIG, ENVIRONMENT, ROOT, TinyWorld

pytestmark = pytest.mark.slow


def warm_up_command(world: TinyWorld, start: Path, out: Path, *more: str) -> list[str]:
    settings = ["--set", *world.overrides(f'warmup.start="{start}"', *more)]
    return [sys.executable, "-m", "launch.warmup", "--config", str(CONFIG), "--out", str(out), *settings]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600)


def test_the_loss_of_the_warmed_up_policy_is_below_that_of_its_start(
    tiny_world: TinyWorld, random_policy: Path
) -> None:
    """The log-probability of the true answers, computed by the learner's own path and not by TRL's."""
    import numpy as np
    import torch

    from dig_rl.algo.batch import TrainingGroup
    from dig_rl.algo.packing import pack
    from dig_rl.boxes import px_to_unit
    from dig_rl.data import load_examples
    from dig_rl.policy.load import load_frontend, load_model
    from dig_rl.policy.scorer import PolicyScorer
    from dig_rl.prompts import format_answer

    examples = load_examples(tiny_world.data, "train")
    losses = []
    for policy in (random_policy, tiny_world.policy):
        config = tiny_world.config(f'policy.path="{policy}"')
        frontend = load_frontend(config.policy, "union")
        scorer = PolicyScorer(load_model(config.policy), frontend, config)
        values: list[float] = []
        for example in examples:
            size = example.image_size_px
            boxes = px_to_unit(np.array(example.target_boxes_px), size)
            levels = config.warmup.coordinate_levels
            text = format_answer(boxes, frontend.frame, frontend.model_image_size_px(size), levels)
            answer = (*frontend.processor.tokenizer(text).input_ids, frontend.end_token_ids[0])
            prompt = tuple(frontend.encode(example)["input_ids"][0].tolist())
            group = TrainingGroup(example, prompt, (answer,), ((0.0,) * len(answer),), (1.0,))
            with torch.no_grad():
                packed = pack([group])
                values += (-scorer(packed, scorer.encode(packed)).logprobs_N).tolist()
        losses.append(sum(values) / len(values))
    before, after = losses
    assert before > 5  # hardly better than guessing among 450 tokens: log 450 = 6.1
    assert after < 1.5


def test_a_policy_that_is_there_is_not_overwritten(tiny_world: TinyWorld, tmp_path: Path) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / "precious").write_text("")
    with pytest.raises(PolicyError, match=r"taken exists already; choose another OUT=, or remove it"):
        warm_up(tiny_world.config(), [], out)
    assert [file.name for file in out.iterdir()] == ["precious"]


def test_start_and_out_must_differ(tiny_world: TinyWorld, random_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = random_policy.parent / "x" / ".." / random_policy.name
    monkeypatch.setattr(sys, "argv", warm_up_command(tiny_world, random_policy, same)[2:])
    with pytest.raises(ConfigError, match=r"warmup\.start and the folder to write are both .*; name another with OUT="):
        launch_warmup.main()


def test_an_interrupted_warm_up_leaves_nothing_and_the_same_command_works_after(
    tiny_world: TinyWorld, random_policy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policies" / "mine"
    process = subprocess.Popen(
        warm_up_command(tiny_world, random_policy, out, "warmup.steps=1000"),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "loss" not in (line := process.stdout.readline()):  # the first of 50 reports
        assert line, "the warm-up ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command starts it again" in errors
    assert "Traceback" not in errors
    assert not out.exists()

    done = run(warm_up_command(tiny_world, random_policy, out, "warmup.steps=2"))
    assert done.returncode == 0, done.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    assert [file.name for file in out.parent.iterdir()] == ["mine"]
