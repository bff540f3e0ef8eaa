"""What the answers of a step look like, whatever the reward says: the figures that alarms watch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from dig_rl.boxes import assign, iou_matrix, px_to_unit
from dig_rl.types import RolloutGroup, Score

MATCH_IOU = 0.5
"""Fixed, so that runs with different rewards can be compared."""
_COST_L1, _COST_GIOU = 5.0, 2.0
WHOLE_IMAGE_AREA = 0.7
"""A box over this share of the image points at nothing."""
SAME_BOX_IOU = 0.9
"""Two boxes that overlap like this are one box written twice."""
_MAX_COMPARED = 64
"""Pairs whose answers are compared with one another: the work grows with the square."""


def summarise_answers(groups: Sequence[RolloutGroup], *, thinking: bool) -> dict[str, float]:
    """Figures of one step's sampled answers.

    Args:
        groups: every group of the step.
        thinking: the policy thinks before it answers.

    Returns:
        `answers/<figure>` as in `dig_rl.metrics.METRICS`. A figure is left out where no answer of the step could show
        it: no readable answer, no pair with two changes, the same number of changes in every pair.
    """
    scored = [(group, score) for group in groups for score in group.scored]
    answered = [(group, score) for group, score in scored if score.status in ("ok", "empty")]
    several = [score for group, score in answered if group.sampled.example.num_differences > 1]
    figures = {
        "answers/f1": _mean(_f1(group, score) for group, score in scored),
        "answers/boxes": _mean(len(score.boxes_unit) for _, score in answered),
        "answers/whole_image_frac": _mean(_has_whole_image(score) for _, score in answered),
        "answers/duplicate_frac": _duplicate_frac([score for _, score in answered]),
        "answers/one_box_frac": _mean(len(score.boxes_unit) == 1 for score in several),
        "answers/same_count_excess": _same_count_excess(answered),
        "answers/same_box_frac": _same_box_frac(groups),
    }
    if scored:
        figures["answers/readable_minus_f1"] = len(answered) / len(scored) - figures["answers/f1"]
    if thinking:
        texts = [completion.text for group in groups for completion in group.sampled.completions]
        figures["answers/thinking_characters"] = _mean(len(text.rpartition("</think>")[0]) for text in texts)
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _mean(values: Iterator[float]) -> float:
    found = [float(value) for value in values]
    return math.fsum(found) / len(found) if found else math.nan


def _f1(group: RolloutGroup, score: Score) -> float:
    example = group.sampled.example
    total = len(score.boxes_unit) + example.num_differences
    if not total:
        return float(score.status == "empty")
    target_unit = px_to_unit(np.array(example.target_boxes_px).reshape(-1, 4), example.image_size_px)
    found = assign(_as_array(score), target_unit, _COST_L1, _COST_GIOU)
    return 2 * sum(iou >= MATCH_IOU - 1e-9 for _, _, iou in found) / total


def _has_whole_image(score: Score) -> bool:
    return any((x1 - x0) * (y1 - y0) >= WHOLE_IMAGE_AREA for x0, y0, x1, y1 in score.boxes_unit)


def _duplicate_frac(scores: Sequence[Score]) -> float:
    """Boxes that repeat an earlier box of their answer, among all boxes."""
    repeated = total = 0
    for score in scores:
        boxes = _as_array(score)
        total += len(boxes)
        if len(boxes) > 1:
            repeated += int(np.tril(iou_matrix(boxes, boxes) >= SAME_BOX_IOU, k=-1).any(axis=1).sum())
    return repeated / total if total else math.nan


def _same_count_excess(answered: Sequence[tuple[RolloutGroup, Score]]) -> float:
    """Share of answers with the most common number of boxes, beyond the share that the truth itself would give."""
    true_counts = Counter(group.sampled.example.num_differences for group, _ in answered)
    if len(true_counts) < 2:
        return math.nan
    counts = Counter(len(score.boxes_unit) for _, score in answered)
    return (counts.most_common(1)[0][1] - true_counts.most_common(1)[0][1]) / len(answered)


def _same_box_frac(groups: Sequence[RolloutGroup]) -> float:
    """Mean over boxes of the share of other pairs that were answered with nearly the same box; one answer a pair."""
    first = [next((score for score in group.scored if score.boxes_unit), None) for group in groups]
    answers = [_as_array(score) for score in first if score is not None][:_MAX_COMPARED]
    if len(answers) < 2:
        return math.nan
    boxes, pair = np.concatenate(answers), np.repeat(np.arange(len(answers)), [len(answer) for answer in answers])
    rows, columns = np.nonzero(iou_matrix(boxes, boxes) >= SAME_BOX_IOU)
    shared_with = {(row, other) for row, other in zip(rows.tolist(), pair[columns].tolist(), strict=True)}
    own = sum(other == pair[row] for row, other in shared_with)
    return (len(shared_with) - own) / (len(boxes) * (len(answers) - 1))


def _as_array(score: Score) -> np.ndarray:
    return np.array(score.boxes_unit, dtype=np.float64).reshape(-1, 4)
