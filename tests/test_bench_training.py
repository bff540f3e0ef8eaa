"""What the training benchmarks make of the seconds they measure; the measuring itself is `make bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dig_rl.errors import DigRlError
from launch.benchmarks import evaluation, training
from launch.benchmarks.evaluation import as_measurement
from launch.benchmarks.measurement import Request
from launch.evaluate import outside_vllm_share

REQUEST = Request(Path("runs"), None)


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Steps of 4 s; parts as each test sets them. The first steps of each are slow and must not count."""
    parts: dict[str, Any] = {}

    def part(name: str, _: Path, *options: str) -> list[float]:
        return parts[" ".join([name, *options])]

    monkeypatch.setattr(training, "_world", lambda _: Path("world"))
    monkeypatch.setattr(training, "_step_s", lambda _: 4.0)
    monkeypatch.setattr(training, "_part", part)
    return parts


def test_the_peer_is_the_fastest_setting_of_trl_and_all_are_listed(seconds: dict[str, Any]) -> None:
    # 128 answers in 4 s are 32 a second; TRL's settings take 16, 32 and 64 s: 8, 4 and 2 a second.
    for size, step_s in ((128, 32.0), (32, 16.0), (8, 64.0)):
        name = f"trl per_device_train_batch_size={size} gradient_accumulation_steps={128 // size}"
        seconds[name] = [99.0, step_s, step_s, step_s]
    measured = training.samples_per_s_vs_trl(REQUEST)
    assert measured.value == measured.ratio == pytest.approx(4.0)
    assert measured.holds
    for text in (
        "128 answers a pass: 4.00/s",
        "32 answers a pass: 8.00/s",
        "8 answers a pass: 2.00/s",
        "dig-rl 32.00/s",
    ):
        assert text in measured.versus


@pytest.mark.parametrize(("learn_s", "ratio", "holds"), [(3.0, 1.0, True), (1.0, 2.0, False)])
def test_a_step_is_held_against_the_sum_of_its_parts(
    seconds: dict[str, Any], learn_s: float, ratio: float, holds: bool
) -> None:
    seconds |= {"generate": [9.0, 9.0, 1.0, 1.0, 1.0], "learn": [9.0, 9.0, learn_s, learn_s, learn_s]}
    measured = training.step_over_pure_compute(REQUEST)
    assert (measured.value, measured.holds) == (pytest.approx(ratio), holds)


def test_sharing_a_prompt_is_held_against_repeating_it(seconds: dict[str, Any]) -> None:
    seconds["learn learner.shared_prefix=true"] = [9.0, 9.0, 2.0]
    seconds["learn learner.shared_prefix=false"] = [9.0, 9.0, 7.0]
    assert training.shared_prefix_vs_plain(REQUEST).ratio == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ([1, 1, 0, 0, 0], 4.0),  # the first two steps are never timed
        ([0, 0, 0, 0.25, 0], 4.0),  # 3 and 5 s are left
        ([0, 0, 0, 0.25, 1], None),
    ],
)
def test_steps_that_learned_from_fewer_groups_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dropped: list[float], expected: float | None
) -> None:
    monkeypatch.undo()

    def run(*_: str) -> str:
        folder = tmp_path / "runs" / "step"
        folder.mkdir(parents=True)
        lines = [
            {"step": step, "timing/step_s": float(step), "groups/dropped_frac": share}
            for step, share in enumerate(dropped, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ""

    monkeypatch.setattr(training, "run_module", run)
    if expected:
        assert training._step_s(tmp_path) == expected
    else:
        with pytest.raises(DigRlError, match="2 of 3 steps dropped groups without signal"):
            training._step_s(tmp_path)


def test_an_evaluations_share_outside_vllm_is_of_all_that_follows_the_engines_start() -> None:
    seconds = {"start": 30.0, "answer": 20.0, "vllm": 15.0, "stop": 1.0, "judge": 7.0, "write": 2.0}
    assert outside_vllm_share(seconds) == pytest.approx(0.5)  # 15 of 30
    measured = as_measurement({"seconds": seconds, "outside_vllm_share": 0.5, "pairs": 200})
    assert (measured.value, measured.ratio, measured.holds) == (0.5, 0.5, True)
    assert "the whole of 30.0 s for 200 pairs" in measured.versus
    assert not as_measurement({"seconds": seconds | {"answer": 50.0}, "outside_vllm_share": 0.5, "pairs": 200}).holds
    assert not as_measurement({"seconds": seconds, "outside_vllm_share": 0.5, "pairs": 20}).holds


def test_an_evaluation_is_timed_with_the_policy_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []

    def run(*command: str) -> str:
        calls.append(command)
        if command[0] == "launch.evaluate":
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True)
            seconds = {"start": 9.0, "answer": 3.0, "vllm": 2.0, "stop": 0.5, "judge": 0.25, "write": 0.25}
            contents = {"seconds": seconds, "outside_vllm_share": 0.5, "pairs": 200}
            (out / "evaluation.json").write_text(json.dumps(contents))
        return ""

    monkeypatch.setattr(evaluation, "run_module", run)
    assert evaluation.eval_outside_vllm_share(Request(tmp_path, "mine")).value == 0.5
    ((name, *words),) = calls
    assert name == "launch.evaluate"
    assert words[words.index("--checkpoint") + 1] == str(tmp_path / "mine")
    assert words[words.index("--data") + 1] == "nano/data"
