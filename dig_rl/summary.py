"""`summary.json`: what a run did, in one small file that other programs read."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import DigRlError
from dig_rl.metrics import read_metrics

SUMMARY_FILE = "summary.json"

Status = Literal["running", "interrupted", "failed", "finished"]

PHASES = ("generate", "score", "learn", "sync", "evaluate")
"""Parts of a run whose busy seconds are added up; what remains of the total is `other`."""


class Summary:
    """`summary.json` of a run: built up while it goes, every write a complete file.

    A continued run takes over the seconds and held-out figures of the file it finds. Seconds since the last write
    before a kill are not known and not counted.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        rollout_engine: str,
        learner_engine: str,
        ray: str,
        device: str,
        model: dict[str, Any],
        started: float | None = None,
    ) -> None:
        """Take over what an earlier start of the run wrote.

        Args:
            run_dir: the run folder.
            rollout_engine: name and version, as `vllm 0.32.0`.
            learner_engine: name and version, as `deepspeed 0.19.8`.
            ray: version.
            device: `cpu`, or the accelerator's name.
            model: `parameters` (count) and `architecture` (class name).
            started: when the run began, seconds of `time.monotonic`; None: now.

        Raises:
            DigRlError: an earlier `summary.json` is damaged.
        """
        self._run_dir = Path(run_dir)
        earlier = read_summary(self._run_dir) or {}
        self._engines = {"rollout_engine": rollout_engine, "learner_engine": learner_engine, "ray": ray}
        self._machine = {"device": device, "model": dict(model)}
        self.heldout: dict[str, dict[str, float]] = dict(earlier.get("heldout", {}))
        """Figures by moment, `before` and `after`; a moment not yet reached is missing."""
        seconds = earlier.get("seconds", {})
        self._busy = {phase: float(seconds.get(phase, 0.0)) for phase in PHASES}
        self._earlier_total = float(seconds.get("total", 0.0))
        self._started = time.monotonic() if started is None else started

    def add_seconds(self, **busy: float) -> None:
        """Add busy seconds to phases, as `add_seconds(generate=2.1, score=0.1)`; names are those of `PHASES`."""
        for phase, seconds in busy.items():
            self._busy[phase] += seconds

    def set_heldout(self, moment: Literal["before", "after"], figures: dict[str, float]) -> None:
        """Record one greedy evaluation of the held-out split."""
        self.heldout[moment] = dict(figures)

    def write(self, status: Status) -> dict[str, Any]:
        """Write the file and return its contents; stages come from `metrics.jsonl` as it is now.

        Raises:
            DigRlError: the file cannot be written, or `metrics.jsonl` is damaged.
        """
        lines = read_metrics(self._run_dir)
        mismatches = _finite_values(lines, "rollout/mismatch_kl")
        total = self._earlier_total + time.monotonic() - self._started
        other = max(0.0, total - sum(self._busy.values()))
        seconds = {"total": total, **self._busy, "other": other}
        contents = {
            "run": self._run_dir.name,
            "status": status,
            **self._engines,
            **self._machine,
            "stages": summarise_stages(lines),
            "heldout": self.heldout,
            "mismatch_kl_max": max(mismatches, default=None),
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        }
        try:
            write_durably(self._run_dir / SUMMARY_FILE, json.dumps(contents, indent=2) + "\n")
        except OSError as error:
            raise DigRlError(
                f"cannot write {self._run_dir / SUMMARY_FILE}: {error}; make room or make the folder writable, "
                "then run again with the same RUN="
            ) from error
        return contents

    def write_failed(self) -> None:
        """`write("failed")`, where that is possible: why the run fails is the news, not that this cannot be written."""
        with contextlib.suppress(DigRlError):
            self.write("failed")


def summarise_stages(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps and rewards of each stage, in the order trained.

    Args:
        lines: entries of `metrics.jsonl`; those without `stage` are evaluations and do not count.

    Returns:
        For each stage `name`, `steps`, and `first_reward` / `last_reward`: mean of `reward/total` over the first and
        the last tenth of its steps, rounded down, at least one step; None if no reward there is finite.
    """
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line.get("stage") is not None:
            by_stage.setdefault(line["stage"], []).append(line)
    stages = []
    for name, stage_lines in by_stage.items():
        tenth = max(1, len(stage_lines) // 10)
        first, last = _mean_reward(stage_lines[:tenth]), _mean_reward(stage_lines[-tenth:])
        stages.append({"name": name, "steps": len(stage_lines), "first_reward": first, "last_reward": last})
    return stages


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """Contents of `summary.json`; None where the run has not written one.

    Raises:
        DigRlError: the file is not a JSON object.
    """
    return read_json_object(Path(run_dir) / SUMMARY_FILE, "remove it to go on without the seconds it counted")


def _finite_values(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if line.get(name) is not None]


def _mean_reward(lines: Sequence[dict[str, Any]]) -> float | None:
    rewards = _finite_values(lines, "reward/total")
    return float(np.mean(rewards)) if rewards else None
