"""Referring expressions: one picture, one phrase, one true box, and the share of phrases whose first box is right.

Source: the protocol of RefCOCO/+/g as Qwen-VL's and InternVL's `evaluate_grounding.py` score it: an expression counts
as right from an IoU of 0.5, and every expression weighs the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dig_rl.boxes import iou_matrix, norm1000_to_unit, px_to_unit
from dig_rl.evaluation.bootstrap import percentile_intervals
from dig_rl.parsing import END_OF_THINKING, CoordinateFrame

MATCH_IOU = 0.5
_TIE = 1e-9
"""Rounding must not decide about an IoU of exactly one half."""

# What the authors of Qwen3-VL say they asked (QwenLM/Qwen3-VL, issue 1721).
_QUESTION = (
    'Locate every object that matches the description "{}" in the image. Report bbox coordinates in JSON format.'
)
# The first pair of brackets that begins like a list of numbers. Nothing here backtracks.
_FIRST_LIST = re.compile(r"\[[ \t\r\n]*+-?[0-9][^\[\]{}]{0,200}+\]?")


@dataclass(frozen=True)
class Expression:
    """One phrase about one picture."""

    expression_id: str
    text: str
    image_path: str
    image_size_px: tuple[int, int]
    """(width, height)."""
    target_box_px: tuple[float, float, float, float]
    """xyxy."""

    @property
    def question(self) -> str:
        """What the policy is asked."""
        return _QUESTION.format(self.text)


@dataclass(frozen=True)
class JudgedExpression:
    """One answered phrase."""

    expression: Expression
    answer: str
    predicted_box_unit: tuple[float, float, float, float] | None
    """xyxy in fractions of the sides; None where the answer has no box."""
    iou: float
    """Of the first box with the true one; 0 without a box."""

    @property
    def is_right(self) -> bool:
        """Whether it counts for Acc@0.5."""
        return self.iou >= MATCH_IOU - _TIE

    def to_json(self) -> dict[str, Any]:
        """One line of a predictions file."""
        expression = self.expression
        return {
            "expression_id": expression.expression_id,
            "text": expression.text,
            "image": expression.image_path,
            "target_box_px": expression.target_box_px,
            "answer": self.answer,
            "predicted_box_unit": self.predicted_box_unit,
            "iou": self.iou,
        }


def judge_expression(
    expression: Expression,
    answer: str,
    *,
    thinking: bool,
    frame: CoordinateFrame,
    model_image_size_px: tuple[int, int],
) -> JudgedExpression:
    """Take the first box of an answer; without one, the answer is wrong.

    Args:
        expression: what was asked.
        answer: what the policy wrote.
        thinking: the policy must close its thinking with `</think>` before it answers.
        frame: coordinate convention of the policy's family.
        model_image_size_px: (width, height) after the policy's resize rule; used by `absolute_px`.
    """
    box = first_box(answer, thinking=thinking)
    if box is None:
        return JudgedExpression(expression, answer, None, 0.0)
    boxes = np.array([box])
    predicted = norm1000_to_unit(boxes) if frame == "norm1000" else px_to_unit(boxes, model_image_size_px)
    target = px_to_unit(np.array([expression.target_box_px]), expression.image_size_px)
    x_min, y_min, x_max, y_max = predicted[0].tolist()
    return JudgedExpression(
        expression, answer, (x_min, y_min, x_max, y_max), float(iou_matrix(predicted, target)[0, 0])
    )


def first_box(answer: str, *, thinking: bool) -> tuple[float, float, float, float] | None:
    """The first box that is written after the thinking, as it is written.

    The first list of numbers must be the box: four finite numbers with x_min < x_max and y_min < y_max. A malformed
    one is not passed over for a later one.
    """
    _, closed, said = answer.rpartition(END_OF_THINKING)
    found = _FIRST_LIST.search(said)
    if found is None or (thinking and not closed):
        return None
    try:
        numbers = json.loads(found.group(), parse_int=float)
    except ValueError:
        return None
    if len(numbers) != 4 or any(type(value) is not float or not math.isfinite(value) for value in numbers):
        return None
    x_min, y_min, x_max, y_max = numbers
    return (x_min, y_min, x_max, y_max) if x_min < x_max and y_min < y_max else None


def grounding_figures(judged: Sequence[JudgedExpression]) -> dict[str, Any]:
    """Acc@0.5 with its 95 % bootstrap interval, and what stands behind it.

    Args:
        judged: every expression of a split, at least one.

    Returns:
        `acc_50`, its `interval` over pictures (expressions of one picture are drawn together; None for one
        picture), `mean_iou`, `read_rate`
        (answers with a box) and the counts.
    """
    images = list(dict.fromkeys(one.expression.image_path for one in judged))
    rows = {path: row for row, path in enumerate(images)}
    right, asked = np.zeros(len(images)), np.zeros(len(images))
    for one in judged:
        right[rows[one.expression.image_path]] += one.is_right
        asked[rows[one.expression.image_path]] += 1
    interval = percentile_intervals(lambda drawn: (drawn @ right / (drawn @ asked))[None], len(images))
    return {
        "acc_50": float(right.sum() / asked.sum()),
        "interval": None if interval is None else [float(interval[0][0]), float(interval[1][0])],
        "mean_iou": float(np.mean([one.iou for one in judged])),
        "read_rate": float(np.mean([one.predicted_box_unit is not None for one in judged])),
        "expressions": len(judged),
        "images": len(images),
    }
