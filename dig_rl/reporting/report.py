"""`report.html`: one self-contained page that tells what a run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from dig_rl.alarms import find_alarms
from dig_rl.config import AlarmsConfig, Config
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import DataError, DigRlError
from dig_rl.evaluation.bootstrap import CONFIDENCE_LEVEL
from dig_rl.metrics import read_metrics
from dig_rl.reporting import plots
from dig_rl.reporting.heldout import HELDOUT_LABELS, intervals, paired_differences, read_judged_pairs
from dig_rl.reporting.pictures import MatchRule, galleries_of_pairs
from dig_rl.run_folder import CONFIG_FILE, ENVIRONMENT_FILE
from dig_rl.summary import PHASES, read_summary, summarise_stages

REPORT_FILE = "report.html"

_STATUS_NOTICES = {
    "failed": "The run ended with an error: below is what it had recorded by then.",
    "interrupted": "The run was interrupted: the same command with the same RUN= continues it.",
    "running": "The run was still going when this page was made, or its process was killed.",
}

_NO_HELDOUT = "There are no figures from before and after training: the run had no held-out pairs (data.heldout_split)."

_CURVES = (
    ("KL to the reference", ("learner/kl",), "nats"),
    ("Rollout-learner mismatch KL", ("rollout/mismatch_kl",), "nats"),
    ("Gradient norm", ("learner/grad_norm",), "norm"),
    ("Completion length", ("rollout/completion_tokens",), "tokens"),
    ("Entropy", ("learner/entropy",), "nats"),
    ("Left out", ("groups/dropped_frac", "rollout/truncated_frac", "reward/failed_frac"), "fraction"),
)

_EVALUATED = ("validation/f1", "validation/mean_iou", "heldout/f1", "heldout/mean_iou")

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
    return write_page(run_dir / REPORT_FILE, "report.html.jinja", _contents(run_dir))


def write_page(path: Path, template: str, contents: dict[str, Any]) -> Path:
    """Fill a template of this folder and write the page; returns its path.

    Raises:
        DigRlError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "signed": _signed, "duration": _duration}
    page = environment.get_template(template).render(contents)
    try:
        write_durably(path, page)
    except OSError as error:
        raise DigRlError(f"cannot write {path}: {error}; make it writable or make room") from error
    return path


def before_after_table(summary: dict[str, Any]) -> str:
    """Plain-text table of the held-out figures, for the end of a run.

    Args:
        summary: contents of `summary.json`.

    Returns:
        A few lines without a final newline; a figure that was not measured is `-`.
    """
    if not summary["heldout"] and summary.get("status") == "finished":
        return _NO_HELDOUT
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
    for key, label in HELDOUT_LABELS.items():
        old, new = before.get(key), after.get(key)
        rows.append((label, old, new, None if old is None or new is None else new - old))
    return " / ".join(counts) or "no", rows


def _contents(run_dir: Path) -> dict[str, Any]:
    summary = read_summary(run_dir)
    config = read_json_object(run_dir / CONFIG_FILE, "restore it to get a report")
    environment = read_json_object(run_dir / ENVIRONMENT_FILE, "remove it to get a report without it") or {}
    lines = read_metrics(run_dir)
    rule = match_rule(config or {})
    galleries, notices = galleries_of_pairs(run_dir / "heldout", rule)
    bounds, problem = _heldout_bounds(run_dir / "heldout", rule.match_iou)
    notices += [problem] if problem else []
    if not any(line.get("stage") is not None for line in lines):
        notices.insert(0, "No training step has been recorded: there are no curves yet.")
    if summary is None:
        notices.insert(0, "There is no summary.json yet: the run has not reached its first evaluation or checkpoint.")
    elif "after" not in summary["heldout"]:
        ended = summary["status"] == "finished"
        notices.insert(0, _NO_HELDOUT if ended else "The held-out pairs have not been answered after training.")
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
        "heldout_rows": [(*row, bounds.get(name)) for name, row in zip(HELDOUT_LABELS, rows, strict=False)],
        "confidence": f"{CONFIDENCE_LEVEL:.0%}",
        "alarms": find_alarms(lines, AlarmsConfig(**(config or {}).get("alarms", {}))),
        "plots": _plots(lines),
        "galleries": galleries,
        "notices": notices,
    }


def _heldout_bounds(heldout: Path, match_iou: float) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Intervals of each figure `before` and `after` and its `change`, as far as there are answers; what is wrong."""
    moments = [name for name in ("before", "after") if (heldout / f"predictions_{name}.jsonl").exists()]
    try:
        pairs = {moment: read_judged_pairs(heldout, moment) for moment in moments}
    except DataError as error:
        return {}, f"The held-out table has no intervals: {error}."
    found = {moment: intervals(pairs[moment], match_iou) for moment in moments}
    changes = paired_differences(pairs["before"], pairs["after"], match_iou) if len(pairs) == 2 else {}
    unlike = "The pairs answered before and after training are not the same, so no change in the table is the policy's."
    return {
        name: {**{moment: found[moment][name] for moment in moments}, "change": changes.get(name)}
        for name in HELDOUT_LABELS
    }, unlike if len(pairs) == 2 and not changes else None


def match_rule(config: dict[str, Any]) -> MatchRule:
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
    drawn.append(("Greedy answers", plots.curves(lines, _EVALUATED, unit="0-1", size_in=plots.WIDE_IN), True))
    drawn.append(("F1 by number of changes", _by_count(lines), False))
    drawn += [(title, plots.curves(lines, names, unit=unit), False) for title, names, unit in _CURVES]
    drawn.append(("Time by phase", plots.phase_areas(lines, [phase for phase in PHASES if phase != "evaluate"]), True))
    return [(title, plots.svg_data_uri(svg), wide) for title, svg, wide in drawn if svg is not None]


def _by_count(lines: plots.Lines) -> str | None:
    """F1 of validation pairs, or of held-out ones where there was no validation, by their number of changes."""
    for split in ("validation", "heldout"):
        names = sorted({name for line in lines for name in line if name.startswith(f"{split}_by_count/f1_")})
        if names:
            return plots.curves(lines, names, unit="F1")
    return None


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
