"""How well greedy answers find the changes, averaged over pairs.

Every figure is a mean over pairs (macro), so each pair weighs the same whatever its number of changes; F1 of a pair
is what the reward term `box_f1` pays. An answer that cannot be read counts as no boxes, and is wrong even for a pair
without changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dig_rl.boxes import assign

# Fixed, so that runs with other matching costs in their reward stay comparable.
_COST_L1 = 5.0
_COST_GIOU = 2.0

PairFigures = dict[str, float]
"""`f1`, `mean_iou`, `precision`, `recall`, `count_accuracy` and `parse_rate` of one pair, each in [0, 1]."""


def detection_metrics(answers: Sequence[tuple[np.ndarray | None, np.ndarray]], match_iou: float) -> dict[str, float]:
    """Figures of a held-out set.

    Args:
        answers: (predicted `[N, 4]` in [0, 1], or None where the answer could not be read; true `[M, 4]`) of each pair.
        match_iou: IoU from which an assigned box counts as found, in (0, 1].

    Returns:
        The means of `pair_figures` over all pairs, and `pairs`, their number.

    Raises:
        ValueError: there are no pairs.
    """
    if not answers:
        raise ValueError("detection metrics need at least one answered pair, found none")
    figures = [pair_figures(predicted, target, match_iou) for predicted, target in answers]
    means = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
    return means | {"pairs": len(answers)}


def pair_figures(predicted_unit: np.ndarray | None, target_unit: np.ndarray, match_iou: float) -> PairFigures:
    """Figures of one pair.

    With n boxes found of N predicted and M true: precision n / N, recall n / M, F1 2n / (N + M), mean IoU the sum of
    IoU over assigned boxes divided by max(N, M). Where nothing was predicted or nothing is true (a division by 0), a
    figure is 1 if the answer was read and N = M = 0, else 0. `count_accuracy` is 1 if N = M, `parse_rate` if the
    answer was read.

    Args:
        predicted_unit: `[N, 4]` in [0, 1], or None where the answer could not be read.
        target_unit: `[M, 4]` in [0, 1].
        match_iou: IoU from which an assigned box counts as found, in (0, 1].
    """
    num_predicted = 0 if predicted_unit is None else len(predicted_unit)
    num_target = len(target_unit)
    assignment = () if predicted_unit is None else assign(predicted_unit, target_unit, _COST_L1, _COST_GIOU)
    num_found = sum(iou >= match_iou - 1e-9 for _, _, iou in assignment)
    rightly_empty = float(predicted_unit is not None and num_predicted == num_target == 0)

    def share(part: float, whole: int) -> float:
        return part / whole if whole else rightly_empty

    return {
        "f1": share(2 * num_found, num_predicted + num_target),
        "mean_iou": share(sum(iou for _, _, iou in assignment), max(num_predicted, num_target)),
        "precision": share(num_found, num_predicted),
        "recall": share(num_found, num_target),
        "count_accuracy": float(predicted_unit is not None and num_predicted == num_target),
        "parse_rate": float(predicted_unit is not None),
    }


def pair_f1(predicted_unit: np.ndarray | None, target_unit: np.ndarray, match_iou: float) -> float:
    """F1 of one pair, as in `pair_figures`."""
    return pair_figures(predicted_unit, target_unit, match_iou)["f1"]
