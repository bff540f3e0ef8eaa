"""Two policies on the same pairs: differences, their intervals, and what they allow to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from dig_rl.evaluation.answers import JudgedPair
from dig_rl.evaluation.bootstrap import percentile_intervals
from dig_rl.evaluation.figures import ALL_FIGURES, Figure, Measure, answers_differ, as_estimates, measures

MIN_DIFFERING = 6
"""Fewest pairs that must differ for a verdict: five that all speak for one side happen by chance once in sixteen."""

Verdict = Literal["better", "worse", "more boxes", "fewer boxes", "no difference shown"]


class Difference(NamedTuple):
    """One figure of A and of B."""

    name: str
    a: float
    b: float
    change: float
    """B - A."""
    low: float | None
    """Bounds of the change; None where there is one pair."""
    high: float | None
    num_differing: int
    """Pairs that add something else to the figure of B than to that of A."""
    verdict: Verdict
    """About B."""


def compare(
    pairs_a: Sequence[JudgedPair], pairs_b: Sequence[JudgedPair], match_iou: float, *, with_ap: bool = True
) -> list[Difference]:
    """Compare the answers of two policies to the same pairs, in the same order.

    Both are resampled with the same draws, so what makes a pair hard for both cancels out.

    Args:
        pairs_a: the pairs with the answers of A, at least one.
        pairs_b: the pairs with the answers of B.
        match_iou: IoU from which an assigned box counts as found, in (0, 1].
        with_ap: compare average precision too, which takes most of the time.

    Raises:
        ValueError: the pairs are not the same.
    """
    ids_a, ids_b = ([pair.truth.example.pair_id for pair in pairs] for pairs in (pairs_a, pairs_b))
    if ids_a != ids_b:
        raise ValueError("a comparison needs the same pairs in the same order on both sides")
    differing = np.array([answers_differ(a.answers, b.answers) for a, b in zip(pairs_a, pairs_b, strict=True)])
    measured = (measures(pairs, match_iou, with_ap=with_ap) for pairs in (pairs_a, pairs_b))
    return [
        difference
        for measure_a, measure_b in zip(*measured, strict=True)
        for difference in _differences(measure_a, measure_b, differing)
    ]


def _differences(measure_a: Measure, measure_b: Measure, differing: np.ndarray) -> list[Difference]:
    def change(counts_BP: np.ndarray) -> np.ndarray:
        return measure_b.of_weights(counts_BP) - measure_a.of_weights(counts_BP)

    values_a, values_b = measure_a.values, measure_b.values
    intervals = percentile_intervals(change, measure_a.num_pairs)
    changes = as_estimates(measure_a.names, values_b - values_a, intervals)
    found = []
    for name, a, b in zip(measure_a.names, values_a.tolist(), values_b.tolist(), strict=True):
        figure = ALL_FIGURES[name]
        differ = measure_a.columns.differ(measure_b.columns, figure) if figure.is_ratio else differing
        value, low, high = changes[name]
        num_differing = int(differ.sum())
        verdict = _verdict(figure, low, high, num_differing)
        found.append(Difference(name, a, b, value, low, high, num_differing, verdict))
    return found


def _verdict(figure: Figure, low: float | None, high: float | None, num_differing: int) -> Verdict:
    if low is None or high is None or num_differing < MIN_DIFFERING or low <= 0.0 <= high:
        return "no difference shown"
    has_risen = low > 0.0
    if figure.better == "neither":
        return "more boxes" if has_risen else "fewer boxes"
    return "better" if has_risen == (figure.better == "higher") else "worse"
