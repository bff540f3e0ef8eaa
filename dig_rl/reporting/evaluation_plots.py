"""Pictures of evaluations and comparisons: what is said by colour is also said by place, shape or line style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dig_rl.evaluation.bootstrap import CONFIDENCE_LEVEL
from dig_rl.evaluation.comparison import Difference, Verdict
from dig_rl.evaluation.detection import IOU_THRESHOLDS
from dig_rl.evaluation.figures import ALL_FIGURES, Estimate
from dig_rl.evaluation.overview import Overview
from dig_rl.reporting.plots import INK, PALETTE, STYLE

_ROW_IN = 0.27
_SURPLUS_ROWS = 3
_NOT_SHARES = ("count_error", "count_bias")
_MARKERS: dict[Verdict, tuple[str, str]] = {
    "better": ("^", PALETTE[0]),
    "worse": ("v", PALETTE[1]),
    "more boxes": (">", PALETTE[3]),
    "fewer boxes": ("<", PALETTE[3]),
    "no difference shown": ("o", "#7b8794"),
}
_LINES = {"f1": ("-", INK), "precision": ("--", PALETTE[0]), "recall": (":", PALETTE[1])}


def draw_overview(found: Overview, path: Path, title: str) -> None:
    """Write a PNG: all figures, figures over IoU, predicted against true counts, and recall by slices."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(11.0, 8.2), layout="constrained")
        canvas.suptitle(title, x=0.01, ha="left", fontsize=11)
        upper, lower = canvas.subfigures(2, 1, height_ratios=(1.35, 1.0))
        wide, middle, right = upper.subplots(1, 3, width_ratios=(1.3, 1.0, 1.0))
        _draw_figures(wide, found.figures)
        _draw_by_iou(middle, found)
        _draw_counts(right, found.counts)
        count, kind, size = lower.subplots(1, 3)
        _draw_slices(count, found, "count", "f1", "F1 by changes")
        _draw_slices(kind, found, "kind", "recall", "recall by kind")
        _draw_slices(size, found, "size", "recall", "recall by size")
        canvas.savefig(path, dpi=130, metadata={"Software": None})


def draw_comparison(differences: Sequence[Difference], path: Path, title: str) -> None:
    """Write a PNG: the change of every figure with its interval, marked by verdict."""
    with matplotlib.rc_context(STYLE):
        # Numbers of boxes have a scale of their own.
        boxes = [row for row in differences if row.name in _NOT_SHARES]
        shares = [row for row in differences if row.name not in _NOT_SHARES]
        canvas = Canvas(figsize=(8.4, _ROW_IN * len(differences) + 2.0), layout="constrained")
        canvas.suptitle(title, x=0.01, ha="left", fontsize=11)
        upper, lower = canvas.subplots(2, 1, height_ratios=(len(shares), len(boxes) + 0.5))
        _draw_changes(upper, shares)
        _draw_changes(lower, boxes)
        lower.set_xlabel(f"B - A, with {CONFIDENCE_LEVEL:.0%} interval; above as shares, here in boxes")
        used = [verdict for verdict in _MARKERS if any(row.verdict == verdict for row in differences)]
        handles = [Line2D([], [], marker=_MARKERS[v][0], color=_MARKERS[v][1], linestyle="", label=v) for v in used]
        upper.legend(handles=handles, title="verdict on B", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        canvas.savefig(path, dpi=130, metadata={"Software": None})


def _draw_changes(axes: Axes, differences: Sequence[Difference]) -> None:
    for place, row in enumerate(differences):
        marker, color = _MARKERS[row.verdict]
        if row.low is not None and row.high is not None:
            axes.hlines(place, row.low, row.high, color=color, linewidth=2.0)
        axes.plot(row.change, place, marker=marker, color=color, markersize=7)
    _label_rows(axes, [ALL_FIGURES[row.name].label for row in differences])
    axes.axvline(0.0, color=INK, linewidth=0.8)


def _draw_figures(axes: Axes, figures: dict[str, Estimate]) -> None:
    shares = {name: found for name, found in figures.items() if name not in _NOT_SHARES}
    _draw_estimates(axes, [ALL_FIGURES[name].label for name in shares], list(shares.values()))
    axes.set_title(f"all pairs, {CONFIDENCE_LEVEL:.0%} intervals", loc="left", fontsize=10)


def _draw_slices(axes: Axes, found: Overview, by: str, figure: str, title: str) -> None:
    parts = found.slices[by]
    _draw_estimates(axes, [f"{part.name}  ({part.pairs} pairs)" for part in parts], [p.figures[figure] for p in parts])
    axes.set_title(title, loc="left", fontsize=10)


def _draw_estimates(axes: Axes, names: Sequence[str], estimates: Sequence[Estimate]) -> None:
    for place, found in enumerate(estimates):
        if found.low is not None and found.high is not None:
            axes.hlines(place, found.low, found.high, color=PALETTE[5], linewidth=4.0)
        axes.plot(found.value, place, marker="o", markersize=4, color=INK)
    _label_rows(axes, names)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#dfe5ea", linewidth=0.6)


def _draw_by_iou(axes: Axes, found: Overview) -> None:
    for name, (style, color) in _LINES.items():
        axes.plot(IOU_THRESHOLDS, found.by_iou[name], linestyle=style, color=color, linewidth=1.8, label=name)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("IoU from which a box is found")
    axes.grid(axis="y", color="#dfe5ea", linewidth=0.6)
    axes.legend(loc="upper right")
    axes.set_title("by IoU threshold", loc="left", fontsize=10)


def _draw_counts(axes: Axes, counts: dict[tuple[int, int], int]) -> None:
    """Readable answers by true and predicted number of boxes; the framed diagonal is right."""
    axes.set_title("number of boxes", loc="left", fontsize=10)
    axes.set_xlabel("true boxes")
    axes.set_ylabel("predicted boxes")
    if not counts:
        return
    true, predicted = (np.array(side) for side in zip(*counts, strict=True))
    # Long lists would squeeze the rest: they share the top row.
    most = int(true.max()) + _SURPLUS_ROWS
    grid = np.zeros((most + 1, int(true.max()) + 1))
    np.add.at(grid, (np.minimum(predicted, most), true), list(counts.values()))
    axes.imshow(grid, origin="lower", cmap="Blues", vmin=0, vmax=1.6 * grid.max(), aspect="auto")
    for (row, column), answers in np.ndenumerate(grid):
        if answers:
            axes.text(column, row, f"{answers:.0f}", ha="center", va="center", fontsize=8)
    for right in range(int(true.max()) + 1):
        axes.add_patch(Rectangle((right - 0.5, right - 0.5), 1, 1, fill=False, edgecolor=PALETTE[1], linewidth=1.2))
    axes.set_xticks(range(int(true.max()) + 1))
    rows = range(most + 1)
    axes.set_yticks(rows, [f"{row}+" if row == most else str(row) for row in rows])
