"""The GPU benchmark runs on a CPU at a tiny size, with DeepSpeed and without."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from launch import bench_gpu
from launch.terminal import end_with_message

TINY = ["--size", "tiny", "--image", "96", "64", "--group-size", "2", "--completion-tokens", "4", "--steps", "1"]


def measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    monkeypatch.setattr("sys.argv", ["bench_gpu", *arguments])
    assert not end_with_message(bench_gpu.main, "")
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_without_deepspeed_both_layouts_are_measured_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    absent = {"deepspeed"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    shared, plain = measured(monkeypatch, capsys, *TINY)
    for one in (shared, plain):
        assert "DeepSpeed is not installed" in one["engine"] and one["device"] == "cpu"
        assert one["step_s"] > 0 and one["completion_tokens_per_s"] > 0 and 0 <= one["mfu"] < 1
    prompt = shared["prompt_tokens"]
    assert shared["tokens_of_a_step"] == prompt + 8
    assert plain["tokens_of_a_step"] == 2 * (prompt + 4)


def test_the_real_size_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench_gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert end_with_message(bench_gpu.main, "")
    assert "--size tiny runs anywhere" in capsys.readouterr().err
