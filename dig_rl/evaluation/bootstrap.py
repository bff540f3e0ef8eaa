"""Intervals by resampling pairs: what a figure would have been on other pairs of the same kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap

CONFIDENCE_LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
"""Fixed: the same answers give the same interval, and two policies are resampled alike."""
_BATCH = 100

WeightedStatistic = Callable[[np.ndarray], np.ndarray]
"""Figures of reweighted pairs: counts `[B, P]`, how often each pair was drawn, to `[K, B]`."""


def percentile_intervals(statistic: WeightedStatistic, num_pairs: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Percentile bootstrap intervals at `CONFIDENCE_LEVEL`.

    All answers of a pair are drawn together, since they are not independent of each other.

    Args:
        statistic: K figures.
        num_pairs: P.

    Returns:
        Lower and upper bounds, `[K]` each; None for fewer than two pairs, which have no spread.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; `scipy.stats.bootstrap`.
    """
    if num_pairs < 2:
        return None

    def of_drawn(drawn: np.ndarray, axis: int) -> np.ndarray:
        return statistic(_counts(drawn.astype(np.int64), num_pairs))

    found = bootstrap(
        (np.arange(num_pairs),),
        of_drawn,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE_LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def _counts(drawn: np.ndarray, num_pairs: int) -> np.ndarray:
    """`[B, P]` how often each pair occurs in each row of `[B, P]` pair numbers."""
    rows = len(drawn)
    flat = drawn + num_pairs * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * num_pairs).reshape(rows, num_pairs)
