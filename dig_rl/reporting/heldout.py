"""The held-out answers of a run as figures with intervals, from its folder alone: the data may be elsewhere by now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dig_rl.errors import DataError
from dig_rl.evaluation.answers import JudgedPair, StoredAnswer, TruePair, read_answers
from dig_rl.evaluation.comparison import Difference, compare
from dig_rl.evaluation.detection import judge_answer
from dig_rl.evaluation.figures import Estimate, estimate
from dig_rl.image_files import stored_size
from dig_rl.types import Example

HELDOUT_LABELS = {
    "f1": "F1",
    "mean_iou": "mean IoU",
    "precision": "precision",
    "recall": "recall",
    "count_accuracy": "right number of boxes",
    "parse_rate": "readable answers",
}
"""Figures of `summary.json` in the order shown."""


def read_judged_pairs(heldout: Path, moment: str) -> list[JudgedPair]:
    """Answers of one moment (`before`, `after`) beside the truth that stands in the same file.

    Raises:
        DataError: the file, or an image that it names (for its size), cannot be read.
    """
    return [_judged(answer) for answer in read_answers(heldout / f"predictions_{moment}.jsonl")]


def intervals(pairs: Sequence[JudgedPair], match_iou: float) -> dict[str, Estimate]:
    """Figures of `HELDOUT_LABELS` with their bootstrap intervals."""
    found = estimate(pairs, match_iou, with_ap=False)
    return {name: found[name] for name in HELDOUT_LABELS}


def paired_differences(
    before: Sequence[JudgedPair], after: Sequence[JudgedPair], match_iou: float
) -> dict[str, Difference]:
    """Figures of `HELDOUT_LABELS` compared on the same pairs; empty where the pairs, or their true boxes, differ."""
    questions = [
        [(pair.truth.example.pair_id, pair.truth.example.target_boxes_px) for pair in pairs]
        for pairs in (before, after)
    ]
    if questions[0] != questions[1]:
        return {}
    return {row.name: row for row in compare(before, after, match_iou, with_ap=False) if row.name in HELDOUT_LABELS}


def _judged(answer: StoredAnswer) -> JudgedPair:
    try:
        size_px = stored_size(answer.image_a)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"pair {answer.pair_id}: image {answer.image_a or 'a'} cannot be read ({error})") from None
    target = answer.target_boxes_px
    example = Example(
        answer.pair_id, answer.image_a, answer.image_b, size_px, target, ("unknown",) * len(target), "heldout"
    )
    truth = TruePair(example, (None,) * len(target))
    return JudgedPair(truth, (answer,), (judge_answer(*answer.boxes_unit(size_px)),))
