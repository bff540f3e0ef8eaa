"""Count term: how far off the number of boxes is."""

from dig_rl.types import RewardInput


def count_error(item: RewardInput) -> float:
    """1 - |N - M| / max(N, M), in [0, 1]: 1 for as many boxes as changes, wherever they sit.

    Boxes that hit nothing are paid in full if they are as many as the changes, so give it a small weight.
    """
    if item.predicted_boxes_unit is None:
        return 0.0
    counts = len(item.predicted_boxes_unit), len(item.target_boxes_unit)
    return min(counts) / max(counts)
