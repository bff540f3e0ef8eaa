"""Acc@0.5 of referring expressions: which box of an answer counts, its IoU by hand, and the figures of a split."""

from __future__ import annotations

import pytest

from dig_rl.evaluation.grounding import Expression, first_box, grounding_figures, judge_expression

SIZE = (96, 64)
BOX = (100.0, 100.0, 500.0, 600.0)


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ('```json\n[{"bbox_2d": [100, 100, 500, 600], "label": "dog"}]\n```', BOX),
        ('{"bbox_2d": [100, 100, 500, 600]} {"bbox_2d": [0, 0, 9, 9]}', BOX),
        ("[[100, 100, 500, 600], [0, 0, 1000, 1000]]", BOX),
        ("It is at [100.0, 1e2, 500, 600].", BOX),
        ("In [above] it: [100, 100, 500, 600]", BOX),
        ("[1, 2] [100, 100, 500, 600]", None),  # a malformed box is not passed over
        ("[100, 100, 500]", None),
        ("[100, 100, 500, 600, 700]", None),
        ("[500, 100, 100, 600]", None),
        ("[100, 100, 100, 600]", None),
        ("[100, 100, 500, 600", None),
        ("[100, 100, 500, 1e999]", None),
        ('["100", 100, 500, 600]', None),
        ("(100,100),(500,600)", None),
        ("", None),
        ("[" * 100_000, None),
        ("[1" * 100_000, None),
        ("[" + "9" * 150 + ", 1, 2, 3]", None),
    ],
)
def test_the_first_box_counts(answer: str, box: tuple[float, ...] | None) -> None:
    assert first_box(answer, thinking=False) == box


def test_boxes_of_the_thinking_do_not_count() -> None:
    answer = "maybe [0, 0, 9, 9]</think>[100, 100, 500, 600]"
    assert first_box(answer, thinking=True) == first_box(answer, thinking=False) == BOX
    assert first_box("maybe [0, 0, 9, 9]", thinking=True) is None


def expression(number: int = 0, image: str = "a.jpg") -> Expression:
    return Expression(str(number), "dog", image, (200, 100), (0.0, 0.0, 100.0, 100.0))


@pytest.mark.parametrize(
    ("answer", "iou", "is_right"),
    [
        ("[0, 0, 500, 1000]", 1.0, True),  # the left half in thousandths
        ("[0, 0, 1000, 1000]", 0.5, True),  # exactly one half counts
        ("[0, 0, 1000, 999]", 0.49975, False),  # 499.5 / 999.5 of thousandths
        ("[0, 0, 250, 1000]", 0.5, True),
        ("[0, 0, 100, 100]", 0.02, False),  # pixels, read as thousandths: 0.1 * 0.1 of half the picture
        ("nothing", 0.0, False),
    ],
)
def test_iou_in_thousandths_by_hand(answer: str, iou: float, is_right: bool) -> None:
    judged = judge_expression(expression(), answer, thinking=False, frame="norm1000", model_image_size_px=(96, 64))
    assert judged.iou == pytest.approx(iou, abs=1e-5)
    assert judged.is_right is is_right


def test_iou_in_pixels_of_the_resized_picture() -> None:
    judged = judge_expression(
        expression(), "[0, 0, 48, 64]", thinking=False, frame="absolute_px", model_image_size_px=(96, 64)
    )
    assert judged.iou == 1.0


def test_figures_weigh_expressions_and_draw_pictures() -> None:
    rows = [
        judge_expression(expression(n, image), text, thinking=False, frame="norm1000", model_image_size_px=SIZE)
        for n, (image, text) in enumerate(
            [("a", "[0, 0, 500, 1000]"), ("a", "[0, 0, 500, 1000]"), ("a", "[0, 0, 500, 1000]"), ("b", "?")]
        )
    ]
    found = grounding_figures(rows)
    assert (found["acc_50"], found["read_rate"], found["expressions"], found["images"]) == (0.75, 0.75, 4, 2)
    # Both draws from picture b, or both from a, happen in a quarter of the resamples each.
    assert found["interval"] == [0.0, 1.0]
    assert grounding_figures(rows[:1])["interval"] is None


def test_reading_time_is_linear() -> None:
    """A list that never ends, many times over, would take hours if it were searched from every bracket."""
    assert first_box("[1, " * 200_000, thinking=False) is None
