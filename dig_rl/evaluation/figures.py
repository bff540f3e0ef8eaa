"""The figures of an evaluation, each a ratio of two sums over pairs, so that any resample of pairs has them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from dig_rl.evaluation.answers import JudgedPair, StoredAnswer
from dig_rl.evaluation.average_precision import AveragePrecision
from dig_rl.evaluation.bootstrap import percentile_intervals
from dig_rl.evaluation.detection import IOU_THRESHOLDS, JudgedAnswer, answer_figures

Better = Literal["higher", "lower", "neither"]


class Figure(NamedTuple):
    """One figure: the sum of `part` over the sum of `whole`, both names of `PairColumns`; AP is no such ratio."""

    name: str
    label: str
    better: Better
    part: str = ""
    whole: str = "answers"
    """`answers` makes a mean over pairs (macro), a number of boxes a share of all boxes (micro)."""

    @property
    def is_ratio(self) -> bool:
        """Whether `part` and `whole` say it all."""
        return bool(self.part)


FIGURES = (
    Figure("f1", "F1", "higher", "f1"),
    Figure("mean_iou", "mean IoU", "higher", "mean_iou"),
    Figure("precision", "precision", "higher", "precision"),
    Figure("recall", "recall", "higher", "recall"),
    Figure("count_accuracy", "right number of boxes", "higher", "count_accuracy"),
    Figure("parse_rate", "readable answers", "higher", "parse_rate"),
    Figure("f1_50_95", "F1, IoU 0.5:0.95", "higher", "f1_50_95"),
    Figure("precision_50_95", "precision, IoU 0.5:0.95", "higher", "precision_50_95"),
    Figure("recall_50_95", "recall, IoU 0.5:0.95", "higher", "recall_50_95"),
    Figure("micro_f1", "F1 over all boxes", "higher", "found_twice", "predicted_and_true"),
    Figure("micro_precision", "precision over all boxes", "higher", "found", "predicted"),
    Figure("micro_recall", "recall over all boxes", "higher", "found", "true"),
    Figure("count_error", "boxes too many or too few", "lower", "count_error"),
    Figure("count_bias", "boxes too many, on balance", "neither", "count_bias"),
)
"""Figures of every set of pairs. The first six are those of `summary.json`."""

FALSE_POSITIVES = Figure("false_positive_rate", "boxes where nothing changed", "lower", "claims_change")
"""Over the pairs without changes alone."""

AP_FIGURES = (
    Figure("ap", "AP, IoU 0.5:0.95", "higher"),
    Figure("ap_50", "AP, IoU 0.5", "higher"),
)
"""Over all pairs, where there is any true box."""

ALL_FIGURES = {figure.name: figure for figure in (*FIGURES, *AP_FIGURES, FALSE_POSITIVES)}


class Estimate(NamedTuple):
    """A figure with its interval; no bounds where one pair alone was answered."""

    value: float
    low: float | None
    high: float | None


class Measure(NamedTuple):
    """Figures that are resampled together, because they are about the same pairs."""

    names: tuple[str, ...]
    num_pairs: int
    columns: PairColumns
    average_precision: AveragePrecision | None

    def of_weights(self, counts_BP: np.ndarray) -> np.ndarray:
        """`[K, B]` figures of pairs that count so many times."""
        ratios = [ALL_FIGURES[name] for name in self.names if ALL_FIGURES[name].is_ratio]
        rows = [self.columns.ratio(figure, counts_BP) for figure in ratios]
        if self.average_precision is not None:
            rows += list(self.average_precision.of_weights(counts_BP))
        return np.array(rows)

    @property
    def values(self) -> np.ndarray:
        """`[K]` figures of the pairs as they are."""
        return self.of_weights(np.ones((1, self.num_pairs), dtype=np.int64))[:, 0]


class PairColumns:
    """Sums over the S answers of each pair, by name, `[P]` each."""

    def __init__(self, pairs: Sequence[JudgedPair], match_iou: float) -> None:
        rows = [_sum_rows([_answer_row(judged, match_iou) for judged in pair.judged]) for pair in pairs]
        self._columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def ratio(self, figure: Figure, counts_BP: np.ndarray) -> np.ndarray:
        """The figure of pairs that count so many times, `[B]`.

        Where it would divide by 0 it is 1 if nothing is true, nothing was predicted and all answers were read, else 0.
        """
        part, whole = counts_BP @ self._columns[figure.part], counts_BP @ self._columns[figure.whole]
        is_rightly_empty = (counts_BP @ self._columns["wrong_if_empty"]) == 0
        return np.where(whole > 0, part / np.maximum(whole, 1), is_rightly_empty.astype(float))

    def differ(self, other: PairColumns, figure: Figure) -> np.ndarray:
        """`[P]` whether a pair adds something else to the figure here than there."""
        names = (figure.part, figure.whole)
        return np.any([self._columns[name] != other._columns[name] for name in names], axis=0)


def measures(pairs: Sequence[JudgedPair], match_iou: float, *, with_ap: bool = True) -> list[Measure]:
    """Everything there is to say about a set of pairs.

    Args:
        pairs: at least one.
        match_iou: IoU from which an assigned box counts as found, in (0, 1].
        with_ap: average precision too, which takes most of the time.
    """
    average_precision = AveragePrecision(pairs) if with_ap else None
    if average_precision is not None and not average_precision.is_defined:
        average_precision = None
    names = tuple(figure.name for figure in FIGURES)
    if average_precision is not None:
        names += tuple(figure.name for figure in AP_FIGURES)
    columns = PairColumns(pairs, match_iou)
    found = [Measure(names, len(pairs), columns, average_precision)]
    unchanged = [pair for pair in pairs if not pair.truth.example.num_differences]
    if unchanged:
        found.append(Measure((FALSE_POSITIVES.name,), len(unchanged), PairColumns(unchanged, match_iou), None))
    return found


def estimate(pairs: Sequence[JudgedPair], match_iou: float, *, with_ap: bool = True) -> dict[str, Estimate]:
    """Every figure of a set of pairs with its interval; arguments as in `measures`."""
    estimates: dict[str, Estimate] = {}
    for measure in measures(pairs, match_iou, with_ap=with_ap):
        intervals = percentile_intervals(measure.of_weights, measure.num_pairs)
        estimates |= as_estimates(measure.names, measure.values, intervals)
    return estimates


def as_estimates(
    names: Sequence[str], values: np.ndarray, intervals: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Estimate]:
    """Names, `[K]` values and `[K]` bounds as one dictionary of plain numbers."""
    if intervals is None:
        return {name: Estimate(float(value), None, None) for name, value in zip(names, values, strict=True)}
    rows = zip(names, values.tolist(), intervals[0].tolist(), intervals[1].tolist(), strict=True)
    return {name: Estimate(value, low, high) for name, value, low, high in rows}


def _answer_row(judged: JudgedAnswer, match_iou: float) -> dict[str, float]:
    at_one = answer_figures(judged, match_iou)
    at_all = [answer_figures(judged, float(threshold)) for threshold in IOU_THRESHOLDS]
    num_found = sum(judged.is_found(match_iou))
    surplus = judged.num_predicted - judged.num_true
    averaged = {
        f"{name}_50_95": float(np.mean([figures[name] for figures in at_all])) for name in ("f1", "precision", "recall")
    }
    return {
        **at_one,
        **averaged,
        "answers": 1,
        "found": num_found,
        "found_twice": 2 * num_found,
        "predicted": judged.num_predicted,
        "true": judged.num_true,
        "predicted_and_true": judged.num_predicted + judged.num_true,
        "count_error": abs(surplus),
        "count_bias": surplus,
        "claims_change": float(judged.num_predicted > 0),
        "wrong_if_empty": judged.num_predicted + judged.num_true + (not judged.is_readable),
    }


def _sum_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def answers_differ(a: Sequence[StoredAnswer], b: Sequence[StoredAnswer]) -> bool:
    """Whether two sets of answers to one pair may give another average precision."""
    return [(x.predicted_boxes_px, x.mean_logprob) for x in a] != [(y.predicted_boxes_px, y.mean_logprob) for y in b]
