"""Evaluations and comparisons as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dig_rl.evaluation.bootstrap import CONFIDENCE_LEVEL, RESAMPLES
from dig_rl.evaluation.comparison import Difference
from dig_rl.evaluation.figures import ALL_FIGURES, Estimate
from dig_rl.evaluation.overview import Overview
from dig_rl.evaluation.slices import BOX_FIGURES, Slice

_COUNT_COLUMNS = ("f1", "mean_iou", "precision", "recall", "count_accuracy", "count_bias")
_INTERVALS = (
    f"In brackets: {CONFIDENCE_LEVEL:.0%} interval, bootstrap over pairs, {RESAMPLES} resamples. "
    "docs/evaluation.md defines every figure."
)


def overview_markdown(title: str, facts: Mapping[str, str], found: Overview) -> str:
    """A page: what was evaluated, all figures, and the slices.

    Args:
        title: heading.
        facts: what was evaluated and how, one line each.
        found: the figures.
    """
    rows = [(ALL_FIGURES[name].label, _with_interval(value)) for name, value in found.figures.items()]
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        f"## All {found.num_pairs} pairs",
        _table(("figure", "value"), rows),
        "## By number of changes",
        _slice_table(found.slices["count"], "changes", _COUNT_COLUMNS),
        "## By what was changed",
        "Of the true boxes only: a wrong box has no kind or size, so precision has none either.",
    ]
    for name in ("kind", "size", "visibility"):
        parts.append(_slice_table(found.slices[name], name, BOX_FIGURES))
    parts += ["`size` is the true box's share of the image, `visibility` the visible part of the changed object."]
    return "\n\n".join([*parts, _INTERVALS]) + "\n"


def comparison_markdown(title: str, facts: Mapping[str, str], differences: Sequence[Difference]) -> str:
    """A page: what was compared, each figure of both, the change with its interval, and the verdict."""
    rows = [
        (
            ALL_FIGURES[row.name].label,
            f"{row.a:.3f}",
            f"{row.b:.3f}",
            f"{row.change:+.3f}" + ("" if row.low is None else f" [{row.low:+.3f}, {row.high:+.3f}]"),
            f"{row.num_differing}",
            row.verdict,
        )
        for row in differences
    ]
    return (
        "\n\n".join(
            [
                f"# {title}",
                "\n".join(f"- {name}: {value}" for name, value in facts.items()),
                _table(("figure", "A", "B", "B - A", "pairs that differ", "verdict on B"), rows),
                verdict_sentence(differences),
                _INTERVALS,
            ]
        )
        + "\n"
    )


def verdict_sentence(differences: Sequence[Difference]) -> str:
    """What the comparison says about F1, the figure to judge by, in one sentence."""
    row = next(difference for difference in differences if difference.name == "f1")
    if row.low is None:
        return "One pair alone shows no difference, whatever its figures."
    interval = f"({row.change:+.3f}, {CONFIDENCE_LEVEL:.0%} interval {row.low:+.3f} to {row.high:+.3f})"
    if row.verdict == "no difference shown":
        return f"By F1, no difference between A and B is shown {interval}; that is not to say that there is none."
    return f"By F1, B is {row.verdict} than A {interval}."


def overview_lines(found: Overview) -> str:
    """The figures as aligned text for a terminal."""
    return "\n".join(f"{ALL_FIGURES[name].label:<34}{_with_interval(v)}" for name, v in found.figures.items())


def comparison_lines(differences: Sequence[Difference]) -> str:
    """The differences as aligned text for a terminal."""
    lines = [f"{'':<34}{'A':>8}{'B':>8}{'B - A':>9}   verdict on B"]
    for row in differences:
        values = f"{row.a:>8.3f}{row.b:>8.3f}{row.change:>+9.3f}"
        lines.append(f"{ALL_FIGURES[row.name].label:<34}{values}   {row.verdict}")
    return "\n".join(lines)


def _slice_table(parts: Sequence[Slice], name: str, columns: Sequence[str]) -> str:
    header = (name, "pairs", "boxes", *(ALL_FIGURES[column].label for column in columns))
    rows = [
        (part.name, str(part.pairs), str(part.boxes), *(_with_interval(part.figures[column]) for column in columns))
        for part in parts
    ]
    return _table(header, rows) if rows else "There are no true boxes."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_interval(found: Estimate) -> str:
    return f"{found.value:.3f}" + ("" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]")
