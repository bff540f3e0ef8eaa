"""One answered pair as a raster picture, for viewers that cannot draw boxes themselves (TensorBoard)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dig_rl.image_files import read_stored
from dig_rl.reporting.pictures import DrawnBox, Verdict
from dig_rl.reporting.plots import STYLE

_DPI = 100
_IMAGE_WIDTH_IN = 3.6
_GAP_IN = 0.1
_TITLE_IN = 0.3
_LEGEND_IN = 0.35
_MAX_ASPECT = 2.0
"""Taller images get narrower, so that no panel fills the screen."""


class _Line(NamedTuple):
    label: str
    color: str
    dashes: Any
    width: float


_LINES: dict[Verdict, _Line] = {
    "found": _Line("true, found", "#0072b2", "solid", 1.8),
    "missed": _Line("true, missed", "#e69f00", "solid", 3.4),
    "matched": _Line("answer, right", "#009e73", (0, (4, 2.5)), 1.8),
    "spurious": _Line("answer, wrong", "#d55e00", (0, (1.2, 1.2)), 2.0),
}
"""As in `report.html.jinja`: told apart by colour, and by dashes and width without it."""


def draw_panel(image_a: Path, image_b: Path, drawn: Sequence[DrawnBox], title: str) -> bytes:
    """Draw both images of a pair side by side, the same boxes on each.

    Args:
        image_a: file of the first image.
        image_b: file of the second image, of the same size.
        drawn: boxes of `dig_rl.reporting.pictures.judge_boxes`, pixels of the stored images.
        title: one line above the pictures.

    Returns:
        A JPEG file, at most 750 pixels wide.

    Raises:
        OSError, ValueError, Image.DecompressionBombError: an image cannot be read.
    """
    images = [read_stored(image_a), read_stored(image_b)]
    width, height = images[0].size
    image_in = _IMAGE_WIDTH_IN * min(height / width, _MAX_ASPECT)
    width_in, height_in = 2 * _IMAGE_WIDTH_IN + _GAP_IN, image_in + _TITLE_IN + _LEGEND_IN
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width_in, height_in), dpi=_DPI)
        for index, image in enumerate(images):
            left = index * (_IMAGE_WIDTH_IN + _GAP_IN)
            place = (left / width_in, _LEGEND_IN / height_in, _IMAGE_WIDTH_IN / width_in, image_in / height_in)
            axes = figure.add_axes(place)
            axes.imshow(np.asarray(image))
            axes.set_axis_off()
            for box in drawn:
                axes.add_patch(_rectangle(box))
        figure.text(0.01, 1 - 0.5 * _TITLE_IN / height_in, title, va="center", fontsize=10)
        keys = [Line2D([], [], color=line.color, ls=line.dashes, lw=line.width) for line in _LINES.values()]
        labels = [line.label for line in _LINES.values()]
        figure.legend(keys, labels, loc="lower center", ncols=len(keys), handlelength=3, fontsize=9, borderaxespad=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    return buffer.getvalue()


def _rectangle(box: DrawnBox) -> Rectangle:
    x_min, y_min, x_max, y_max = box.box_px
    line = _LINES[box.verdict]
    # Pixel centres are at whole numbers in matplotlib's images, pixel edges in ours.
    return Rectangle(
        (x_min - 0.5, y_min - 0.5),
        x_max - x_min,
        y_max - y_min,
        fill=False,
        edgecolor=line.color,
        linestyle=line.dashes,
        linewidth=line.width,
        path_effects=[withStroke(linewidth=line.width + 1.6, foreground="white", alpha=0.6)],
    )
