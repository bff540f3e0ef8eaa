"""Does anything but the change give the answer away? Positions, sizes, kinds and counts, split by split.

Every check is a plain statistical test with a limit on the size of the effect as well: in a large folder the smallest
imbalance is significant, and only one that a policy could live on matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import stats

from dig_rl.data import Split
from dig_rl.inspection.pairs import PairExamination

Verdict = Literal["balanced", "look", "too few"]

SIGNIFICANT_P = 0.001
FEWEST_EXPECTED = 5.0
"""A chi-square test needs about so many expected in each cell."""
FEWEST_BOXES = 50
SPLITS = get_args(Split)


@dataclass(frozen=True)
class BalanceCheck:
    """One question and its answer."""

    question: str
    """Answered with yes where all is well."""
    figure: str
    """What was measured, in words."""
    verdict: Verdict
    effect: float | None
    """What the limit is put on; None where there was too little to measure."""
    limit: float
    p_value: float | None


@dataclass(frozen=True)
class ChangeTable:
    """The N changes of a folder as columns."""

    split: np.ndarray
    """`[N]` names."""
    kind: np.ndarray
    """`[N]` names."""
    pair: np.ndarray
    """`[N]` index of the pair, ascending."""
    count: np.ndarray
    """`[N]` number of changes of the pair."""
    boxes_unit: np.ndarray
    """`[N, 4]`, fractions of the image sides."""

    @property
    def centers_unit(self) -> np.ndarray:
        """`[N, 2]` (x, y) in [0, 1]."""
        return (self.boxes_unit[:, :2] + self.boxes_unit[:, 2:]) / 2

    @property
    def sides_unit(self) -> np.ndarray:
        """`[N]` square root of each box's share of the picture."""
        return np.sqrt(np.prod(self.boxes_unit[:, 2:] - self.boxes_unit[:, :2], axis=1))


def change_table(pairs: Sequence[PairExamination]) -> ChangeTable:
    """Collect the changes of all pairs, which must have sound labels."""
    rows = [
        (pair.record.split, item.kind, index, pair.record.num_differences, item.box, pair.record)
        for index, pair in enumerate(pairs)
        for item in pair.record.differences
    ]
    sides = np.array([[row[5].width, row[5].height] * 2 for row in rows], dtype=np.float64).reshape(-1, 4)
    return ChangeTable(
        split=np.array([row[0] for row in rows], dtype=str),
        kind=np.array([row[1] for row in rows], dtype=str),
        pair=np.array([row[2] for row in rows], dtype=np.int64),
        count=np.array([row[3] for row in rows], dtype=np.int64),
        boxes_unit=np.array([row[4] for row in rows], dtype=np.float64).reshape(-1, 4) / sides,
    )


def check_balance(pairs: Sequence[PairExamination]) -> list[BalanceCheck]:
    """Ask every question that the folder has enough to answer."""
    table = change_table(pairs)
    if not len(table.pair):
        return []
    return [
        _kinds_equal(table),
        *_kinds_alike(table),
        _left_right(table),
        *_alike_in_splits(table),
        _constant_box(table),
        _size_tells_count(table),
        *_scene_checks(pairs),
    ]


def coverage_map(table: ChangeTable, width: int = 48, height: int = 36) -> np.ndarray:
    """`[height, width]` share of pairs that have a change at each place."""
    columns, rows = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    x_min, y_min, x_max, y_max = table.boxes_unit.T[..., None]
    across, down = (x_min <= columns) & (columns < x_max), (y_min <= rows) & (rows < y_max)
    covered = np.zeros((height, width))
    _, starts = np.unique(table.pair, return_index=True)
    for mine in np.split(np.arange(len(table.pair)), starts[1:]):
        covered += (down[mine][:, :, None] & across[mine][:, None, :]).any(axis=0)
    return covered / len(starts)


