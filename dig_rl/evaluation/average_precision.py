"""COCO average precision of answers, for reweighted pairs.

Boxes are matched by pycocotools. Its summing up is written again with a weight for each pair, so that a thousand
resamples do not match the same boxes a thousand times; with weights of 1 the result is pycocotools' own. Copies
of an answer that was drawn twice are taken box by box.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dig_rl.evaluation.answers import JudgedPair
from dig_rl.evaluation.detection import IOU_THRESHOLDS, IOU_TOLERANCE

_RECALL_POINTS = np.linspace(0.0, 1.0, 101)
_CATEGORY = 1


class AveragePrecision:
    """Matched boxes of all answers, in descending order of score.

    A policy writes boxes without scores. Every box takes its answer's mean token log-probability, or the same score
    where any answer has none; ties keep the order of the pairs, and within an answer the order written.
    """

    def __init__(self, pairs: Sequence[JudgedPair]) -> None:
        rows = list(_rows(pairs))
        images = [image for _, image in rows]
        self._pair_of_answer = np.array([pair for pair, _ in rows])
        self._num_true_A = np.array([len(image["true"]) for image in images], dtype=float)
        matched, scores, owners = _match(images)
        order = np.argsort(-scores, kind="stable")
        self._is_true_positive_TD = matched[:, order]
        self._answer_of_box_D = owners[order]

    @property
    def is_defined(self) -> bool:
        """Whether there is any true box."""
        return bool(self._num_true_A.any())

    def of_weights(self, counts_BP: np.ndarray) -> np.ndarray:
        """Mean over IoU 0.5 to 0.95, and at 0.5, of pairs that count so many times: `[2, B]` in [0, 1].

        A resample without any true box, which has no average precision, gives 0.
        """
        precisions_BT = np.array([self._by_threshold(counts) for counts in counts_BP[:, self._pair_of_answer]])
        return np.stack([precisions_BT.mean(axis=1), precisions_BT[:, 0]])

    def _by_threshold(self, counts_A: np.ndarray) -> np.ndarray:
        num_true = self._num_true_A @ counts_A
        num_thresholds = len(self._is_true_positive_TD)
        weights_D = counts_A[self._answer_of_box_D].astype(float)
        total_D = weights_D.cumsum()
        if not num_true or not len(total_D) or not total_D[-1]:
            return np.zeros(num_thresholds)
        right_TD = (self._is_true_positive_TD * weights_D).cumsum(axis=1)
        precision_TD = right_TD / np.maximum(total_D, 1.0)
        # Precision at a recall is the best one at that recall or any higher one.
        envelope_TD = np.maximum.accumulate(precision_TD[:, ::-1], axis=1)[:, ::-1]
        padded_TD = np.pad(envelope_TD, ((0, 0), (0, 1)))
        recall_TD = right_TD / num_true
        return np.array(
            [
                padded[np.searchsorted(recall, _RECALL_POINTS)].mean()
                for padded, recall in zip(padded_TD, recall_TD, strict=True)
            ]
        )


def _rows(pairs: Sequence[JudgedPair]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(pair index, its true boxes, predicted boxes and score) of each answer."""
    has_scores = all(answer.mean_logprob is not None for pair in pairs for answer in pair.answers)
    for index, pair in enumerate(pairs):
        for answer in pair.answers:
            true = pair.truth.example.target_boxes_px
            score = answer.mean_logprob if has_scores else 1.0
            yield index, {"true": true, "predicted": answer.predicted_boxes_px, "score": score}


def _match(images: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match with pycocotools: whether each of D boxes is right `[T, D]`, its score `[D]`, its answer `[D]`."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        matching = COCOeval(_dataset(images, "true"), _dataset(images, "predicted"), "bbox")
        matching.params.iouThrs = IOU_THRESHOLDS - IOU_TOLERANCE
        matching.params.areaRng, matching.params.areaRngLbl = [[0, np.inf]], ["all"]
        matching.params.maxDets = [max(1, *(len(image["predicted"]) for image in images), 1)]
        matching.evaluate()
    matched = [np.zeros((len(IOU_THRESHOLDS), 0), dtype=bool)]
    scores, owners = [np.zeros(0)], [np.zeros(0, dtype=int)]
    for answer, found in enumerate(matching.evalImgs):
        if found is not None:  # None: neither true nor predicted boxes
            matched.append(found["dtMatches"] > 0)
            scores.append(np.array(found["dtScores"]))
            owners.append(np.full(len(found["dtScores"]), answer))
    return np.concatenate(matched, axis=1), np.concatenate(scores), np.concatenate(owners)


def _dataset(images: Sequence[dict[str, Any]], kind: str) -> COCO:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        for x_min, y_min, x_max, y_max in image[kind]:
            width, height = x_max - x_min, y_max - y_min
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes a match with id 0 for none
                    "image_id": number,
                    "category_id": _CATEGORY,
                    "bbox": [x_min, y_min, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": image["score"],
                }
            )
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": _CATEGORY}],
        "annotations": annotations,
    }
    dataset.createIndex()
    return dataset
