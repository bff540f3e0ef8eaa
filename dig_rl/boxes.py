"""Box arithmetic: the only place that converts between frames, and the assignment that every reward term shares.

Frames: `_px` pixels of an image, `_norm1000` thousandths of each image side, `_unit` fractions of each side. All boxes
are `[N, 4]` xyxy, half-open, origin top-left.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

Assignment = tuple[tuple[int, int, float], ...]
"""(predicted index, target index, IoU) of each assigned pair."""


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


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, `[N, M]` in [0, 1]; boxes `[N, 4]`, `[M, 4]` of positive area."""
    return _compare(boxes_a, boxes_b)[0]


def giou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Generalised IoU of every pair, `[N, M]` in (-1, 1]; boxes `[N, 4]`, `[M, 4]` of positive area.

    Source: Rezatofighi et al., CVPR 2019 (arXiv 1902.09630), algorithm 1.
    """
    return _compare(boxes_a, boxes_b)[1]


def l1_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Sum of the four absolute coordinate differences of every pair, `[N, M]`, in the units of the boxes."""
    return _compare(boxes_a, boxes_b)[2]


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
    iou, giou, l1 = _compare(predicted, target)
    rows, columns = linear_sum_assignment(cost_l1 * l1 + cost_giou * (1.0 - giou))
    return tuple(
        (order_predicted[row], order_target[column], overlap)
        for row, column, overlap in zip(rows.tolist(), columns.tolist(), iou[rows, columns].tolist(), strict=True)
    )


def _sides(image_size_px: tuple[int, int]) -> np.ndarray:
    width, height = image_size_px
    return np.array([width, height, width, height], dtype=np.float64)


def _sorted(boxes: np.ndarray) -> tuple[list[int], np.ndarray]:
    rows = boxes.tolist()  # Python's sort beats np.lexsort at these sizes
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return order, boxes[order]


def _compare(boxes_a: np.ndarray, boxes_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU, GIoU and L1 of every pair, each `[N, M]`, from the corners that all three share."""
    a, b = boxes_a.T[:, :, None], boxes_b.T[:, None, :]
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    hull_sides = larger[2:] - smaller[:2]
    overlap_sides = np.maximum(smaller[2:] - larger[:2], 0.0)
    intersection = overlap_sides[0] * overlap_sides[1]
    hull = hull_sides[0] * hull_sides[1]
    union = _areas(a) + _areas(b) - intersection
    iou = intersection / union
    distance = larger - smaller
    return iou, iou - (hull - union) / hull, distance[0] + distance[1] + distance[2] + distance[3]


def _areas(columns: np.ndarray) -> np.ndarray:
    return (columns[2] - columns[0]) * (columns[3] - columns[1])