def best_constant_box(table: ChangeTable, match_iou: float = 0.5, candidates: int = 300) -> tuple[np.ndarray, float]:
    """The one box that earns the most F1 when it is the answer to every pair.

    Args:
        table: the changes of the pairs to answer.
        match_iou: IoU from which a box counts.
        candidates: boxes of the folder to try, evenly spread.

    Returns:
        The box `[4]` in fractions of the sides, and its mean F1 over the pairs that have a change.
    """
    tried = table.boxes_unit[np.unique(np.linspace(0, len(table.pair) - 1, candidates).astype(int))]
    pairs, index = np.unique(table.pair, return_inverse=True)
    worth = 2.0 / (1.0 + table.count)
    means = []
    for box in tried:
        earned = np.zeros(len(pairs))
        np.maximum.at(earned, index, worth * (_iou(box, table.boxes_unit) >= match_iou - 1e-9))
        means.append(earned.mean())
    best = int(np.argmax(means))
    return tried[best], float(means[best])


def counts_by_split(pairs: Sequence[PairExamination]) -> dict[str, dict[str, int]]:
    """Pairs of each split by number of changes."""
    return _nested((pair.record.split, str(pair.record.num_differences)) for pair in pairs)


def kinds_by_split(pairs: Sequence[PairExamination]) -> dict[str, dict[str, int]]:
    """Changes of each split by kind."""
    return _nested((pair.record.split, item.kind) for pair in pairs for item in pair.record.differences)


def _nested(keys: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (outer, inner), number in sorted(
        Counter(keys).items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1])
    ):
        found.setdefault(outer, {})[inner] = number
    return found


def _verdict(effect: float, limit: float, p_value: float | None) -> Verdict:
    return "look" if effect > limit and (p_value is None or p_value < SIGNIFICANT_P) else "balanced"


