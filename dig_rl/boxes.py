"""Box arithmetic: the only place that converts between frames, and the assignment that every reward term shares.

Frames: `_px` pixels of an image, `_norm1000` thousandths of each image side, `_unit` fractions of each side. All boxes
are `[N, 4]` xyxy, half-open, origin top-left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

Assignment = tuple[tuple[int, int, float], ...]
"""(predicted index, target index, IoU) of each assigned pair."""

BoxFormat = Literal["xyxy_px", "xywh_px", "xyxy_unit", "xywh_unit", "xyxy_norm1000", "xywh_norm1000"]
"""How a file of somebody else writes boxes: two corners, or the first corner with width and height; in which frame."""

_Box = Sequence[float]


def px_to_unit(boxes_px: np.ndarray, image_size_px: tuple[int, int]) -> np.ndarray:
    """Pixels `[N, 4]` of an image of (width, height) to fractions of its sides."""
    return boxes_px / _sides(image_size_px)


def unit_to_px(boxes_unit: np.ndarray, image_size_px: tuple[int, int]) -> np.ndarray:
    """Fractions `[N, 4]` of the sides to pixels of an image of (width, height)."""
    return boxes_unit * _sides(image_size_px)


def norm1000_to_unit(boxes_norm1000: np.ndarray) -> np.ndarray:
    """Thousandths `[N, 4]` of the sides to fractions."""
    return boxes_norm1000 / 1000.0


def unit_to_norm1000(boxes_unit: np.ndarray) -> np.ndarray:
    """Fractions `[N, 4]` of the sides to thousandths."""
    return boxes_unit * 1000.0


def turn_px(boxes_px: np.ndarray, tag: int, stored_size_px: tuple[int, int]) -> np.ndarray:
    """Pixels `[N, 4]` of a stored picture to pixels of the picture turned upright.

    Args:
        boxes_px: in the frame of the stored pixels.
        tag: EXIF orientation of the picture, 1 to 8.
        stored_size_px: (width, height) of the stored pixels.
    """
    (width, height), order = stored_size_px, [0, 1, 2, 3]
    if tag >= 5:
        (width, height), order = (height, width), [1, 0, 3, 2]
    x_min, y_min, x_max, y_max = boxes_px[:, order].T
    if tag in (2, 3, 6, 7):
        x_min, x_max = width - x_max, width - x_min
    if tag in (3, 4, 7, 8):
        y_min, y_max = height - y_max, height - y_min
    return np.stack([x_min, y_min, x_max, y_max], axis=1)


def xywh_to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    """First corner, width and height `[N, 4]` to both corners, in the same frame."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def to_px(boxes: np.ndarray, box_format: BoxFormat, image_size_px: tuple[int, int]) -> np.ndarray:
    """Boxes `[N, 4]` of a format as xyxy in pixels of an image of (width, height)."""
    form, _, frame = box_format.partition("_")
    corners = xywh_to_xyxy(boxes) if form == "xywh" else boxes
    if frame == "px":
        return corners
    return unit_to_px(norm1000_to_unit(corners) if frame == "norm1000" else corners, image_size_px)


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, `[N, M]` in [0, 1]; boxes `[N, 4]`, `[M, 4]`; without area it is 0."""
    edges = np.maximum(boxes_a[:, None, :2], boxes_b[:, :2]), np.minimum(boxes_a[:, None, 2:], boxes_b[:, 2:])
    intersection = np.maximum(edges[1] - edges[0], 0.0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (boxes_a, boxes_b)]
    union = areas[0][:, None] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def giou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Generalised IoU of every pair, `[N, M]` in (-1, 1]; boxes `[N, 4]`, `[M, 4]` of positive area.

    Source: Rezatofighi et al., CVPR 2019 (arXiv 1902.09630), algorithm 1.
    """
    return _matrices(boxes_a, boxes_b)[1]


def l1_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Sum of the four absolute coordinate differences of every pair, `[N, M]`, in the units of the boxes."""
    return _matrices(boxes_a, boxes_b)[2]


def assign(predicted_unit: np.ndarray, target_unit: np.ndarray, cost_l1: float, cost_giou: float) -> Assignment:
    """Pair predicted with true boxes one to one at the least total cost.

    The cost of a pair is `cost_l1 * L1 + cost_giou * (1 - GIoU)`. Both lists are sorted before solving, and the pairs
    come in the order of the sorted predictions, so neither ties nor rounding depend on the order in which boxes were
    written.

    Args:
        predicted_unit: `[N, 4]` in [0, 1], positive area.
        target_unit: `[M, 4]` in [0, 1], positive area.
        cost_l1: weight of the L1 distance.
        cost_giou: weight of 1 - GIoU.

    Returns:
        min(N, M) triples (predicted index, target index, IoU); indices refer to the order given.

    Source: DiG (arXiv 2512.12633) names Hungarian matching on L1 and GIoU; the weights are DETR's
    (arXiv 2005.12872).
    """
    if not len(predicted_unit) or not len(target_unit):
        return ()
    order_predicted, predicted = _sorted(predicted_unit)
    order_target, target = _sorted(target_unit)
    pairs = [[_compare(a, b) for b in target] for a in predicted]
    cost = [[cost_l1 * l1 + cost_giou * (1.0 - giou) for _, giou, l1 in row] for row in pairs]
    rows, columns = linear_sum_assignment(cost)
    return tuple(
        (order_predicted[row], order_target[column], pairs[row][column][0])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    )


def _sides(image_size_px: tuple[int, int]) -> np.ndarray:
    width, height = image_size_px
    return np.array([width, height, width, height], dtype=np.float64)


def _sorted(boxes: np.ndarray) -> tuple[list[int], list[_Box]]:
    rows = boxes.tolist()
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return order, [rows[index] for index in order]


def _matrices(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    pairs = [[_compare(a, b) for b in boxes_b.tolist()] for a in boxes_a.tolist()]
    return np.array(pairs, dtype=np.float64).reshape(len(boxes_a), len(boxes_b), 3).transpose(2, 0, 1)


def _compare(a: _Box, b: _Box) -> tuple[float, float, float]:
    """IoU, GIoU and L1 of one pair, from the edges of overlap and hull that all three share.

    Plain arithmetic, because arrays of the few boxes of an answer cost more to set up than they save.
    """
    a_left, a_top, a_right, a_bottom = a
    b_left, b_top, b_right, b_bottom = b
    left, hull_left = (a_left, b_left) if a_left > b_left else (b_left, a_left)
    top, hull_top = (a_top, b_top) if a_top > b_top else (b_top, a_top)
    right, hull_right = (a_right, b_right) if a_right < b_right else (b_right, a_right)
    bottom, hull_bottom = (a_bottom, b_bottom) if a_bottom < b_bottom else (b_bottom, a_bottom)
    intersection = (right - left) * (bottom - top) if right > left and bottom > top else 0.0
    areas = (a_right - a_left) * (a_bottom - a_top) + (b_right - b_left) * (b_bottom - b_top)
    union, hull = areas - intersection, (hull_right - hull_left) * (hull_bottom - hull_top)
    iou = intersection / union
    l1 = (left - hull_left) + (top - hull_top) + (hull_right - right) + (hull_bottom - bottom)
    return iou, iou - (hull - union) / hull, l1
