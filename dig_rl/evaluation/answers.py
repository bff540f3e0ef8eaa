"""Answers on disk and beside the truth: one JSON line each, so that figures can be made again without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dig_rl.boxes import px_to_unit
from dig_rl.data import load_examples, read_records
from dig_rl.durable import json_lines, write_durably
from dig_rl.errors import DataError
from dig_rl.evaluation.detection import JudgedAnswer, judge_answer
from dig_rl.evaluation.subset import representative_pairs
from dig_rl.types import BoxTarget, Example, ParseStatus

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Box = tuple[_Number, _Number, _Number, _Number]
_SAME_BOX_PX = 1e-6
_NAMED = 3


class StoredAnswer(BaseModel):
    """One line of a predictions file. Only the fields without a default are needed to compute figures."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    pair_id: str
    sample: int = Field(0, ge=0)
    """Number of the answer among those of its pair."""
    image_a: str = ""
    image_b: str = ""
    text: str = ""
    """What the policy wrote."""
    status: ParseStatus
    predicted_boxes_px: tuple[_Box, ...]
    """N boxes in the order written, pixels of the stored image, xyxy; none unless the status is `ok`."""
    target_boxes_px: tuple[_Box, ...]
    """M true boxes that the answer was meant to give."""
    f1: float | None = None
    """F1 of this answer at the threshold it was first judged with."""
    mean_logprob: float | None = Field(None, allow_inf_nan=False)
    """Mean natural-log probability of the answer's tokens; orders answers for average precision."""
    num_tokens: int | None = Field(None, ge=0)

    @property
    def is_readable(self) -> bool:
        """Whether the answer was a list of boxes, an empty one included."""
        return self.status in ("ok", "empty")

    def boxes_unit(self, image_size_px: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray]:
        """Predicted boxes `[N, 4]` in [0, 1], None where the answer could not be read, and true ones `[M, 4]`."""
        predicted, target = (
            px_to_unit(_as_array(boxes), image_size_px) for boxes in (self.predicted_boxes_px, self.target_boxes_px)
        )
        return predicted if self.is_readable else None, target


@dataclass(frozen=True)
class TruePair:
    """One labelled pair with what figures are sliced by."""

    example: Example
    visible_fractions: tuple[float | None, ...]
    """Visible part of each of the M changed objects, the lesser of the images that show it; None where unknown."""


@dataclass(frozen=True)
class JudgedPair:
    """A pair and its S answers."""

    truth: TruePair
    answers: tuple[StoredAnswer, ...]
    judged: tuple[JudgedAnswer, ...]


def load_true_pairs(
    data_dir: str | Path, split: str | None, box_target: BoxTarget, max_pairs: int | None = None
) -> list[TruePair]:
    """Read one split of a data folder, pairs without changes included, or `max_pairs` that represent it.

    Raises:
        DataError: a label or an image is wrong, or the split is empty.
    """
    every = load_examples(data_dir, split, allow_no_change=True, box_target=box_target)
    examples = representative_pairs(every, max_pairs)
    records = {record.pair_id: record for _, record in read_records(Path(data_dir), allow_no_change=True)}
    pairs = []
    for example in examples:
        fractions = []
        for difference in records[example.pair_id].differences:
            sides = (
                (difference.box_a, difference.visible_fraction_a),
                (difference.box_b, difference.visible_fraction_b),
            )
            known = [fraction for box, fraction in sides if box is not None and fraction is not None]
            fractions.append(min(known, default=None))
        pairs.append(TruePair(example, tuple(fractions)))
    return pairs


def write_answers(path: Path, answers: Sequence[StoredAnswer]) -> None:
    """Write a predictions file, numbers unrounded, so that figures made from it are the same to the last digit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, "".join(answer.model_dump_json() + "\n" for answer in answers))


def read_answers(path: Path) -> list[StoredAnswer]:
    """Read a predictions file.

    Raises:
        DataError: it cannot be read, is empty, or a line is wrong; names the line.
    """
    try:
        lines = json_lines(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the predictions {path}: {error}; `make eval` writes such a file") from None
    if not lines:
        raise DataError(f"{path} holds no predictions; expected one JSON object a line")
    return [_parse_answer(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def judge_pairs(truths: Sequence[TruePair], answers: Sequence[StoredAnswer], source: str) -> list[JudgedPair]:
    """Put the answers beside the true pairs, in the order of the pairs.

    Args:
        truths: pairs, at least one.
        answers: the same number for every pair.
        source: what to call the answers in messages.

    Raises:
        DataError: answers to other pairs, pairs without answer, other true boxes, or numbers of answers that differ.
    """
    by_pair: dict[str, dict[int, StoredAnswer]] = {truth.example.pair_id: {} for truth in truths}
    strangers = [answer.pair_id for answer in answers if answer.pair_id not in by_pair]
    if strangers:
        _refuse(source, f"answers {_some(strangers)}, not among the {len(truths)} pairs asked for")
    for answer in answers:
        if answer.sample in by_pair[answer.pair_id]:
            _refuse(source, f"answers pair {answer.pair_id}, sample {answer.sample}, twice")
        by_pair[answer.pair_id][answer.sample] = answer
    missing = [pair_id for pair_id, found in by_pair.items() if not found]
    if missing:
        _refuse(source, f"lacks {_some(missing)} of the {len(truths)} pairs asked for")
    counts = Counter(len(found) for found in by_pair.values())
    if len(counts) > 1:
        found = ", ".join(f"{count} for {pairs} pairs" for count, pairs in sorted(counts.items()))
        _refuse(source, f"should hold as many answers for each pair, found {found}")
    return [_judge(truth, tuple(by_pair[truth.example.pair_id].values()), source) for truth in truths]


def _judge(truth: TruePair, answers: tuple[StoredAnswer, ...], source: str) -> JudgedPair:
    example = truth.example
    target_px = _as_array(example.target_boxes_px)
    judged = []
    for answer in answers:
        found_px = _as_array(answer.target_boxes_px)
        if found_px.shape != target_px.shape or np.abs(found_px - target_px).max(initial=0.0) > _SAME_BOX_PX:
            _refuse(
                source,
                f"says the true boxes of pair {example.pair_id} are {found_px.tolist()}, the data folder says "
                f"{target_px.tolist()}",
            )
        judged.append(judge_answer(*answer.boxes_unit(example.image_size_px)))
    return JudgedPair(truth, answers, tuple(judged))


def _parse_answer(line: bytes, where: str) -> StoredAnswer:
    try:
        answer = StoredAnswer.model_validate_json(line)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors())
        raise DataError(f"{where}: not a prediction ({problems})") from None
    if (answer.status == "ok") != bool(answer.predicted_boxes_px):
        raise DataError(
            f"{where}, pair {answer.pair_id}: status {answer.status} with {len(answer.predicted_boxes_px)} boxes; "
            "boxes belong to the status ok, and only to it"
        )
    for box in (*answer.predicted_boxes_px, *answer.target_boxes_px):
        if box[0] > box[2] or box[1] > box[3]:
            raise DataError(f"{where}, pair {answer.pair_id}: box {list(box)} is not x_min, y_min, x_max, y_max")
    return answer


def _as_array(boxes_px: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(boxes_px, dtype=np.float64).reshape(-1, 4)


def _some(pair_ids: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(pair_ids))
    more = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
    return ", ".join(distinct[:_NAMED]) + more


def _refuse(source: str, problem: str) -> NoReturn:
    raise DataError(
        f"{source} {problem}; name the data folder, split, box target and evaluation.max_pairs that the answers were "
        "given to, or make them anew with `make eval CHECKPOINT=`"
    )
