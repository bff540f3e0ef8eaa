"""Pictures and scenes that occur twice: within a split they waste space, across splits the test knows the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dig_rl.data import METADATA_NAME
from dig_rl.inspection.findings import Finding
from dig_rl.inspection.pairs import PairExamination

NEAR_RMS = 2.0
"""Thumbnails nearer than this, in levels of 255, show the same picture; one changed object moves them further, and
unrelated scenes of one recipe are some 20 apart."""
MAX_NEAR_PAIRS = 6000
"""Near duplicates are searched among this many pairs at most: every picture is compared with every other."""
_BLOCK = 1024


class DuplicateFigures(NamedTuple):
    """How many pairs repeat something of an earlier one."""

    pictures: int
    scenes: int
    seeds: int
    near: int | None
    """Nearly equal reference pictures; None where there were too many pairs to compare."""


def find_duplicates(pairs: Sequence[PairExamination]) -> tuple[list[Finding], DuplicateFigures]:
    """Compare every pair with the ones before it, and name each repetition once, at the later pair.

    Equal pictures or scenes in two splits are errors; within a split, and near duplicates, warnings.
    """
    pictures = list(_repeats("the same picture as", ((pair, _digests(pair)) for pair in pairs)))
    scenes = list(_repeats("the same scene as", ((pair, _scene_digests(pair)) for pair in pairs)))
    seeds = list(_repeats("the same seed as", ((pair, _seed(pair)) for pair in pairs), severe=False))
    known = {(finding.line, finding.pair_id) for finding in pictures}
    near = None
    if len(pairs) <= MAX_NEAR_PAIRS:
        near = [finding for finding in _near(pairs) if (finding.line, finding.pair_id) not in known]
    figures = DuplicateFigures(len(pictures), len(scenes), len(seeds), None if near is None else len(near))
    return [*pictures, *scenes, *seeds, *(near or [])], figures


def _repeats(
    what: str, keyed: Iterable[tuple[PairExamination, Iterable[str]]], *, severe: bool = True
) -> Iterator[Finding]:
    first: dict[str, PairExamination] = {}
    for pair, keys in keyed:
        earlier = next((first[key] for key in keys if key in first), None)
        if earlier is not None:
            yield _finding(pair, earlier, what, severe)
        for key in keys:
            first.setdefault(key, pair)


def _finding(pair: PairExamination, earlier: PairExamination, what: str, severe: bool) -> Finding:
    across = pair.record.split != earlier.record.split
    where = f"{earlier.record.pair_id} (line {earlier.line}, split {earlier.record.split})"
    consequence = f"; this pair is in split {pair.record.split}, so one leaks into the other" if across else ""
    return Finding(
        severity="error" if severe and across else "warning",
        problem=f"{what} in pair {where}{consequence}",
        file=METADATA_NAME,
        line=pair.line,
        pair_id=pair.record.pair_id,
    )


def _digests(pair: PairExamination) -> list[str]:
    return [picture.digest for picture in pair.pictures or ()]


def _scene_digests(pair: PairExamination) -> list[str]:
    return list(pair.scenes.digests) if pair.scenes else []


def _seed(pair: PairExamination) -> list[str]:
    return [] if pair.record.seed is None else [str(pair.record.seed)]


def _near(pairs: Sequence[PairExamination]) -> Iterator[Finding]:
    shown = [pair for pair in pairs if pair.pictures]
    if not shown:
        return
    values = np.stack([pair.pictures[0].thumbnail for pair in shown if pair.pictures]).reshape(len(shown), -1)
    values = values.astype(np.float32)
    values -= values.mean(axis=0)  # differences stay, rounding of the products below shrinks
    squares = np.einsum("nd,nd->n", values, values)
    limit = NEAR_RMS**2 * values.shape[1]
    for start in range(0, len(shown), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squares[block, None] + squares[None] - 2 * values[block] @ values.T
        for row in range(len(distances)):
            later = start + row
            close = np.flatnonzero(distances[row, :later] <= limit)
            if len(close):
                yield _finding(shown[later], shown[int(close[0])], "nearly the same reference picture as", severe=False)
