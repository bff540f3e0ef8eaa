"""One run of `make ablations`: its data, its config file, its processes, and the entries it ends as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dig_rl.ablations.derived import blank_second_images, shuffle_labels
from dig_rl.ablations.ledger import Entry, Figures
from dig_rl.ablations.plan import SUPERVISED_FILE, Budget, PlannedRun
from dig_rl.config import Config
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import DigRlError
from dig_rl.next_command import next_command
from dig_rl.summary import read_summary
from launch.terminal import run_part

_TRAINING = ("generate", "score", "learn", "sync")
"""Phases of `summary.json` that training consists of."""


class RunFailed(DigRlError):
    """A run's process ended in an error, and has said which."""


def execute(run: PlannedRun, budget: Budget, work: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Carry out one run, or what is left of it.

    Args:
        run: what to do.
        budget: of runs of GRPO.
        work: folder for run folders, config files and derived data.
        entries: finished runs, for the minutes that `sft_more` gets.

    Returns:
        Its entries that are not yet among `entries`.

    Raises:
        RunFailed: a process of it failed, or its folder holds another run.
        DigRlError: it cannot begin.
        KeyboardInterrupt: it was stopped; the same call continues it.
    """
    config_path = work / "configs" / f"{run.name}.json"
    config_path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_other_run(run, work / run.name, config_path.with_suffix(".fingerprint"))
    write_durably(config_path, _with_data(run, work).model_dump_json(indent=2) + "\n")
    settings = ["--config", str(config_path), "--run", run.name, "--runs-dir", str(work)]
    if run.control == "sft_more":
        result = _train_supervised(run, settings, work, entries)
    else:
        _run("launch.train", *settings)
        result = _of_summary(work / run.name, budget)
    named = [
        {"axis": axis, "arm": arm, "seed": run.seed, "fingerprint": run.fingerprint} for axis, arm in run.written_as
    ]
    there = {entry.key for entry in entries}
    made = [Entry.model_validate(name | result) for name in named]
    return [entry for entry in made if entry.key not in there]


def _refuse_other_run(run: PlannedRun, folder: Path, record: Path) -> None:
    """A run folder knows its config; what else decides its figures is on record beside it."""
    begun = record.read_text(encoding="utf-8") if record.exists() else "unknown"
    if folder.exists() and begun != run.fingerprint:
        raise RunFailed(
            f"{folder} was begun with other settings, stages, policy or pairs (fingerprint {begun}, expected "
            f"{run.fingerprint}); remove it, it is made again"
        )
    write_durably(record, run.fingerprint)


def seconds_behind(run: PlannedRun, work: Path) -> float:
    """Seconds that a run which was stopped has already taken."""
    summary = read_summary(work / run.name)
    return float(summary["seconds"]["total"]) if summary else 0.0


def _with_data(run: PlannedRun, work: Path) -> Config:
    config = run.config
    source, data = Path(config.data.path), config.data
    if run.control == "shuffled_labels":
        out = work / "data" / run.name
        out = shuffle_labels(source, out, split=data.train_split, seed=run.seed, allow_no_change=data.allow_no_change)
    elif run.control == "blank_image_b":
        out = blank_second_images(source, work / "data" / run.arm, allow_no_change=data.allow_no_change)
    else:
        return config
    return config.model_copy(update={"data": data.model_copy(update={"path": str(out)})})


def _of_summary(folder: Path, budget: Budget) -> dict[str, Any]:
    summary = read_summary(folder) or {}
    if summary.get("status") != "finished":
        raise RunFailed(f"run {folder} ended as {summary.get('status', 'nothing')}")
    steps = sum(stage["steps"] for stage in summary["stages"])
    if steps != budget.steps:
        raise RunFailed(f"run {folder} has {steps} steps, expected {budget.steps}; remove it, it is made again")
    seconds = summary["seconds"]
    return {
        **_figures(summary["heldout"]["after"]),
        "before": _figures(summary["heldout"]["before"]),
        "steps": steps,
        "seconds": seconds["total"],
        "training_seconds": round(sum(seconds[phase] for phase in _TRAINING), 3),
        "completions": budget.completions,
    }


def _train_supervised(run: PlannedRun, settings: list[str], work: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    model = next((entry for entry in entries if (entry.arm, entry.seed) == (run.minutes_of, run.seed)), None)
    if model is None:
        raise DigRlError(
            f"{run.name} gets the minutes that {run.minutes_of} took with seed {run.seed}, which is not finished yet; "
            f"run that first: {next_command('ablations', ONLY=run.minutes_of, SEEDS=run.seed)}"
        )
    training = [f"{key}={json.dumps(value)}" for key, value in run.training.items()]
    time = ["--seconds", f"{model.training_seconds:.0f}"]
    _run("launch.sft_more", *settings, *time, *(["--training", *training] if training else []))
    folder = work / run.name
    answered = folder / "evaluation"
    if not (answered / "evaluation.json").exists():
        policy = ["--checkpoint", str(folder / "policy"), "--config", settings[1]]
        _run("launch.evaluate", *policy, "--out", str(answered))
    length = read_json_object(folder / SUPERVISED_FILE, "remove the run folder") or {}
    evaluation = read_json_object(answered / "evaluation.json", "remove it; it is measured again") or {}
    seconds = length["probe_seconds"] + length["training_seconds"] + sum(evaluation["seconds"].values())
    return {
        **_figures({name: figure["value"] for name, figure in evaluation["figures"].items()}),
        "before": model.before.model_dump(),
        "steps": length["steps"],
        "seconds": round(seconds, 3),
        "training_seconds": length["training_seconds"],
        "completions": 0,
    }


def _figures(values: dict[str, Any]) -> dict[str, float]:
    return {name: values[name] for name in Figures.model_fields}


def _run(module: str, *arguments: str) -> None:
    if code := run_part(module, *arguments):
        raise RunFailed(f"python -m {module} ended with code {code}; what it said stands above")