def _kinds_equal(table: ChangeTable) -> BalanceCheck:
    question, limit = "Is every kind of change as frequent as the others?", 0.5
    kinds, counts = np.unique(table.kind[table.kind != "unknown"], return_counts=True)
    counts = np.where(kinds == "move", counts // 2, counts)  # a moved object is two differences
    if len(kinds) < 2 or counts.mean() < FEWEST_EXPECTED:
        return BalanceCheck(question, f"{len(kinds)} kinds in {counts.sum()} changes", "too few", None, limit, None)
    p_value = float(stats.chisquare(counts).pvalue)
    shares = counts / counts.mean()
    rarest, commonest = int(np.argmin(shares)), int(np.argmax(shares))
    figure = f"{kinds[rarest]} {shares[rarest]:.2f} and {kinds[commonest]} {shares[commonest]:.2f} of an equal share"
    effect = float(np.abs(shares - 1).max())
    return BalanceCheck(question, figure, _verdict(effect, limit, p_value), effect, limit, p_value)


def _kinds_alike(table: ChangeTable) -> Iterator[BalanceCheck]:
    if len(np.unique(table.split)) > 1:
        yield _independent("Are the kinds the same in every split?", table.split, table.kind, limit=0.2)


def _independent(question: str, rows: np.ndarray, columns: np.ndarray, limit: float) -> BalanceCheck:
    """Chi-square test of independence; the effect is Cramér's V: 0 for none, 1 where one name tells the other."""
    _, row_index = np.unique(rows, return_inverse=True)
    _, column_index = np.unique(columns, return_inverse=True)
    counts = np.zeros((row_index.max() + 1, column_index.max() + 1))
    np.add.at(counts, (row_index, column_index), 1)
    if min(counts.shape) < 2:
        return BalanceCheck(question, "nothing to compare", "too few", None, limit, None)
    test = stats.chi2_contingency(counts, correction=False)
    if test.expected_freq.min() < FEWEST_EXPECTED:
        return BalanceCheck(question, f"{int(counts.sum())} values", "too few", None, limit, None)
    effect = float(np.sqrt(test.statistic / counts.sum() / (min(counts.shape) - 1)))
    return BalanceCheck(
        question, f"Cramér's V {effect:.3f}", _verdict(effect, limit, test.pvalue), effect, limit, float(test.pvalue)
    )


def _left_right(table: ChangeTable) -> BalanceCheck:
    question, limit = "Are changes as often on the left as on the right?", 0.1
    left, total = int((table.centers_unit[:, 0] < 0.5).sum()), len(table.pair)
    if total < FEWEST_BOXES:
        return BalanceCheck(question, f"{total} boxes", "too few", None, limit, None)
    p_value, effect = float(stats.binomtest(left, total).pvalue), abs(left / total - 0.5)
    return BalanceCheck(
        question, f"{left / total:.0%} on the left", _verdict(effect, limit, p_value), effect, limit, p_value
    )


def _alike_in_splits(table: ChangeTable) -> Iterator[BalanceCheck]:
    others = [name for name in SPLITS[1:] if name in table.split]
    if "train" not in table.split:
        return
    columns = (
        ("across", table.centers_unit[:, 0]),
        ("down", table.centers_unit[:, 1]),
        ("in size", table.sides_unit),
    )
    for other in others:
        for where, values in columns:
            question = f"Do boxes of {other} lie as those of train, {where}?"
            yield _same_distribution(question, values[table.split == "train"], values[table.split == other], limit=0.15)


def _same_distribution(question: str, one: np.ndarray, other: np.ndarray, limit: float) -> BalanceCheck:
    """Kolmogorov-Smirnov test; the effect is the largest gap between the two distribution functions."""
    if min(len(one), len(other)) < FEWEST_BOXES:
        return BalanceCheck(question, f"{len(one)} and {len(other)} values", "too few", None, limit, None)
    test = stats.ks_2samp(one, other)
    effect, p_value = float(test.statistic), float(test.pvalue)
    return BalanceCheck(question, f"largest gap {effect:.3f}", _verdict(effect, limit, p_value), effect, limit, p_value)


def _constant_box(table: ChangeTable) -> BalanceCheck:
    question, limit = "Does one box, always the same, fail?", 0.2
    if len(table.pair) < FEWEST_BOXES:
        return BalanceCheck(question, f"{len(table.pair)} boxes", "too few", None, limit, None)
    _, effect = best_constant_box(table)
    return BalanceCheck(question, f"the best earns F1 {effect:.3f}", _verdict(effect, limit, None), effect, limit, None)


def _size_tells_count(table: ChangeTable) -> BalanceCheck:
    question = "Is the size of a box independent of the number of changes?"
    return _correlation(question, table.sides_unit, table.count)


def _correlation(question: str, one: np.ndarray, other: np.ndarray, limit: float = 0.2) -> BalanceCheck:
    if len(one) < FEWEST_BOXES or len(np.unique(one)) < 2 or len(np.unique(other)) < 2:
        return BalanceCheck(question, f"{len(one)} values", "too few", None, limit, None)
    test = stats.spearmanr(one, other)
    effect, p_value = abs(float(test.statistic)), float(test.pvalue)
    figure = f"rank correlation {float(test.statistic):+.3f}"
    return BalanceCheck(question, figure, _verdict(effect, limit, p_value), effect, limit, p_value)


def _scene_checks(pairs: Sequence[PairExamination]) -> Iterator[BalanceCheck]:
    """Could a change be guessed from the reference picture alone?"""
    known = [(pair.scenes.reference_objects, pair.record) for pair in pairs if pair.scenes]
    objects = [item for reference, _ in known for item in reference]
    if not objects:
        return
    changed = np.array([does for _, does in objects])
    first = objects[0][0]
    for name in sorted(key for key, value in first.items() if isinstance(value, str)):
        if all(name in item for item, _ in objects):
            values = np.array([str(item[name]) for item, _ in objects])
            yield _independent(f"Is the {name} of an object no hint that it changes?", changed, values, limit=0.2)
    for name, direction in (("x_m", "across"), ("y_m", "in depth")):
        if all(isinstance(item.get(name), float) for item, _ in objects):
            places = np.array([item[name] for item, _ in objects])
            question = f"Is the place of an object, {direction}, no hint that it changes?"
            yield _same_distribution(question, places[changed], places[~changed], limit=0.15)
    sizes = np.array([len(reference) for reference, _ in known])
    counts = np.array([record.num_differences for _, record in known])
    yield _correlation("Is the number of objects independent of the number of changes?", sizes, counts)


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`[N]` IoU of one box `[4]` with `[N, 4]`, in arrays: `dig_rl.boxes` is made for the few boxes of an answer."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return shared / (areas - shared)
