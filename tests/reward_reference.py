"""The reward once more, slowly: exact fractions, every assignment tried. Boxes are integers in thousandths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

Box = tuple[int, int, int, int]


def area(box: Sequence[int]) -> int:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(a: Box, b: Box) -> int:
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def exact_iou(a: Box, b: Box) -> Fraction:
    return Fraction(overlap(a, b), area(a) + area(b) - overlap(a, b))


def exact_cost(a: Box, b: Box) -> Fraction:
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = area(a) + area(b) - overlap(a, b)
    l1 = Fraction(sum(abs(x - y) for x, y in zip(a, b, strict=True)), 1000)
    return 5 * l1 + 2 * (1 - (exact_iou(a, b) - Fraction(hull - union, hull)))


def brute_force(costs: list[list[Fraction]]) -> tuple[int, ...]:
    """Column of each row at the least total cost, by trying all; at most as many rows as columns."""
    columns = itertools.permutations(range(len(costs[0])), len(costs))
    return min(columns, key=lambda chosen: sum(row[column] for row, column in zip(costs, chosen, strict=True)))


def column_by_column(costs: list[list[Fraction]]) -> tuple[int, ...]:
    """As `brute_force`, for many columns: the best way to serve each set of rows with the columns seen so far."""
    best: dict[frozenset[int], tuple[Fraction, tuple[tuple[int, int], ...]]] = {frozenset(): (Fraction(0), ())}
    for column in range(len(costs[0])):
        for served, (cost, chosen) in list(best.items()):
            for row in set(range(len(costs))) - served:
                more = served | {row}
                candidate = (cost + costs[row][column], (*chosen, (row, column)))
                if more not in best or candidate[0] < best[more][0]:
                    best[more] = candidate
    return tuple(column for _, column in sorted(best[frozenset(range(len(costs)))][1]))


def assigned_ious(predicted: Sequence[Box], target: Sequence[Box]) -> list[Fraction]:
    """IoU of each assigned pair."""
    few, many = sorted([predicted, target], key=len)
    costs = [[exact_cost(a, b) for b in many] for a in few]
    columns = brute_force(costs) if len(many) < 8 else column_by_column(costs)
    return [exact_iou(a, many[column]) for a, column in zip(few, columns, strict=True)]


def total_of(ious: Sequence[Fraction], num_predicted: int, num_target: int, match_iou: float, over_both: bool) -> float:
    """0.1 format + 0.45 F1 + 0.45 IoU from the IoUs of the assigned pairs; 0 for an empty answer."""
    if not num_predicted:
        return 0.0
    counts = num_predicted, num_target
    f1 = Fraction(2 * sum(iou >= Fraction(match_iou) for iou in ious), sum(counts))
    mean = sum(ious, Fraction(0)) / (max(counts) if over_both else min(counts))
    return float(Fraction(1, 10) + Fraction(45, 100) * (f1 + mean))


def reference_total(predicted: Sequence[Box], target: Sequence[Box], match_iou: float, over_both: bool) -> float:
    """The whole of it."""
    ious = assigned_ious(predicted, target) if predicted else []
    return total_of(ious, len(predicted), len(target), match_iou, over_both)
