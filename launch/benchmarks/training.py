"""What a training step costs: against TRL's `GRPOTrainer`, and against generation and learning measured alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from dig_rl.errors import DigRlError
from dig_rl.metrics import read_metrics
from launch.benchmarks.measurement import Measurement, Request
from launch.benchmarks.step_parts import ANSWERS, CONFIG, policy_of

MIN_SPEEDUP = 3.0
MAX_OVERHEAD = 1.15
MAX_LOGPROB_MIB = 768.0
NUM_ANSWERS = 128
WARM_UP_STEPS = 2

TRL_SETTINGS = {
    "128 answers a pass": {"per_device_train_batch_size": 128, "gradient_accumulation_steps": 1},
    "32 answers a pass": {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 4},
    "8 answers a pass": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16},
}
"""Settings of `GRPOConfig` that were tried; the fastest is the peer. Its vLLM mode fails at weight sync on CPUs."""


def samples_per_s_vs_trl(request: Request) -> Measurement:
    """Answers sampled, scored and learned from in a second, against the best setting of TRL's `GRPOTrainer`."""
    folder = _world(request)
    ours = NUM_ANSWERS / _step_s(folder)
    theirs = {}
    for name, settings in TRL_SETTINGS.items():
        options = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        theirs[name] = NUM_ANSWERS / median(_part("trl", folder, *options)[1:])
    tried = ", ".join(f"{name}: {value:.2f}/s" for name, value in theirs.items())
    ratio = ours / max(theirs.values())
    return Measurement(
        value=ratio,
        unit="ratio",
        versus=f"TRL's GRPOTrainer ({tried}); dig-rl {ours:.2f}/s",
        ratio=ratio,
        aim=f"at least {MIN_SPEEDUP:g}",
        holds=ratio >= MIN_SPEEDUP,
    )


def step_over_pure_compute(request: Request) -> Measurement:
    """Seconds of a whole step over those of generation and of learning, each alone in a process."""
    folder = _world(request)
    step_s = _step_s(folder)
    generate_s, learn_s = (median(_part(part, folder)[WARM_UP_STEPS:]) for part in ("generate", "learn"))
    ratio = step_s / (generate_s + learn_s)
    return Measurement(
        value=ratio,
        unit="ratio",
        versus=f"generation alone {generate_s:.2f} s + learning alone {learn_s:.2f} s; the step {step_s:.2f} s",
        ratio=ratio,
        aim=f"at most {MAX_OVERHEAD:g}",
        holds=ratio <= MAX_OVERHEAD,
    )


def shared_prefix_vs_plain(request: Request) -> Measurement:
    """Speed of learning with a group as one sequence, against a prompt and images for every answer."""
    folder = _world(request)
    shared, plain = (
        median(_part("learn", folder, f"learner.shared_prefix={value}")[WARM_UP_STEPS:]) for value in ("true", "false")
    )
    ratio = plain / shared
    return Measurement(
        value=ratio,
        unit="ratio",
        versus=f"prompt and images repeated for every answer, {plain:.2f} s a step; shared {shared:.2f} s",
        ratio=ratio,
        aim="above 1",
        holds=ratio > 1,
    )


def peak_logprob_mib(_request: Request) -> Measurement:
    """Memory of log-probabilities of 4,096 tokens of 152,000 words above the weights, against whole logits."""
    ours, naive = (
        float(run_module("launch.benchmarks.logprob_memory", "4096", *more).splitlines()[-1])
        for more in ([], ["naive"])
    )
    return Measurement(
        value=ours,
        unit="MiB",
        versus=f"logits of all tokens at once, {naive:.0f} MiB",
        ratio=ours / naive,
        aim=f"at most {MAX_LOGPROB_MIB:g} MiB and 1/8",
        holds=ours <= MAX_LOGPROB_MIB and ours <= naive / 8,
    )


def _world(request: Request) -> Path:
    """A policy that answers in the right form, and its answers, made once: what cannot be read teaches nothing."""
    folder = request.runs_dir / "bench" / "training"
    start, policy = folder / "start", policy_of(folder)
    if not (start / "config.json").exists():
        run_module("launch.policy", "--out", str(start))
    if not (policy / "config.json").exists():
        settings = [_path("policy.path", policy), _path("warmup.start", start)]
        run_module("launch.warmup", "--config", CONFIG, "--set", *settings)
    if not (folder / ANSWERS).exists():
        _part("generate", folder)
    return folder


def _path(key: str, path: Path) -> str:
    return f"{key}={json.dumps(str(path))}"


def _step_s(folder: Path) -> float:
    """Median seconds of a step of a real run, started anew, since an old one would measure old code.

    Steps that learned from some of their groups only are left out: TRL learns from all, and so do the parts alone.
    """
    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    settings = ["--config", CONFIG, "--set", _path("policy.path", policy_of(folder))]
    run_module("launch.train", "--run", "step", "--runs-dir", str(runs), *settings)
    steps = [line for line in read_metrics(runs / "step") if "timing/step_s" in line][WARM_UP_STEPS:]
    whole = [line["timing/step_s"] for line in steps if line["groups/dropped_frac"] == 0]
    if 2 * len(whole) < len(steps):
        raise DigRlError(
            f"{runs / 'step'}: {len(steps) - len(whole)} of {len(steps)} steps dropped groups without signal, so they "
            f"had less to learn from than what they are held against; remove {folder} and measure again"
        )
    return median(whole)


def _part(part: str, folder: Path, *options: str) -> list[float]:
    printed = run_module("launch.benchmarks.step_parts", part, str(folder), *options).splitlines()
    # Engines may print more when they end.
    seconds: list[float] = json.loads(next(line for line in reversed(printed) if line.startswith("[")))
    return seconds


def run_module(module: str, *arguments: str) -> str:
    """Run `python -m module` in a process of its own; returns what it printed.

    Raises:
        DigRlError: it failed; shows the end of what it said.
    """
    print(f"running {module} {' '.join(arguments)}", flush=True)
    result = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise DigRlError(f"{module} {' '.join(arguments)} failed:\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout
