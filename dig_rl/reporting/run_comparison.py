"""Several runs side by side in one self-contained page: settings, held-out figures, curves, alarms, time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dig_rl.alarms import Alarm, find_alarms
from dig_rl.config import AlarmsConfig
from dig_rl.durable import read_json_object
from dig_rl.errors import ConfigError, DataError
from dig_rl.evaluation.answers import JudgedPair
from dig_rl.evaluation.bootstrap import CONFIDENCE_LEVEL
from dig_rl.metrics import read_metrics
from dig_rl.reporting import plots
from dig_rl.reporting.heldout import HELDOUT_LABELS, intervals, paired_differences, read_judged_pairs
from dig_rl.reporting.report import heldout_rows, match_rule, write_page
from dig_rl.run_folder import CONFIG_FILE, ENVIRONMENT_FILE
from dig_rl.summary import PHASES, read_summary

_CURVES = (
    ("Reward", "reward/total", "reward"),
    ("F1 of sampled answers", "answers/f1", "F1"),
    ("Validation F1", "validation/f1", "F1"),
    ("Validation mean IoU", "validation/mean_iou", "mean IoU"),
    ("KL to the reference", "learner/kl", "nats"),
    ("Entropy", "learner/entropy", "nats"),
    ("Rollout-learner mismatch KL", "rollout/mismatch_kl", "nats"),
    ("Groups left out", "groups/dropped_frac", "fraction"),
    ("Boxes an answer", "answers/boxes", "boxes"),
    ("Completion length", "rollout/completion_tokens", "tokens"),
    ("Time of a step", "timing/step_s", "s"),
)


@dataclass(frozen=True)
class _Run:
    name: str
    config: dict[str, Any]
    versions: dict[str, Any]
    """Source revision, Python and packages of the last start."""
    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    alarms: list[Alarm]
    match_iou: float
    pairs: list[JudgedPair]
    """Held-out pairs after training; empty where they cannot be read."""
    problem: str | None


def write_run_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Make the page.

    Args:
        run_dirs: at least two run folders of different names; the first is what the others are compared with.
        out: HTML file to write.

    Returns:
        `out`; the page needs no other file and no network.

    Raises:
        ConfigError: there are fewer than two, two have the same name, or one is not a run folder.
        DigRlError: a file of a run is damaged, or the page cannot be written.
    """
    names = [run_dir.name for run_dir in run_dirs]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f'RUNS takes at least two runs, each once, as RUNS="first second"; found "{" ".join(names)}"')
    runs = [_read(Path(run_dir)) for run_dir in run_dirs]
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_page(out, "run_comparison.html.jinja", _contents(runs))


def differing_values(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Dotted keys that the nested tables do not agree on, and the value in each as JSON, `-` where it has none."""
    flat = [dict(_leaves(table)) for table in tables]
    keys = sorted({key for table in flat for key in table})
    rows = [(key, [table.get(key, "-") for table in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _read(run_dir: Path) -> _Run:
    config = read_json_object(run_dir / CONFIG_FILE, "restore it to compare the run")
    if config is None:
        runs_dir = run_dir.parent
        known = sorted(path.parent.name for path in runs_dir.glob(f"*/{CONFIG_FILE}"))
        raise ConfigError(f"no run at {run_dir}; {runs_dir} has {', '.join(known) or 'no runs'}")
    environment = read_json_object(run_dir / ENVIRONMENT_FILE, "remove it to compare without it") or {}
    last = (environment.get("starts") or [{}])[-1]
    lines = read_metrics(run_dir)
    pairs: list[JudgedPair] = []
    problem = None
    try:
        pairs = read_judged_pairs(run_dir / "heldout", "after")
    except DataError as error:
        problem = f"{run_dir.name} has no held-out answers after training, so no intervals: {error}."
    return _Run(
        run_dir.name,
        config,
        {key: value for key, value in last.items() if key != "started"},
        read_summary(run_dir) or {},
        lines,
        find_alarms(lines, AlarmsConfig(**config.get("alarms", {}))),
        match_rule(config).match_iou,
        pairs,
        problem,
    )


def _contents(runs: Sequence[_Run]) -> dict[str, Any]:
    by_name = {run.name: run.lines for run in runs}
    drawn = [(title, plots.overlay(by_name, name, unit=unit)) for title, name, unit in _CURVES]
    return {
        "names": [run.name for run in runs],
        "facts": _facts(runs),
        "heldout": _heldout(runs),
        "confidence": f"{CONFIDENCE_LEVEL:.0%}",
        "settings": differing_values([run.config for run in runs]),
        "versions": differing_values([run.versions for run in runs]),
        "plots": [(title, plots.svg_data_uri(svg)) for title, svg in drawn if svg is not None],
        "alarms": [(run.name, alarm) for run in runs for alarm in run.alarms],
        "phases": [
            (phase, [run.summary.get("seconds", {}).get(phase) for run in runs])
            for phase in (*PHASES, "other", "total")
        ],
        "notices": [run.problem for run in runs if run.problem],
    }


def _facts(runs: Sequence[_Run]) -> list[tuple[str, list[str]]]:
    return [
        ("status", [run.summary.get("status", "not begun") for run in runs]),
        ("steps", [str(sum(line.get("stage") is not None for line in run.lines)) for run in runs]),
        ("policy", [run.config.get("policy", {}).get("path", "-") for run in runs]),
        ("seed", [str(run.config.get("seed", "-")) for run in runs]),
        ("held-out pairs", [heldout_rows(run.summary)[0] if "heldout" in run.summary else "-" for run in runs]),
        ("device", [run.summary.get("device", "-") for run in runs]),
    ]


def _heldout(runs: Sequence[_Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each figure a cell a run: before, after, its interval, and the paired difference to the first run."""
    estimates = [intervals(run.pairs, run.match_iou) if run.pairs else {} for run in runs]
    first = runs[0]
    differences: list[dict[str, Any]] = [{}]
    for run in runs[1:]:
        comparable = first.pairs and run.pairs and run.match_iou == first.match_iou
        differences.append(dict(paired_differences(first.pairs, run.pairs, run.match_iou)) if comparable else {})
    rows = []
    for name, label in HELDOUT_LABELS.items():
        cells = []
        for run, found, difference in zip(runs, estimates, differences, strict=True):
            moments = run.summary.get("heldout", {})
            before, after = (moments.get(moment, {}).get(name) for moment in ("before", "after"))
            cells.append({"before": before, "after": after, "bounds": found.get(name), "versus": difference.get(name)})
        rows.append((label, cells))
    return rows


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value)
