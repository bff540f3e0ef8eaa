"""Held-out figures by hand, at the edges, and against the reward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_rl.evaluation.detection import detection_metrics, pair_f1, pair_figures

NONE = np.empty((0, 4))
# Four separate boxes in the corners, and one whose IoU with the first is exactly 1/2.
CORNERS = np.array([[0.0, 0.0, 0.2, 0.2], [0.8, 0.0, 1.0, 0.2], [0.0, 0.8, 0.2, 1.0], [0.8, 0.8, 1.0, 1.0]])
HALF = np.array([[0.0, 0.0, 0.1, 0.2]])


def test_figures_of_one_pair_by_hand() -> None:
    # Three boxes for two changes: one exact, one half, one nowhere; at a threshold of 0.6 only the exact one is found.
    predicted = np.array([CORNERS[1], HALF[0], [0.4, 0.4, 0.6, 0.6]])
    assert pair_figures(predicted, CORNERS[:2], 0.6) == pytest.approx(
        {
            "f1": 2 * 1 / (3 + 2),
            "mean_iou": (1 + 0.5) / 3,
            "precision": 1 / 3,
            "recall": 1 / 2,
            "count_accuracy": 0.0,
            "parse_rate": 1.0,
        }
    )


def test_set_figures_are_means_over_pairs() -> None:
    # Pair 1 perfect with one change, pair 2 finds one of four, pair 3 cannot be read.
    answers = [(CORNERS[:1], CORNERS[:1]), (CORNERS[:1], CORNERS), (None, CORNERS[:2])]
    assert detection_metrics(answers, 0.5) == pytest.approx(
        {
            "f1": (1 + 2 / 5 + 0) / 3,
            "mean_iou": (1 + 1 / 4 + 0) / 3,
            "precision": (1 + 1 + 0) / 3,
            "recall": (1 + 1 / 4 + 0) / 3,
            "count_accuracy": 1 / 3,
            "parse_rate": 2 / 3,
            "pairs": 3,
        }
    )


def test_iou_of_exactly_the_threshold_counts_wherever_the_box_stands() -> None:
    for shift in np.linspace(0.0, 0.8, 41):
        offset = np.array([shift, shift, shift, shift])
        assert pair_f1(HALF + offset, CORNERS[:1] + offset, 0.5) == 1.0


@pytest.mark.parametrize(
    ("predicted", "target", "expected"),
    [
        (NONE, NONE, {"f1": 1, "mean_iou": 1, "precision": 1, "recall": 1, "count_accuracy": 1, "parse_rate": 1}),
        (NONE, CORNERS, {"f1": 0, "mean_iou": 0, "precision": 0, "recall": 0, "count_accuracy": 0, "parse_rate": 1}),
        (CORNERS, NONE, {"f1": 0, "mean_iou": 0, "precision": 0, "recall": 0, "count_accuracy": 0, "parse_rate": 1}),
        (None, CORNERS, {"f1": 0, "mean_iou": 0, "precision": 0, "recall": 0, "count_accuracy": 0, "parse_rate": 0}),
        (None, NONE, {"f1": 0, "mean_iou": 0, "precision": 0, "recall": 0, "count_accuracy": 0, "parse_rate": 0}),
    ],
)
def test_empty_and_unreadable_answers(
    predicted: np.ndarray | None, target: np.ndarray, expected: dict[str, float]
) -> None:
    assert pair_figures(predicted, target, 0.5) == expected


def test_a_copy_of_a_found_box_costs_precision() -> None:
    twice = np.repeat(CORNERS[:1], 2, axis=0)
    assert pair_figures(twice, CORNERS[:1], 0.5)["precision"] == 0.5


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one answered pair"):
        detection_metrics([], 0.5)


corner, extent = st.floats(0, 0.8), st.floats(0.01, 0.2)
boxes = st.lists(
    st.tuples(corner, corner, extent, extent).map(lambda p: [p[0], p[1], p[0] + p[2], p[1] + p[3]]), max_size=4
).map(lambda rows: np.array(rows).reshape(-1, 4))


@given(boxes, boxes, st.floats(0.05, 1))
def test_figures_are_bounded_and_consistent(predicted: np.ndarray, target: np.ndarray, match_iou: float) -> None:
    figures = pair_figures(predicted, target, match_iou)
    assert all(0 <= value <= 1 for value in figures.values())
    precision, recall = figures["precision"], figures["recall"]
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert figures["f1"] == pytest.approx(harmonic)
    assert pair_figures(target, target, match_iou)["f1"] == 1
