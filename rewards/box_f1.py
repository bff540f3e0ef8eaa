"""F1 term: how many of the true boxes were found, and how many boxes were written in vain."""

from typing import Annotated

from pydantic import Field

from dig_rl.types import RewardInput


def box_f1(item: RewardInput, *, match_iou: Annotated[float, Field(ge=0, le=1)] = 0.5) -> float:
    """F1 of the assigned pairs whose IoU reaches `match_iou`: 2 * matched / (N + M), in [0, 1].

    With `match_iou = 0` every assigned pair counts, as the paper's text reads; F1 then measures the number of boxes
    alone, and random boxes of the right number are paid in full.

    Source: DiG (arXiv 2512.12633), r_acc; the threshold is ours.
    """
    if item.predicted_boxes_unit is None or not item.assignment:
        return 0.0
    # Without the slack, an IoU of exactly the threshold falls below it in about half of all cases.
    matched = sum(iou >= match_iou - 1e-9 for _, _, iou in item.assignment)
    return 2.0 * matched / (len(item.predicted_boxes_unit) + len(item.target_boxes_unit))
