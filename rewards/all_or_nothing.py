"""All-or-nothing term: the sparse form of F1, to see what a curriculum is worth where reward is rare."""

from typing import Annotated

from pydantic import Field

from dig_rl.types import RewardInput


def all_or_nothing(item: RewardInput, *, match_iou: Annotated[float, Field(ge=0, le=1)] = 0.5) -> float:
    """1 if every change is boxed with an IoU of at least `match_iou` and no box is left over, else 0.

    The same answers earn 1 from `box_f1`; all others earn nothing here, however close they come.
    """
    if item.predicted_boxes_unit is None or len(item.predicted_boxes_unit) != len(item.target_boxes_unit):
        return 0.0
    # Without the slack, an IoU of exactly the threshold falls below it in about half of all cases.
    return float(all(iou >= match_iou - 1e-9 for _, _, iou in item.assignment))
