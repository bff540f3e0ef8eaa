"""Pictures of how balanced a data folder is, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dig_rl.inspection.balance import SPLITS, ChangeTable, best_constant_box, coverage_map
from dig_rl.reporting.plots import INK, PALETTE, STYLE, to_svg

_SIZE_IN = (4.2, 2.7)
_SPLIT_COLORS = dict(zip(SPLITS, (PALETTE[0], PALETTE[4], PALETTE[1]), strict=True))
_BINS = 20


def shares_by_split(counts: Mapping[str, Mapping[str, int]], unit: str, *, even: bool = False) -> str:
    """Bars of each split's shares.

    Args:
        counts: number by split and name.
        unit: label of the vertical axis.
        even: mark the share that each name would have if all were as frequent.
    """
    names = sorted({name for by_name in counts.values() for name in by_name})
    splits = [split for split in SPLITS if split in counts]
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(unit)
        width = 0.8 / len(splits)
        for index, split in enumerate(splits):
            values = np.array([counts[split].get(name, 0) for name in names], dtype=float)
            places = np.arange(len(names)) + (index - (len(splits) - 1) / 2) * width
            axes.bar(places, values / values.sum(), width * 0.92, color=_SPLIT_COLORS[split], label=split)
        if even:
            axes.axhline(1 / len(names), color=INK, linewidth=0.9, linestyle=":", label="even")
        axes.set_xticks(range(len(names)), names)
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=1.2, columnspacing=1.0)
        return to_svg(figure)


def positions(table: ChangeTable) -> str:
    """How often each place of the picture lies in a box, with the box that would earn most if always answered."""
    covered = coverage_map(table)
    box, f1 = best_constant_box(table)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(covered, extent=(0, 1, 1, 0), cmap="cividis", vmin=0, aspect="auto")
        outline = Rectangle(
            (box[0], box[1]), box[2] - box[0], box[3] - box[1], fill=False, color="white", ls="--", lw=1.6
        )
        axes.add_patch(outline)
        axes.set_title(f"dashed: the best single guess, F1 {f1:.2f}", fontsize=9, color="#616e7c", loc="left")
        axes.set_xticks([0, 0.5, 1], ["left", "", "right"])
        axes.set_yticks([0, 0.5, 1], ["top", "", "bottom"])
        figure.colorbar(shown, ax=axes, label="share of pairs").outline.set_visible(False)
        return to_svg(figure)


def histogram(values: Mapping[str, Sequence[float] | np.ndarray], unit: str, top: float | None = None) -> str:
    """Outlines of each split's distribution over [0, top]; the largest value is the top where none is given."""
    known = {split: np.asarray(values[split]) for split in SPLITS if len(values.get(split, ()))}
    most = top if top is not None else max(float(some.max()) for some in known.values())
    edges = np.linspace(0.0, most, _BINS + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure("share of the split")
        for split, some in known.items():
            counts, _ = np.histogram(some, edges)
            shares = counts / len(some)
            axes.stairs(shares, edges, fill=True, color=_SPLIT_COLORS[split], alpha=0.18)
            axes.stairs(shares, edges, color=_SPLIT_COLORS[split], linewidth=1.6, label=split)
        axes.set_xlabel(unit)
        axes.set_xlim(0.0, most)
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=1.2, columnspacing=1.0)
        return to_svg(figure)


def scene_sizes(by_changes: Mapping[int, Sequence[int]]) -> str:
    """How many objects the scenes of pairs with as many changes hold.

    Args:
        by_changes: number of objects of each reference scene, by the number of changes of its pair.
    """
    numbers = range(min(map(min, by_changes.values())), max(map(max, by_changes.values())) + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure("share of the pairs")
        for color, (changes, objects) in zip(cycle(PALETTE), sorted(by_changes.items()), strict=False):
            shares = [objects.count(number) / len(objects) for number in numbers]
            axes.plot(numbers, shares, color=color, marker="o", markersize=3.5, linewidth=1.4, label=str(changes))
        axes.set_ylim(0.0, None)
        axes.set_xticks(list(numbers))
        axes.set_xlabel("objects in the reference picture")
        axes.legend(ncols=6, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=1.2, columnspacing=1.0)
        return to_svg(figure)


def _new_figure(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(unit)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dfe5ea", linewidth=0.6)
    return figure, axes
