"""Laws that hold for every answer, and for each condition of a law the answer that breaks it without."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dig_rl.boxes import assign, giou_matrix, iou_matrix, l1_matrix
from dig_rl.config import RewardConfig
from dig_rl.parsing import CoordinateFrame, parse_answer
from dig_rl.prompts import format_answer
from dig_rl.scoring import Scorer
from tests.reward_reference import Box, exact_cost, exact_iou, reference_total
from tests.test_scoring import PAPER, PAPER_LITERAL, ROOT, SHIPPED, answer, docs_table, group_of, reward_config

STRICT = reward_config(match_iou=0.75, iou_reduction="union_count")
SCORERS = {
    name: Scorer(config, root=ROOT, thinking=False, frame="norm1000", prompt="")
    for name, config in {"shipped": SHIPPED, "paper": PAPER, "literal": PAPER_LITERAL, "strict": STRICT}.items()
}
WITH_THRESHOLD = ("shipped", "paper", "strict")

# A coarse grid: touching, equal and nested boxes are common on it.
_side = st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda ends: ends[0] != ends[1]).map(sorted)
boxes = st.tuples(_side, _side).map(lambda sides: tuple(50 * sides[axis][end] for end in (0, 1) for axis in (0, 1)))
some_boxes = st.lists(boxes, min_size=1, max_size=4)
laws = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])


def total(predicted: list, target: list[Box], setting: str = "shipped") -> float:
    return SCORERS[setting].score(group_of([answer(*predicted)], target), step=0, stage="")[0].total


def unit(some: list) -> np.ndarray:
    return np.array(some, dtype=np.float64).reshape(-1, 4) / 1000


def pairs(predicted: list, target: list[Box]) -> set[tuple[int, int]]:
    return {(i, j) for i, j, _ in assign(unit(predicted), unit(target), 5.0, 2.0)}


@laws
@given(some_boxes, some_boxes)
def test_overlaps_and_distance_are_symmetric(a: list[Box], b: list[Box]) -> None:
    for matrix in (iou_matrix, giou_matrix, l1_matrix):
        np.testing.assert_array_equal(matrix(unit(a), unit(b)), matrix(unit(b), unit(a)).T)


@laws
@given(st.lists(boxes, min_size=1, max_size=3), st.lists(boxes, min_size=1, max_size=3))
def test_answer_and_truth_may_change_places(predicted: list[Box], target: list[Box]) -> None:
    few, many = sorted([predicted, target], key=len)
    costs = sorted(
        sum(exact_cost(a, many[j]) for a, j in zip(few, columns, strict=True))
        for columns in itertools.permutations(range(len(many)), len(few))
    )
    assume(len(costs) < 2 or costs[0] < costs[1])  # of two equally good assignments either may be taken
    for setting in SCORERS:
        assert total(predicted, target, setting) == pytest.approx(total(target, predicted, setting))


@laws
@given(st.lists(boxes, max_size=6), some_boxes)
def test_totals_and_terms_stay_between_zero_and_one(predicted: list[Box], target: list[Box]) -> None:
    for scorer in SCORERS.values():
        (score,) = scorer.score(group_of([answer(*predicted)], target), step=0, stage="")
        assert all(0.0 <= value <= 1.0 for value in (score.total, *score.terms.values()))


@laws
@given(st.lists(boxes, min_size=1, max_size=6), st.lists(boxes, min_size=1, max_size=6), st.randoms())
def test_order_of_boxes_does_not_matter_on_either_side(
    predicted: list[Box], target: list[Box], shuffler: random.Random
) -> None:
    shuffled = shuffler.sample(predicted, len(predicted)), shuffler.sample(target, len(target))
    for setting in SCORERS:
        assert total(predicted, target, setting) == total(*shuffled, setting)


@laws
@given(st.lists(boxes, max_size=6), st.sampled_from(["norm1000", "absolute_px"]))
def test_what_is_written_is_what_is_read(some: list[Box], frame: CoordinateFrame) -> None:
    size = (1000, 500)
    written = format_answer(unit(some), frame, size)
    read = parse_answer(written, RewardConfig(), thinking=False, frame=frame, model_image_size_px=size)
    assert read.status == ("ok" if some else "empty") and read.boxes_unit is not None
    np.testing.assert_allclose(read.boxes_unit, unit(sorted(some)), atol=1e-12)


@laws
@given(some_boxes, some_boxes, boxes)
def test_another_box_that_hits_nothing_never_pays(predicted: list[Box], target: list[Box], extra: Box) -> None:
    assume(all(exact_iou(extra, box) == 0 for box in target))
    assume(pairs(predicted, target) <= pairs([*predicted, extra], target))
    for setting in WITH_THRESHOLD:
        assert total([*predicted, extra], target, setting) <= total(predicted, target, setting) + 1e-12


@laws
@given(some_boxes, some_boxes, st.integers(0, 3), st.floats(0, 1))
def test_a_step_towards_the_assigned_box_never_costs(
    predicted: list[Box], target: list[Box], choice: int, share: float
) -> None:
    assigned = sorted(pairs(predicted, target))
    i, j = assigned[choice % len(assigned)]
    moved = list(predicted)
    moved[i] = tuple(a + share * (b - a) for a, b in zip(predicted[i], target[j], strict=True))
    assume(pairs(moved, target) == pairs(predicted, target))
    for setting in SCORERS:
        assert total(moved, target, setting) >= total(predicted, target, setting) - 1e-12


# What the documentation shows: an answer before and after, and the total that breaks the law.
DROPPED: dict[str, tuple[str, list[Box], list[Box], list[Box]]] = {
    "extra box, others re-assigned": (
        "shipped",
        [(200, 0, 500, 900)],
        [(200, 0, 500, 900), (700, 500, 1000, 700)],
        [(500, 100, 600, 700), (0, 0, 400, 400)],
    ),
    "extra box, answer was empty": (
        "shipped",
        [],
        [(500, 500, 600, 600)],
        [(0, 0, 200, 200)],
    ),
    "extra box, `match_iou` 0": (
        "literal",
        [(300, 300, 400, 400)],
        [(300, 300, 400, 400), (450, 300, 550, 400)],
        [(0, 0, 200, 200), (800, 0, 1000, 200)],
    ),
    "step towards its target, re-assigned": (
        "shipped",
        [(300, 200, 400, 1000)],
        [(225, 375, 400, 1000)],
        [(100, 400, 200, 600), (0, 900, 400, 1000)],
    ),
}


@pytest.mark.parametrize("law", DROPPED)
def test_each_condition_is_needed(law: str) -> None:
    setting, before, after, target = DROPPED[law]
    match_iou, over_both = (0.0, False) if setting == "literal" else (0.5, True)
    paid = [reference_total(predicted, target, match_iou, over_both) for predicted in (before, after)]
    assert [total(predicted, target, setting) for predicted in (before, after)] == pytest.approx(paid)
    assert paid[1] < paid[0] if law.startswith("step") else paid[1] > paid[0]
    cells = [str([list(box) for box in some])[1:-1] or "none" for some in (target, before, after)]
    assert docs_table("Laws")[law] == [*cells, *(f"{value:.4f}" for value in paid)]


def test_counterexamples_break_one_condition_each() -> None:
    _, before, after, target = DROPPED["extra box, others re-assigned"]
    assert all(exact_iou(after[1], box) == 0 for box in target)
    assert not pairs(before, target) <= pairs(after, target)
    _, before, after, target = DROPPED["extra box, `match_iou` 0"]
    assert pairs(before, target) <= pairs(after, target)
    _, before, after, target = DROPPED["step towards its target, re-assigned"]
    ((_, j),) = pairs(before, target)
    assert after[0] == tuple(a + (b - a) / 4 for a, b in zip(before[0], target[j], strict=True))
    assert pairs(before, target) != pairs(after, target)
