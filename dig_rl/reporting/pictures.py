"""Held-out pairs with true and predicted boxes, before and after training, ready to be drawn in HTML."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from dig_rl import boxes
from dig_rl.durable import json_lines
from dig_rl.image_files import read_stored

MAX_PAIRS = 8
_MAX_SIDE_PX = 480
"""Larger images are shrunk before they are embedded."""
_MAX_BYTES = 90_000
"""Of an embedded image; one that needs more (noise does) is shrunk further, so that a page stays small."""
_MAX_TEXT = 400
_GALLERY_PAIRS = 4

Verdict = Literal["found", "missed", "matched", "spurious"]
"""A true box is found or missed, a predicted one matched or spurious."""


class MatchRule(NamedTuple):
    """When a predicted box counts as right."""

    match_iou: float
    """Least IoU with the true box it is assigned to."""
    cost_l1: float
    """Weight of the L1 distance in the assignment."""
    cost_giou: float
    """Weight of 1 - GIoU in the assignment."""


@dataclass(frozen=True)
class DrawnBox:
    """One rectangle on both pictures of a pair."""

    box_px: tuple[float, float, float, float]
    """xyxy in pixels of the stored image."""
    verdict: Verdict

    @property
    def rect(self) -> str:
        """Attributes of an SVG `rect`."""
        x_min, y_min, x_max, y_max = self.box_px
        return f'x="{x_min:g}" y="{y_min:g}" width="{x_max - x_min:g}" height="{y_max - y_min:g}"'


@dataclass(frozen=True)
class Answer:
    """What the policy said about a pair at one moment."""

    moment: str
    text: str
    status: str
    f1: float | None
    boxes: tuple[DrawnBox, ...]


@dataclass(frozen=True)
class PictureOfPair:
    """One pair with its answers."""

    pair_id: str
    size_px: tuple[int, int] | None
    """(width, height) of the stored images; None if they could not be read."""
    image_a: str
    """Data URI."""
    image_b: str
    problem: str | None
    """Why there are no images."""
    answers: tuple[Answer, ...]


class _Prediction(NamedTuple):
    """One line of a predictions file, checked."""

    pair_id: str
    image_a: str
    image_b: str
    text: str
    status: str
    f1: float | None
    predicted_boxes_px: np.ndarray
    target_boxes_px: np.ndarray


@dataclass(frozen=True)
class Gallery:
    """Pairs that were chosen by one rule."""

    title: str
    note: str
    """How they were chosen."""
    pictures: tuple[PictureOfPair, ...]


def galleries_of_pairs(heldout: Path, rule: MatchRule) -> tuple[list[Gallery], list[str]]:
    """Pairs spread over the file whatever the result, then the best, the worst and the most improved ones.

    Args:
        heldout: folder with `predictions_before.jsonl` and `predictions_after.jsonl`, either may be missing.
        rule: the one that the figures of the pairs were computed with.

    Returns:
        Galleries that have a pair, and one sentence for each file that is missing or damaged.
    """
    problems: list[str] = []
    by_moment: dict[str, dict[str, _Prediction]] = {}
    for moment in ("before", "after"):
        by_moment[moment], problem = _read_predictions(heldout / f"predictions_{moment}.jsonl")
        problems += [problem] if problem else []
    galleries = []
    for title, note, pair_ids in _choose(by_moment["before"], by_moment["after"]):
        pictures = []
        for pair_id in pair_ids:
            records = {moment: found[pair_id] for moment, found in by_moment.items() if pair_id in found}
            pictures.append(_picture(pair_id, records, rule))
        if pictures:
            galleries.append(Gallery(title, note, tuple(pictures)))
    return galleries, problems


def _choose(before: dict[str, _Prediction], after: dict[str, _Prediction]) -> list[tuple[str, str, list[str]]]:
    """(title, note, pair ids) of each gallery; equal pairs in the order of the file, those with more changes first."""
    known = list(after or before)
    spread = [known[index] for index in spread_over(len(known), MAX_PAIRS)]
    f1 = {pair_id: prediction.f1 for pair_id, prediction in after.items() if prediction.f1 is not None}
    gain = {pair_id: value - (before[pair_id].f1 or 0.0) for pair_id, value in f1.items() if pair_id in before}

    def first(scores: dict[str, float]) -> list[str]:
        ordered = sorted(scores, key=lambda pair_id: (-scores[pair_id], -len(after[pair_id].target_boxes_px)))
        return ordered[:_GALLERY_PAIRS]

    return [
        ("The same pairs, before and after", "Taken evenly from the held-out set, not by result.", spread),
        ("Best pairs", "Highest F1 after training.", first({key: value for key, value in f1.items() if value > 0})),
        (
            "Worst pairs",
            "Lowest F1 after training.",
            first({key: -value for key, value in f1.items() if value < 1}),
        ),
        (
            "Most improved pairs",
            "F1 rose most from before to after.",
            first({key: value for key, value in gain.items() if value > 0}),
        ),
    ]


def spread_over(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly spread, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def judge_boxes(
    predicted_px: Sequence[Sequence[float]] | np.ndarray,
    target_px: Sequence[Sequence[float]] | np.ndarray,
    size_px: tuple[int, int],
    rule: MatchRule,
) -> tuple[DrawnBox, ...]:
    """Say of each true box whether it was found and of each predicted one whether it is right, true boxes first."""
    scale = np.array([*size_px, *size_px], dtype=float)
    predicted = _as_boxes(predicted_px)
    target = _as_boxes(target_px)
    pairs = boxes.assign(predicted / scale, target / scale, rule.cost_l1, rule.cost_giou)
    right = [(i, j) for i, j, iou in pairs if iou >= rule.match_iou - 1e-9]
    matched, found = {i for i, _ in right}, {j for _, j in right}
    true_boxes = [DrawnBox(tuple(box), "found" if j in found else "missed") for j, box in enumerate(target.tolist())]
    answered = [
        DrawnBox(tuple(box), "matched" if i in matched else "spurious") for i, box in enumerate(predicted.tolist())
    ]
    return (*true_boxes, *answered)


def _read_predictions(path: Path) -> tuple[dict[str, _Prediction], str | None]:
    try:
        predictions = [_checked(json.loads(line)) for line in json_lines(path.read_bytes())]
    except FileNotFoundError:
        return {}, f"{path.name} is not there: no held-out pictures from that moment."
    except (ValueError, KeyError, TypeError) as error:
        return {}, f"{path.name} is damaged ({error!r}): no held-out pictures from that moment."
    return {prediction.pair_id: prediction for prediction in predictions}, None


def _checked(record: dict[str, Any]) -> _Prediction:
    return _Prediction(
        **{key: str(record[key]) for key in ("pair_id", "image_a", "image_b", "text", "status")},
        f1=None if record["f1"] is None else float(record["f1"]),
        predicted_boxes_px=_as_boxes(record["predicted_boxes_px"]),
        target_boxes_px=_as_boxes(record["target_boxes_px"]),
    )


def _as_boxes(boxes_px: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    return np.asarray(boxes_px, dtype=float).reshape(-1, 4)


def _picture(pair_id: str, predictions: dict[str, _Prediction], rule: MatchRule) -> PictureOfPair:
    any_prediction = next(iter(predictions.values()))
    try:
        size_px, image_a = embed_image(Path(any_prediction.image_a))
        _, image_b = embed_image(Path(any_prediction.image_b))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return PictureOfPair(pair_id, None, "", "", f"the images cannot be shown: {error}", ())
    answers = []
    for moment, answer in predictions.items():
        drawn = judge_boxes(answer.predicted_boxes_px, answer.target_boxes_px, size_px, rule)
        answers.append(Answer(moment, answer.text[:_MAX_TEXT], answer.status, answer.f1, drawn))
    return PictureOfPair(pair_id, size_px, image_a, image_b, None, tuple(answers))


def embed_image(path: Path) -> tuple[tuple[int, int], str]:
    """(width, height) of the stored image, and the image as a data URI: PNG if small, else a JPEG, shrunk to fit.

    Raises:
        OSError, ValueError, Image.DecompressionBombError: the image cannot be read.
    """
    image = read_stored(path)
    size_px = image.size
    if max(size_px) <= _MAX_SIDE_PX // 2 and len(encoded := _encode(image, "PNG")) <= _MAX_BYTES:
        return size_px, f"data:image/png;base64,{encoded}"
    for side, quality in ((_MAX_SIDE_PX, 85), (_MAX_SIDE_PX * 2 // 3, 70), (_MAX_SIDE_PX // 3, 50)):
        image.thumbnail((side, side))
        encoded = _encode(image, "JPEG", quality=quality)
        if len(encoded) <= _MAX_BYTES:
            break
    return size_px, f"data:image/jpeg;base64,{encoded}"


def _encode(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()
