"""IoU term: how well the boxes sit."""

from typing import Literal

from dig_rl.types import RewardInput


def box_iou(item: RewardInput, *, iou_reduction: Literal["union_count", "matched"] = "union_count") -> float:
    """Sum of IoU over all assigned pairs, divided by a count, in [0, 1].

    `union_count` divides by max(N, M), so a missed or surplus box counts as an IoU of 0. `matched` divides by
    min(N, M), the paper's mean; it pays one exact box of four as much as all four.

    Source: DiG (arXiv 2512.12633), r_acc; `union_count` is ours.
    """
    if item.predicted_boxes_unit is None or not item.assignment:
        return 0.0
    counts = len(item.predicted_boxes_unit), len(item.target_boxes_unit)
    return sum(iou for _, _, iou in item.assignment) / (max(counts) if iou_reduction == "union_count" else min(counts))
