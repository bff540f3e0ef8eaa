"""Curves of a run as SVG text."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2933"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours: distinct for colour-blind readers."""

STYLE: dict[str, Any] = {
    "axes.edgecolor": "#b8c2cc",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "legend.frameon": False,
    "svg.hashsalt": "dig-rl",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_DASHES = ("-", "--", ":", "-.")
_STAGE_TINTS = ("#eef3f8", "#fbf4e9")
WIDE_IN = (10.6, 3.0)
"""(width, height) of a plot over the whole page."""
_NARROW_IN = (5.2, 2.5)
_MAX_POINTS = 600
_SMOOTH_FROM = 40
"""From this many steps on, a curve is drawn as a faint line with its running mean on top."""

Lines = Sequence[dict[str, Any]]


def curves(lines: Lines, names: Sequence[str], *, unit: str, size_in: tuple[float, float] = _NARROW_IN) -> str | None:
    """Draw metrics of training steps or evaluations over the steps, with the stages shaded.

    Args:
        lines: entries of `metrics.jsonl`.
        names: metrics, the first one emphasised when there are several.
        unit: label of the vertical axis.
        size_in: (width, height) in inches.

    Returns:
        SVG text; None if none of the metrics has a finite value, or no step was trained.
    """
    trained = _training_steps(lines)
    series = {name: _points(lines, name) for name in names}
    series = {name: points for name, points in series.items() if len(points[0])}
    if not series or not trained:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(trained, size_in, unit)
        several = len(series) > 1
        for index, (name, (steps, values)) in enumerate(series.items()):
            color = INK if several and index == 0 else PALETTE[(index - several) % len(PALETTE)]
            starts = [first for _, first, _ in _stage_spans(trained)]
            _draw_curve(axes, steps, values, starts, label=name, color=color, width=2.2 if index == 0 else 1.4)
        axes.set_xlim(left=min(trained[0]["step"], *(steps[0] for steps, _ in series.values())) - 0.5)
        if several:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return to_svg(figure)


def overlay(
    runs: Mapping[str, Lines], name: str, *, unit: str, size_in: tuple[float, float] = _NARROW_IN
) -> str | None:
    """Draw one metric of several runs, told apart by colour and by dashes; stages are shaded where all agree on them.

    Args:
        runs: entries of `metrics.jsonl` by the name of the run; a run has the same colour in every plot.
        name: the metric.
        unit: label of the vertical axis.
        size_in: (width, height) in inches.

    Returns:
        SVG text; None if no run has a finite value of the metric.
    """
    series = {run: _points(lines, name) for run, lines in runs.items()}
    if not any(len(steps) for steps, _ in series.values()):
        return None
    trained = max((_training_steps(lines) for lines in runs.values()), key=len)
    spans = {tuple(_stage_spans(_training_steps(lines))) for lines in runs.values()}
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(trained if len(spans) == 1 else [], size_in, unit)
        for index, (run, (steps, values)) in enumerate(series.items()):
            if not len(steps):
                continue
            color, dashes = PALETTE[index % len(PALETTE)], _DASHES[index % len(_DASHES)]
            starts = [first for _, first, _ in _stage_spans(_training_steps(runs[run]))]
            _draw_curve(axes, steps, values, starts, label=run, color=color, width=1.6, dashes=dashes)
        known = np.concatenate([steps for steps, _ in series.values()])
        axes.set_xlim(known.min() - 0.5, known.max() + 0.5)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return to_svg(figure)


def phase_areas(lines: Lines, phases: Sequence[str]) -> str | None:
    """Draw the busy seconds of each step as stacked areas, `timing/<phase>_s` from the bottom up.

    Returns:
        SVG text; None if no step has timings.
    """
    trained = [line for line in _training_steps(lines) if any(line.get(f"timing/{p}_s") is not None for p in phases)]
    if not trained:
        return None
    steps = np.array([line["step"] for line in trained], dtype=float)
    seconds = np.array([[line.get(f"timing/{phase}_s") or 0.0 for line in trained] for phase in phases])
    steps, *layers = _thinned(steps, *seconds)
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(trained, WIDE_IN, "seconds a step")
        edges = np.concatenate([steps - 0.5, steps[-1:] + 0.5])
        bottom = np.zeros(len(steps))
        for phase, layer, color in zip(phases, layers, PALETTE, strict=False):
            axes.stairs(bottom + layer, edges, baseline=bottom, fill=True, color=color, label=phase)
            bottom = bottom + layer
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
        return to_svg(figure)


def _training_steps(lines: Lines) -> Lines:
    return [line for line in lines if line.get("stage") is not None]


def _new_figure(trained: Lines, size_in: tuple[float, float], unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dfe5ea", linewidth=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if trained:
        axes.set_xlim(trained[0]["step"] - 0.5, trained[-1]["step"] + 0.5)
    for index, (name, first, last) in enumerate(_stage_spans(trained)):
        axes.axvspan(first - 0.5, last + 0.5, color=_STAGE_TINTS[index % 2], linewidth=0, zorder=0)
        middle = (first + last) / 2
        axes.text(middle, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", color="#616e7c")
    return figure, axes


def _stage_spans(trained: Lines) -> Iterator[tuple[str, int, int]]:
    """(name, first step, last step) of each unbroken stretch of one stage."""
    start = 0
    for index in range(1, len(trained) + 1):
        if index == len(trained) or trained[index]["stage"] != trained[start]["stage"]:
            yield trained[start]["stage"], trained[start]["step"], trained[index - 1]["step"]
            start = index


def _points(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    known = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = np.array(known, dtype=float).reshape(-1, 2).T
    return steps, values


def _draw_curve(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    stage_starts: list[int],
    *,
    label: str,
    color: str,
    width: float,
    dashes: str = "-",
) -> None:
    style = {"color": color, "linewidth": width, "linestyle": dashes}
    if len(values) < _SMOOTH_FROM:
        axes.plot(steps, values, **style, marker="o", markersize=2.5, label=label)
        return
    axes.plot(*_thinned(steps, values), color=color, linewidth=0.7, alpha=0.3)
    # A jump where a stage begins must not be smoothed into a slope.
    breaks = np.searchsorted(steps, stage_starts[1:])
    reach = max(1, len(values) // 20)
    stretches = zip(np.split(steps, breaks), np.split(values, breaks), strict=True)
    for index, (some_steps, some_values) in enumerate(stretches):
        if not len(some_values):
            continue
        means = _running_mean(some_values, reach)
        axes.plot(*_thinned(some_steps, means), **style, label=label if index == 0 else None)


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """`[N]` mean of each value and up to `reach` neighbours on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _thinned(*rows: np.ndarray) -> list[np.ndarray]:
    """Rows of equal length, averaged in blocks so that at most `_MAX_POINTS` columns remain."""
    block = -(-len(rows[0]) // _MAX_POINTS)
    starts = np.arange(0, len(rows[0]), block)
    counts = np.diff(np.append(starts, len(rows[0])))
    return [np.add.reduceat(row, starts) / counts for row in rows]


def to_svg(figure: Figure) -> str:
    """The figure as SVG text without a date: the same figure gives the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def svg_data_uri(svg: str) -> str:
    """SVG text as the address of an image that a page carries in itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
