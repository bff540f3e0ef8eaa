"""Box arithmetic against hand-derived numbers, pixel counting, exact fractions and brute force."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_rl.boxes import (
    assign,
    giou_matrix,
    iou_matrix,
    l1_matrix,
    norm1000_to_unit,
    px_to_unit,
    unit_to_norm1000,
    unit_to_px,
)

Box = tuple[int, int, int, int]
GRID = 12
integer_side = st.tuples(st.integers(0, GRID), st.integers(0, GRID)).filter(lambda ends: ends[0] != ends[1]).map(sorted)
integer_box = st.tuples(integer_side, integer_side).map(
    lambda sides: (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
)
box_lists = st.lists(integer_box, min_size=1, max_size=5)


def unit(boxes: list[Box]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4) / GRID


def pixels(box: Box) -> set[tuple[int, int]]:
    x_min, y_min, x_max, y_max = box
    return set(itertools.product(range(x_min, x_max), range(y_min, y_max)))


def exact_iou(a: Box, b: Box) -> Fraction:
    return Fraction(len(pixels(a) & pixels(b)), len(pixels(a) | pixels(b)))


def exact_giou(a: Box, b: Box) -> Fraction:
    hull = pixels((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return exact_iou(a, b) - Fraction(len(hull - pixels(a) - pixels(b)), len(hull))


def exact_cost(a: Box, b: Box) -> Fraction:
    l1 = sum(Fraction(abs(x - y), GRID) for x, y in zip(a, b, strict=True))
    return 5 * l1 + 2 * (1 - exact_giou(a, b))


def test_pixels_become_fractions_of_their_own_side() -> None:
    boxes_px = np.array([[24.0, 16.0, 48.0, 64.0]])
    np.testing.assert_array_equal(px_to_unit(boxes_px, (96, 64)), [[0.25, 0.25, 0.5, 1.0]])


def test_thousandths_become_fractions() -> None:
    np.testing.assert_array_equal(norm1000_to_unit(np.array([[0, 250, 500, 1000]])), [[0.0, 0.25, 0.5, 1.0]])


@given(box_lists, st.integers(1, 5000), st.integers(1, 5000))
def test_frame_conversions_are_inverses(boxes: list[Box], width: int, height: int) -> None:
    boxes_unit = unit(boxes)
    np.testing.assert_allclose(px_to_unit(unit_to_px(boxes_unit, (width, height)), (width, height)), boxes_unit)
    np.testing.assert_allclose(norm1000_to_unit(unit_to_norm1000(boxes_unit)), boxes_unit)


def test_overlap_of_two_shifted_squares() -> None:
    # 2 x 2 squares shifted by (1, 1): intersection 1, union 7, hull 9.
    a, b = np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[1.0, 1.0, 3.0, 3.0]])
    assert iou_matrix(a, b) == pytest.approx(np.array([[1 / 7]]))
    assert giou_matrix(a, b) == pytest.approx(np.array([[1 / 7 - 2 / 9]]))
    assert l1_matrix(a, b) == pytest.approx(np.array([[4.0]]))


def test_boxes_that_share_only_an_edge_do_not_overlap() -> None:
    left, right = np.array([[0.0, 0.0, 0.5, 1.0]]), np.array([[0.5, 0.0, 1.0, 1.0]])
    assert iou_matrix(left, right).item() == 0.0
    assert giou_matrix(left, right).item() == 0.0  # the hull is exactly the union


def test_contained_box_has_the_ratio_of_areas() -> None:
    outer, inner = np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([[0.25, 0.25, 0.5, 0.75]])
    assert iou_matrix(outer, inner).item() == giou_matrix(outer, inner).item() == 0.125


@given(box_lists, box_lists)
def test_overlaps_equal_pixel_counts(boxes_a: list[Box], boxes_b: list[Box]) -> None:
    iou = [[float(exact_iou(a, b)) for b in boxes_b] for a in boxes_a]
    giou = [[float(exact_giou(a, b)) for b in boxes_b] for a in boxes_a]
    np.testing.assert_allclose(iou_matrix(unit(boxes_a), unit(boxes_b)), iou, atol=1e-12)
    np.testing.assert_allclose(giou_matrix(unit(boxes_a), unit(boxes_b)), giou, atol=1e-12)


@given(st.data())
def test_overlaps_are_symmetric_and_bounded(data: st.DataObject) -> None:
    corner, extent = st.floats(0, 0.9), st.floats(1e-6, 0.1)
    parts = st.tuples(corner, corner, extent, extent)
    box = parts.map(lambda part: [part[0], part[1], part[0] + part[2], part[1] + part[3]])
    a, b = (np.array(data.draw(st.lists(box, min_size=1, max_size=4))) for _ in range(2))
    iou, giou = iou_matrix(a, b), giou_matrix(a, b)
    np.testing.assert_array_equal(iou, iou_matrix(b, a).T)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou > -1) & (giou <= iou + 1e-12)).all()
    np.testing.assert_array_equal(np.diag(iou_matrix(a, a)), 1.0)


@given(box_lists, box_lists)
def test_assignment_costs_no_more_than_any_other(predicted: list[Box], target: list[Box]) -> None:
    assignment = assign(unit(predicted), unit(target), 5.0, 2.0)
    num_assigned = min(len(predicted), len(target))
    assert len({i for i, _, _ in assignment}) == len({j for _, j, _ in assignment}) == num_assigned
    costs = [[exact_cost(a, b) for b in target] for a in predicted]
    if len(predicted) <= len(target):
        every = itertools.permutations(range(len(target)), num_assigned)
        best = min(sum(costs[i][j] for i, j in enumerate(columns)) for columns in every)
    else:
        every = itertools.permutations(range(len(predicted)), num_assigned)
        best = min(sum(costs[i][j] for j, i in enumerate(rows)) for rows in every)
    assert float(sum(costs[i][j] for i, j, _ in assignment)) == pytest.approx(float(best))
    for i, j, iou in assignment:
        assert iou == pytest.approx(float(exact_iou(predicted[i], target[j])))


def test_assignment_gives_up_the_nearest_pair_when_the_whole_gains() -> None:
    # Left edges 0.3 and 0.2 against 0.28 and 0.5. Nearest first costs 0.02 + 0.3, the best 0.08 + 0.2 (all twice).
    predicted, target = ([[x, 0.0, x + 0.1, 0.1] for x in edges] for edges in ((0.3, 0.2), (0.28, 0.5)))
    assignment = assign(np.array(predicted), np.array(target), 5.0, 0.0)
    assert {(i, j) for i, j, _ in assignment} == {(0, 1), (1, 0)}


def test_only_one_of_two_copies_is_assigned() -> None:
    copies, target = np.array([[0.1, 0.1, 0.4, 0.4]] * 2), np.array([[0.1, 0.1, 0.4, 0.4]])
    ((_, j, iou),) = assign(copies, target, 5.0, 2.0)
    assert (j, iou) == (0, 1.0)


@pytest.mark.parametrize(("num_predicted", "num_target"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_is_assigned_to_nothing(num_predicted: int, num_target: int) -> None:
    box = [[0.0, 0.0, 0.5, 0.5]]
    predicted, target = (np.array(box * number).reshape(-1, 4) for number in (num_predicted, num_target))
    assert assign(predicted, target, 5.0, 2.0) == ()


@given(box_lists, box_lists, st.randoms(use_true_random=False))
def test_assignment_does_not_depend_on_the_order_written(
    predicted: list[Box], target: list[Box], shuffler: random.Random
) -> None:
    def assigned(predicted: list[Box], target: list[Box]) -> list[tuple[Box, Box, float]]:
        return [(predicted[i], target[j], iou) for i, j, iou in assign(unit(predicted), unit(target), 5.0, 2.0)]

    shuffled_predicted, shuffled_target = (shuffler.sample(boxes, len(boxes)) for boxes in (predicted, target))
    assert assigned(predicted, target) == assigned(shuffled_predicted, shuffled_target)
