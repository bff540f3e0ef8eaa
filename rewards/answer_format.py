"""Format term: the answer is a valid, non-empty list of boxes."""

from dig_rl.types import RewardInput


def answer_format(item: RewardInput) -> float:
    """1 for a valid, non-empty list of boxes, else 0.

    Source: DiG (arXiv 2512.12633), r_format.
    """
    return float(item.status == "ok")
