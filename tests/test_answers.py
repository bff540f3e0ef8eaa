"""Figures of the sampled answers, against hand-derived numbers."""

from __future__ import annotations

import pytest

from dig_rl.answers import summarise_answers
from dig_rl.metrics import undocumented
from dig_rl.types import Completion, Example, ParseStatus, RolloutGroup, SampledGroup, Score

Box = tuple[float, float, float, float]
LEFT: Box = (0.0, 0.0, 0.2, 0.2)
RIGHT: Box = (0.8, 0.8, 1.0, 1.0)
NEARLY_LEFT: Box = (0.0, 0.0, 0.2, 0.19)  # IoU 0.95
HALF_LEFT: Box = (0.0, 0.0, 0.2, 0.1)  # IoU 0.5
WHOLE: Box = (0.0, 0.0, 1.0, 0.7)


def group_of(true_boxes: list[Box], *answers: list[Box] | None, text: str = "") -> RolloutGroup:
    """One group; None is an answer that cannot be read."""
    example = Example("p", "/a.png", "/b.png", (1, 1), tuple(true_boxes), ("color",) * len(true_boxes), "train")
    scores = []
    for boxes in answers:
        status: ParseStatus = "malformed" if boxes is None else "ok" if boxes else "empty"
        scores.append(Score(0.0, {}, status, tuple(boxes or ())))
    completions = tuple(Completion((1,), (0.0,), text, "stop", 0) for _ in answers)
    return RolloutGroup(SampledGroup(example, (1,), completions, 0, (1, 1), 0), tuple(scores), "mixed")


def test_figures_of_two_groups() -> None:
    groups = [
        group_of([LEFT], [LEFT], [HALF_LEFT, RIGHT], None, [NEARLY_LEFT, LEFT, LEFT]),
        group_of([LEFT, RIGHT], [RIGHT], [WHOLE], []),
    ]
    figures = summarise_answers(groups, thinking=False)
    assert undocumented(figures) == []
    # F1: 1, 2/3, 0, 2/4 of the first pair, 2/3, 0, 0 of the second
    assert figures["answers/f1"] == pytest.approx((1 + 2 / 3 + 1 / 2 + 2 / 3) / 7)
    assert figures["answers/boxes"] == pytest.approx((1 + 2 + 3 + 1 + 1 + 0) / 6)
    assert figures["answers/whole_image_frac"] == pytest.approx(1 / 6)
    assert figures["answers/duplicate_frac"] == pytest.approx(2 / 8)  # both boxes after NEARLY_LEFT
    assert figures["answers/one_box_frac"] == pytest.approx(2 / 3)
    # one box three times in six; the most common true number, two or one, three times in six
    assert figures["answers/same_count_excess"] == pytest.approx(0.0)
    assert figures["answers/same_box_frac"] == 0.0  # LEFT and RIGHT
    assert figures["answers/readable_minus_f1"] == pytest.approx(6 / 7 - figures["answers/f1"])
    assert "answers/thinking_characters" not in figures


def test_boxes_that_pairs_share() -> None:
    groups = [group_of([LEFT], [LEFT, RIGHT]), group_of([RIGHT], None, [NEARLY_LEFT]), group_of([RIGHT], [HALF_LEFT])]
    # LEFT is in one of two others, RIGHT in none, NEARLY_LEFT in one, HALF_LEFT (IoU 0.5 and 0.53) in none
    assert summarise_answers(groups, thinking=False)["answers/same_box_frac"] == pytest.approx((0.5 + 0 + 0.5 + 0) / 4)


def test_what_no_answer_can_show_is_left_out() -> None:
    unread = summarise_answers([group_of([LEFT], None, None)], thinking=False)
    assert unread == {"answers/f1": 0.0, "answers/readable_minus_f1": 0.0}
    single = summarise_answers([group_of([LEFT], [LEFT]), group_of([RIGHT], [])], thinking=False)
    assert {"answers/one_box_frac", "answers/same_count_excess", "answers/same_box_frac"}.isdisjoint(single)
    nothing = summarise_answers([group_of([], []), group_of([], None)], thinking=False)
    assert nothing["answers/f1"] == 0.5  # rightly empty; unreadable


def test_thinking_is_measured_in_characters_before_the_answer() -> None:
    figures = summarise_answers([group_of([LEFT], [LEFT], [LEFT], text="1234</think>[[]]")], thinking=True)
    assert figures["answers/thinking_characters"] == 4


def test_a_malformed_box_that_counts_overlaps_nothing() -> None:
    nowhere: Box = (0.0, 0.0, 0.0, 0.0)
    groups = [group_of([LEFT], [nowhere, nowhere, LEFT]), group_of([LEFT], [nowhere])]
    figures = summarise_answers(groups, thinking=False)
    assert figures["answers/duplicate_frac"] == 0.0
    assert figures["answers/same_box_frac"] == 0.0
