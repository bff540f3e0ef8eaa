"""What an evaluation costs besides vLLM."""

from __future__ import annotations

import json
from typing import Any

from launch.benchmarks.measurement import Measurement, Request
from launch.benchmarks.training import run_module
from launch.evaluate import EVALUATION_FILE

NUM_PAIRS = 200
MAX_SECONDS = 60.0


def eval_outside_vllm_share(request: Request) -> Measurement:
    """Share of `make eval` on 200 pairs that is spent outside vLLM, once the engine has started.

    With a run, its policy is evaluated; without, dig-nano as it ships.
    """
    checkpoint = str(request.runs_dir / request.run) if request.run else "nano/policy"
    out = request.runs_dir / "bench" / "evaluation"
    run_module(
        "launch.evaluate", "--checkpoint", checkpoint, "--data", "nano/data", "--split", "test", "--out", str(out)
    )
    return as_measurement(json.loads((out / EVALUATION_FILE).read_text(encoding="utf-8")))


def as_measurement(evaluation: dict[str, Any]) -> Measurement:
    """The figure of an `evaluation.json`."""
    seconds, share = evaluation["seconds"], evaluation["outside_vllm_share"]
    phases = {name: seconds[name] for name in ("answer", "stop", "judge", "write")}
    total = sum(phases.values())
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in phases.items())
    return Measurement(
        value=share,
        unit="fraction",
        versus=f"the whole of {total:.1f} s for {evaluation['pairs']} pairs ({parts}), {seconds['vllm']:.1f} s in vLLM",
        ratio=share,
        aim=f"{NUM_PAIRS} pairs in under {MAX_SECONDS:g} s after the engine's start",
        holds=total < MAX_SECONDS and evaluation["pairs"] == NUM_PAIRS,
    )
