"""How well greedy answers find the changes, averaged over pairs.

Every figure is a mean over pairs (macro), so each pair weighs the same whatever its number of changes; F1 of a pair
is what the reward term `box_f1` pays. An answer that cannot be read counts as no boxes, and is wrong even for a pair
without changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dig_rl.boxes import assign

# Fixed, so that runs with other matching costs in their reward stay comparable.
_COST_L1 = 5.0
_COST_GIOU = 2.0

IOU_TOLERANCE = 1e-9
"""An IoU this little below a threshold reaches it; without, rounding decides about exact ties."""

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
"""COCO's ten thresholds, 0.5 to 0.95."""

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


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer beside the truth: all that any figure but average precision needs."""

    is_readable: bool
    num_predicted: int
    """N; 0 for an answer that could not be read."""
    iou_of_true: tuple[float, ...]
    """IoU of each of the M true boxes with the box assigned to it, in the order of the true boxes; 0 where none is."""

    @property
    def num_true(self) -> int:
        """M."""
        return len(self.iou_of_true)

    def is_found(self, match_iou: float) -> tuple[bool, ...]:
        """Which of the M true boxes are found at this threshold."""
        return tuple(iou >= match_iou - IOU_TOLERANCE for iou in self.iou_of_true)


def judge_answer(predicted_unit: np.ndarray | None, target_unit: np.ndarray) -> JudgedAnswer:
    """Assign the boxes of one answer to the true ones.

    Args:
        predicted_unit: `[N, 4]` in [0, 1], or None where the answer could not be read.
        target_unit: `[M, 4]` in [0, 1].
    """
    iou_of_true = [0.0] * len(target_unit)
    if predicted_unit is None:
        return JudgedAnswer(False, 0, tuple(iou_of_true))
    for _, target, iou in assign(predicted_unit, target_unit, _COST_L1, _COST_GIOU):
        iou_of_true[target] = iou
    return JudgedAnswer(True, len(predicted_unit), tuple(iou_of_true))


def pair_figures(predicted_unit: np.ndarray | None, target_unit: np.ndarray, match_iou: float) -> PairFigures:
    """Figures of one pair: `answer_figures` of `judge_answer`."""
    return answer_figures(judge_answer(predicted_unit, target_unit), match_iou)


def answer_figures(judged: JudgedAnswer, match_iou: float) -> PairFigures:
    """Figures of one answer.

    With n boxes found of N predicted and M true: precision n / N, recall n / M, F1 2n / (N + M), mean IoU the sum of
    IoU over assigned boxes divided by max(N, M). Where nothing was predicted or nothing is true (a division by 0), a
    figure is 1 if the answer was read and N = M = 0, else 0. `count_accuracy` is 1 if N = M, `parse_rate` if the
    answer was read.

    Args:
        judged: the answer.
        match_iou: IoU from which an assigned box counts as found, in (0, 1].
    """
    num_predicted, num_true = judged.num_predicted, judged.num_true
    num_found = sum(judged.is_found(match_iou))
    rightly_empty = float(judged.is_readable and num_predicted == num_true == 0)

    def share(part: float, whole: int) -> float:
        return part / whole if whole else rightly_empty

    return {
        "f1": share(2 * num_found, num_predicted + num_true),
        "mean_iou": share(sum(judged.iou_of_true), max(num_predicted, num_true)),
        "precision": share(num_found, num_predicted),
        "recall": share(num_found, num_true),
        "count_accuracy": float(judged.is_readable and num_predicted == num_true),
        "parse_rate": float(judged.is_readable),
    }


def pair_f1(predicted_unit: np.ndarray | None, target_unit: np.ndarray, match_iou: float) -> float:
    """F1 of one pair, as in `pair_figures`."""
    return pair_figures(predicted_unit, target_unit, match_iou)["f1"]
