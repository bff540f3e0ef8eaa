"""`report.html`: one self-contained page that tells what a run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from dig_rl.alarms import find_alarms
from dig_rl.config import AlarmsConfig, Config
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import DigRlError
from dig_rl.metrics import read_metrics
from dig_rl.reporting import plots
from dig_rl.reporting.pictures import MatchRule, pictures_of_pairs
from dig_rl.run_folder import CONFIG_FILE, ENVIRONMENT_FILE
from dig_rl.summary import PHASES, read_summary, summarise_stages

REPORT_FILE = "report.html"

_HELDOUT_LABELS = {
    "f1": "F1",
    "mean_iou": "mean IoU",
    "precision": "precision",
    "recall": "recall",
    "count_accuracy": "right number of boxes",
    "parse_rate": "readable answers",
}

_STATUS_NOTICES = {
    "failed": "The run ended with an error: below is what it had recorded by then.",
    "interrupted": "The run was interrupted: the same command with the same RUN= continues it.",
    "running": "The run was still going when this page was made, or its process was killed.",
}

_CURVES = (
    ("KL to the reference", ("learner/kl",), "nats"),
    ("Rollout-learner mismatch KL", ("rollout/mismatch_kl",), "nats"),
    ("Gradient norm", ("learner/grad_norm",), "norm"),
    ("Completion length", ("rollout/completion_tokens",), "tokens"),
    ("Entropy", ("learner/entropy",), "nats"),
    ("Left out", ("groups/dropped_frac", "rollout/truncated_frac", "reward/failed_frac"), "fraction"),
)

_NOT_REWARDS = ("reward/total", "reward/group_std", "reward/failed_frac")
"""Names that are not drawn among the parts of the reward."""


def write_report(run_dir: Path) -> Path:
    """Make `report.html` from the files of a run folder, whatever state the run is in.

    What is missing (no steps yet, no evaluation, moved images) is said in the page.

    Args:
        run_dir: a run folder.

    Returns:
        Path of the page; it needs no other file and no network.

    Raises:
        DigRlError: there is no such folder, one of its JSON files is damaged, or it cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DigRlError(f"no run folder at {run_dir}; RUN= must name a folder that `make train` or `make demo` wrote")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "signed": _signed, "duration": _duration}
    page = environment.get_template("report.html.jinja").render(_contents(run_dir))
    try:
        write_durably(run_dir / REPORT_FILE, page)
    except OSError as error:
        raise DigRlError(f"cannot write {run_dir / REPORT_FILE}: {error}; make it writable or make room") from error
    return run_dir / REPORT_FILE


def before_after_table(summary: dict[str, Any]) -> str:
    """Plain-text table of the held-out figures, for the end of a run.

    Args:
        summary: contents of `summary.json`.

    Returns:
        A few lines without a final newline; a figure that was not measured is `-`.
    """
    pairs, rows = heldout_rows(summary)
    lines = [f"{f'held-out, {pairs} pairs':<24}{'before':>8}{'after':>8}{'change':>8}"]
    for label, before, after, change in rows:
        lines.append(f"{label:<24}{_number(before):>8}{_number(after):>8}{_signed(change):>8}")
    return "\n".join(lines)


def heldout_rows(summary: dict[str, Any]) -> tuple[str, list[tuple[str, float | None, float | None, float | None]]]:
    """Number of pairs (`64`, or `64 / 32` where the two moments differ) and (label, before, after, change) a figure."""
    before, after = summary["heldout"].get("before", {}), summary["heldout"].get("after", {})
    counts = list(dict.fromkeys(str(moment["pairs"]) for moment in (before, after) if "pairs" in moment))
    rows = []
    for key, label in _HELDOUT_LABELS.items():
        old, new = before.get(key), after.get(key)
        rows.append((label, old, new, None if old is None or new is None else new - old))
    return " / ".join(counts) or "no", rows


def _contents(run_dir: Path) -> dict[str, Any]:
    summary = read_summary(run_dir)
    config = read_json_object(run_dir / CONFIG_FILE, "restore it to get a report")
    environment = read_json_object(run_dir / ENVIRONMENT_FILE, "remove it to get a report without it") or {}
    lines = read_metrics(run_dir)
    pictures, notices = pictures_of_pairs(run_dir / "heldout", _match_rule(config or {}))
    if not any(line.get("stage") is not None for line in lines):
        notices.insert(0, "No training step has been recorded: there are no curves yet.")
    if summary is None:
        notices.insert(0, "There is no summary.json yet: the run has not reached its first evaluation or checkpoint.")
    elif "after" not in summary["heldout"]:
        notices.insert(0, "The held-out pairs have not been answered after training.")
    if summary is not None and summary["status"] in _STATUS_NOTICES:
        notices.insert(0, _STATUS_NOTICES[summary["status"]])
    pairs, rows = heldout_rows(summary) if summary and summary["heldout"] else ("no", [])
    return {
        "run": run_dir.absolute().name,
        "summary": summary,
        "config": config,
        "config_text": json.dumps(config, indent=2),
        "starts": environment.get("starts", []),
        "stages": summarise_stages(lines),
        "num_steps": sum(line.get("stage") is not None for line in lines),
        "heldout_pairs": pairs,
        "heldout_rows": rows,
        "alarms": find_alarms(lines, AlarmsConfig(**(config or {}).get("alarms", {}))),
        "plots": _plots(lines),
        "pictures": pictures,
        "notices": notices,
    }


def _match_rule(config: dict[str, Any]) -> MatchRule:
    """The run's own threshold; the default costs, which held-out figures are always computed with."""
    defaults = Config()
    return MatchRule(
        match_iou=config.get("evaluation", {}).get("match_iou", defaults.evaluation.match_iou),
        cost_l1=defaults.reward.cost_l1,
        cost_giou=defaults.reward.cost_giou,
    )


def _plots(lines: plots.Lines) -> list[tuple[str, str, bool]]:
    """(title, data URI, whether it takes the whole width) of every plot that has something to show."""
    terms = sorted({name for line in lines for name in line if name.startswith("reward/")})
    shown = ["reward/total", *(name for name in terms if name not in _NOT_REWARDS)]
    drawn = [("Reward and its parts", plots.curves(lines, shown, unit="reward", size_in=plots.WIDE_IN), True)]
    drawn += [(title, plots.curves(lines, names, unit=unit), False) for title, names, unit in _CURVES]
    drawn.append(("Time by phase", plots.phase_areas(lines, [phase for phase in PHASES if phase != "evaluate"]), True))
    return [(title, plots.svg_data_uri(svg), wide) for title, svg, wide in drawn if svg is not None]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
