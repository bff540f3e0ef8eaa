"""Pictures of `docs/ablations.md`: what is said by colour is also said by place or shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dig_rl.ablations.ledger import Entry
from dig_rl.ablations.recipe import Axis
from dig_rl.ablations.results import Claim, SeedMean, compare, of_arm, seed_mean
from dig_rl.reporting.ablation_arms import ARMS, CLAIMS, SUPERVISED
from dig_rl.reporting.ablation_report import CONTROL_LIMIT, finished_arms
from dig_rl.reporting.plots import INK, PALETTE, STYLE

_MARKERS = ("o", "s", "^", "D", "v", "P")
"""Of seeds, in turn."""
_VERDICTS = {"reproduced": PALETTE[0], "not shown": "#7b8794", "reversed": PALETTE[1]}
_ROW_IN = 0.5


def draw_axis(entries: Sequence[Entry], axis: Axis, path: Path) -> None:
    """Write a PNG: F1 of every arm (of controls: its gain) by seed with interval, beside the differences claimed."""
    arms = finished_arms(entries, axis)
    claims = CLAIMS[axis] or SUPERVISED
    with matplotlib.rc_context(STYLE):
        rows = max(len(ARMS[axis]), len(claims))
        figure = Figure(figsize=(9.6, _ROW_IN * rows + 1.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        shown = "gain" if axis == "control" else "f1"
        markers = _markers(entries)
        _draw_rows(left, arms, [seed_mean(of_arm(entries, arm), shown) for arm in arms], markers, [INK] * len(arms))
        if axis == "control":
            left.axvline(0.0, color=INK, linewidth=0.8)
            left.axvline(CONTROL_LIMIT, color=PALETTE[1], linewidth=1.0, linestyle="--", label=f"limit {CONTROL_LIMIT}")
            left.set_title("gain in held-out F1", loc="left", fontsize=10)
        else:
            before = of_arm(entries, arms[0])[0].before.f1
            left.axvline(before, color=PALETTE[1], linewidth=1.0, linestyle="--", label="before training")
            left.set_title("held-out F1", loc="left", fontsize=10)
        _draw_claims(right, entries, claims, markers, is_claimed=bool(CLAIMS[axis]))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _markers(entries: Sequence[Entry]) -> dict[int, str]:
    seeds = sorted({entry.seed for entry in entries})
    return {seed: _MARKERS[place % len(_MARKERS)] for place, seed in enumerate(seeds)}


def _draw_claims(
    axes: Axes, entries: Sequence[Entry], claims: Sequence[Claim], markers: dict[int, str], *, is_claimed: bool
) -> None:
    found = [comparison for claim in claims if (comparison := compare(entries, claim)).difference is not None]
    names = [f"{item.claim.higher}\n- {item.claim.lower}" for item in found]
    differences = [item.difference for item in found if item.difference is not None]
    _draw_rows(axes, names, differences, markers, [_VERDICTS[item.verdict] for item in found])
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_title("difference in F1 by seed", loc="left", fontsize=10)
    if is_claimed:
        for place, item in enumerate(found):
            axes.text(1.02, place, item.verdict, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _draw_rows(
    axes: Axes, names: Sequence[str], rows: Sequence[SeedMean], markers: dict[int, str], colors: Sequence[str]
) -> None:
    """One row a name: its seeds as hollow marks, below them the mean with its interval."""
    labelled: set[int] = set()
    for place, (row, color) in enumerate(zip(rows, colors, strict=True)):
        if row.interval is not None:
            axes.hlines(place + 0.14, *row.interval, color=color, linewidth=2.5)
        axes.plot(row.mean, place + 0.14, marker="|", markersize=13, markeredgewidth=2.5, color=color)
        for seed, value in zip(row.seeds, row.values, strict=True):
            label = None if seed in labelled else f"seed {seed}"
            labelled.add(seed)
            style = {"linestyle": "", "markerfacecolor": "none", "markersize": 6}
            axes.plot(value, place - 0.14, marker=markers[seed], color=PALETTE[5], label=label, **style)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#dfe5ea", linewidth=0.6)
