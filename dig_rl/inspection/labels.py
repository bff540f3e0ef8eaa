"""Labels that cannot be true, whatever the pictures show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

from dig_rl.data import Box, DifferenceRecord, PairRecord, target_box
from dig_rl.types import BoxTarget

_ROUNDING_PX = 0.01


def label_problems(record: PairRecord) -> Iterator[str]:
    """Contradictions within each difference of a pair."""
    for index, difference in enumerate(record.differences):
        for problem in _difference_problems(difference):
            yield f"differences.{index} ({difference.kind}): {problem}"


def least_visible(item: DifferenceRecord) -> float | None:
    """The smaller of the visible fractions in the pictures that show the object; None where neither is known."""
    known = [share for share in (item.visible_fraction_a, item.visible_fraction_b) if share]
    return min(known, default=None)


def _difference_problems(difference: DifferenceRecord) -> Iterator[str]:
    box_a, box_b = difference.box_a, difference.box_b
    if difference.kind == "add" and box_a is not None:
        yield "an added object has a box_a, expected null"
    if difference.kind == "remove" and box_b is not None:
        yield "a removed object has a box_b, expected null"
    if (box_a or box_b) and not any(_equal(difference.box, target) for target in _targets(box_a, box_b)):
        yield f"box {list(difference.box)} is neither box_a, box_b nor the box around both"
    sides = (
        ("a", box_a, difference.visible_px_a, difference.visible_fraction_a),
        ("b", box_b, difference.visible_px_b, difference.visible_fraction_b),
    )
    for side, box, visible_px, fraction in sides:
        if visible_px is None:
            continue
        if box is None and visible_px > 0:
            yield f"box_{side} is null, but visible_px_{side} is {visible_px}"
        if box is not None and not 0 < visible_px <= _pixels(box):
            yield f"visible_px_{side} is {visible_px}, box_{side} holds {_pixels(box)} pixels"
        if fraction is not None and (fraction > 0) != (visible_px > 0):
            yield f"visible_fraction_{side} is {fraction:g}, but visible_px_{side} is {visible_px}"


def _targets(box_a: Box | None, box_b: Box | None) -> Iterator[Box]:
    for name in get_args(BoxTarget):
        yield target_box(box_a, box_b, name)


def _equal(one: Box, other: Box) -> bool:
    return all(abs(first - second) <= _ROUNDING_PX for first, second in zip(one, other, strict=True))


def _pixels(box: Box) -> int:
    x_min, y_min, x_max, y_max = box
    return (math.ceil(x_max) - math.floor(x_min)) * (math.ceil(y_max) - math.floor(y_min))
