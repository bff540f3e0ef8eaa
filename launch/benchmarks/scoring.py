"""What scoring costs: CPU time of a completion, and its part of a training step."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dig_rl.config import RewardConfig
from dig_rl.errors import DigRlError
from dig_rl.metrics import read_metrics
from dig_rl.scoring import Scorer
from dig_rl.scoring_pool import ScoringPool, hash_plugins
from dig_rl.scoring_worker import ScorerSpec
from dig_rl.types import Completion, Example, SampledGroup
from launch.benchmarks.measurement import Measurement, Request

MAX_US = 50.0
MAX_SHARE = 0.01
MAX_POOL_RATIO = 2.0
_NUM_COMPLETIONS = 2000
_TRIES = 7
_SIDES = ((0, 200), (800, 1000))
_CORNERS = tuple((left, top, right, bottom) for left, right in _SIDES for top, bottom in _SIDES)
_TINY = "launch/configs/tiny.toml"
_TINY_DATA = "launch/configs/data/tiny.toml"


def score_us_per_completion(_request: Request) -> Measurement:
    """CPU time of a completion with 4 boxes for 4 changes, all terms, against parsing and matching for every term.

    The alternative is how trainers that take a list of reward functions work: each reads the text by itself.
    """
    shipped = RewardConfig()
    together = _scorer(shipped)
    apart = [
        _scorer(RewardConfig(terms={name: term.model_copy(update={"weight": 1.0})}))
        for name, term in shipped.terms.items()
    ]
    group = _everyday_group()

    def score_apart() -> None:
        for scorer in apart:
            scorer.score(group, step=0, stage="")

    ours_us = _best_us(lambda: together.score(group, step=0, stage=""))
    theirs_us = _best_us(score_apart)
    return Measurement(
        value=ours_us,
        unit="us of one core",
        versus=f"parsing and matching anew for each of {len(apart)} terms, {theirs_us:.1f} us",
        ratio=ours_us / theirs_us,
        aim=f"at most {MAX_US:g} us",
        holds=ours_us <= MAX_US,
    )


def pool_over_scorer(_request: Request) -> Measurement:
    """Wall-clock time of the reward service's processes, against the same scoring without any protection."""
    shipped, root = RewardConfig(), Path.cwd()
    alone, group = _scorer(shipped), _everyday_group()
    spec = ScorerSpec(shipped, root, False, "norm1000", "", hash_plugins(shipped, root))
    with ScoringPool(spec) as pool:
        ours_us = _best_us(lambda: pool.score([group], step=0, stage="", max_failed=0), time.perf_counter)
    alone_us = _best_us(lambda: alone.score(group, step=0, stage=""), time.perf_counter)
    ratio = ours_us / alone_us
    return Measurement(
        value=ratio,
        unit="ratio",
        versus=f"plugins called in the same process, {alone_us:.1f} us a completion; through the pool {ours_us:.1f} us",
        ratio=ratio,
        aim=f"at most {MAX_POOL_RATIO:g}",
        holds=ratio <= MAX_POOL_RATIO,
    )


def score_share_of_step(request: Request) -> Measurement:
    """Part of the wall-clock time of training steps that is spent scoring."""
    run_dir = request.runs_dir / request.run if request.run else _tiny_run(request.runs_dir / "bench" / "tiny")
    steps = [line for line in read_metrics(run_dir) if line.get("timing/step_s") and "timing/score_s" in line]
    if not steps:
        raise DigRlError(f"{run_dir} has no training step with timings in metrics.jsonl; name a finished run with RUN=")
    share = sum(line["timing/score_s"] for line in steps) / sum(line["timing/step_s"] for line in steps)
    return Measurement(
        value=share,
        unit="fraction",
        versus=f"the whole step, {len(steps)} steps of {run_dir.name}",
        ratio=share,
        aim=f"under {MAX_SHARE:g}",
        holds=share < MAX_SHARE,
    )


def _scorer(config: RewardConfig) -> Scorer:
    return Scorer(config, root=Path.cwd(), thinking=False, frame="norm1000", prompt="")


def _everyday_group() -> SampledGroup:
    generator = random.Random(0)
    completions = []
    for _ in range(_NUM_COMPLETIONS):
        boxes = [[abs(side - generator.randint(0, 20)) for side in corner] for corner in _CORNERS]
        completions.append(Completion((), (), str(boxes), "stop", 0))
    target = tuple(tuple(map(float, corner)) for corner in _CORNERS)
    example = Example("bench", "", "", (1000, 1000), target, ("color",) * len(target), "train")  # type: ignore[arg-type]
    return SampledGroup(example, (), tuple(completions), 0, (1000, 1000), 0)


def _best_us(score: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Time of one completion, microseconds, by default of this thread: other work on the machine only ever adds."""
    seconds = []
    for _ in range(_TRIES):
        started = clock()
        score()
        seconds.append(clock() - started)
    return 1e6 * min(seconds) / _NUM_COMPLETIONS


def _tiny_run(folder: Path) -> Path:
    """Render, warm up and train the tiny config below `folder`; data and policy of an earlier time are used again."""
    paths = {"data.path": folder / "data", "policy.path": folder / "policy", "warmup.start": folder / "start"}
    settings = ["--config", _TINY, "--set", *(f"{key}={json.dumps(str(path))}" for key, path in paths.items())]
    settings += ["rollout.prompts_per_step=16", "rollout.group_size=8"]  # the demo's; with less, fixed costs are all
    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # an old run would measure old code
    parts = [
        (folder / "data" / "manifest.json", ["launch.data", "--config", _TINY_DATA, "--out", str(folder / "data")]),
        (folder / "start" / "config.json", ["launch.policy", "--out", str(folder / "start")]),
        (folder / "policy" / "config.json", ["launch.warmup", *settings]),
        (runs / "tiny" / "summary.json", ["launch.train", "--run", "tiny", "--runs-dir", str(runs), *settings]),
    ]
    for made, command in parts:
        if made.exists():
            continue
        print(f"making {made.parent}", flush=True)
        result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        if result.returncode:
            raise DigRlError(f"{command[0]} failed while a run was made to measure:\n{result.stdout}{result.stderr}")
    return folder / "runs" / "tiny"
