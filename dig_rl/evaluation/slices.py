"""Figures by kind of pair and by kind of change: where a policy is good and where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dig_rl.evaluation.answers import JudgedPair
from dig_rl.evaluation.bootstrap import percentile_intervals
from dig_rl.evaluation.detection import IOU_THRESHOLDS
from dig_rl.evaluation.figures import Estimate, as_estimates, estimate
from dig_rl.types import Example

SIZE_BOUNDS = (0.01, 0.03, 0.1)
"""Where one size ends and the next begins: area of the true box over that of the image."""
SIZES = ("under 1 %", "1 to 3 %", "3 to 10 %", "10 % and more")

VISIBILITY_BOUNDS = (0.75, 0.95)
"""Visible part of the changed object, where it is least visible."""
VISIBILITIES = ("under 75 %", "75 to 95 %", "95 % and more")
UNKNOWN = "unknown"

BOX_FIGURES = ("recall", "recall_50_95", "mean_iou")
"""What can be said of true boxes of one kind: a wrong box has no kind, so precision cannot."""


class Slice(NamedTuple):
    """Pairs, or true boxes, that have something in common."""

    name: str
    pairs: int
    boxes: int
    """True boxes of the slice in those pairs."""
    figures: dict[str, Estimate]


def slices_by_count(pairs: Sequence[JudgedPair], match_iou: float) -> list[Slice]:
    """Every figure for the pairs with 0, 1, 2, ... changes."""
    found = []
    for count in sorted({pair.truth.example.num_differences for pair in pairs}):
        chosen = [pair for pair in pairs if pair.truth.example.num_differences == count]
        found.append(Slice(str(count), len(chosen), count * len(chosen), estimate(chosen, match_iou)))
    return found


def slices_by_box(pairs: Sequence[JudgedPair], match_iou: float) -> dict[str, list[Slice]]:
    """`BOX_FIGURES` of the true boxes by `kind`, `size` and `visibility`; slices without boxes are left out."""
    kinds = sorted({kind for pair in pairs for kind in pair.truth.example.kinds})
    by = {
        "kind": ([list(pair.truth.example.kinds) for pair in pairs], kinds),
        "size": ([_sizes(pair.truth.example) for pair in pairs], SIZES),
        "visibility": (
            [[_visibility(fraction) for fraction in pair.truth.visible_fractions] for pair in pairs],
            (*VISIBILITIES, UNKNOWN),
        ),
    }
    return {
        name: [
            _slice(value, pairs, [[item == value for item in row] for row in names], match_iou)
            for value in values
            if any(value in row for row in names)
        ]
        for name, (names, values) in by.items()
    }


def _slice(name: str, pairs: Sequence[JudgedPair], chosen: Sequence[Sequence[bool]], match_iou: float) -> Slice:
    """Figures of the chosen true boxes; pairs without such a box are not resampled, they say nothing."""
    rows, boxes = [], 0
    for pair, is_chosen in zip(pairs, chosen, strict=True):
        if not any(is_chosen):
            continue
        boxes += sum(is_chosen)
        ious = [judged.iou_of_true for judged in pair.judged]
        found = [judged.is_found(match_iou) for judged in pair.judged]
        found_at = [judged.is_found(float(threshold)) for judged in pair.judged for threshold in IOU_THRESHOLDS]
        columns = np.flatnonzero(is_chosen)
        num_thresholds = len(IOU_THRESHOLDS)
        rows.append(
            [
                np.array(found)[:, columns].sum(),
                np.array(found_at)[:, columns].sum() / num_thresholds,
                np.array(ious)[:, columns].sum(),
                len(columns) * len(pair.judged),
            ]
        )
    sums_PC = np.array(rows, dtype=float)

    def of_weights(counts_BP: np.ndarray) -> np.ndarray:
        totals = (counts_BP @ sums_PC).T
        return totals[:-1] / totals[-1]

    values = of_weights(np.ones((1, len(rows))))[:, 0]
    return Slice(name, len(rows), boxes, as_estimates(BOX_FIGURES, values, percentile_intervals(of_weights, len(rows))))


def _sizes(example: Example) -> list[str]:
    width, height = example.image_size_px
    shares = [(x1 - x0) * (y1 - y0) / (width * height) for x0, y0, x1, y1 in example.target_boxes_px]
    return [SIZES[int(np.searchsorted(SIZE_BOUNDS, share, side="right"))] for share in shares]


def _visibility(fraction: float | None) -> str:
    if fraction is None:
        return UNKNOWN
    return VISIBILITIES[int(np.searchsorted(VISIBILITY_BOUNDS, fraction, side="right"))]
