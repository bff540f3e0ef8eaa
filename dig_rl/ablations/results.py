"""What runs with several seeds show: means with intervals, and differences by seed between two arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import t

from dig_rl.ablations.ledger import Entry

CONFIDENCE_LEVEL = 0.95

Verdict = Literal["reproduced", "not shown", "reversed"]


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds."""

    values: tuple[float, ...]
    """One a seed, in the order of `seeds`."""
    seeds: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean, at `CONFIDENCE_LEVEL`, if seeds are normally distributed; None for one seed.

        Source: Student's t with n - 1 degrees of freedom; mean +- t * s / sqrt(n), s with ddof 1.
        """
        count = len(self.values)
        if count < 2:
            return None
        half = float(t.ppf((1 + CONFIDENCE_LEVEL) / 2, count - 1) * np.std(self.values, ddof=1) / np.sqrt(count))
        return self.mean - half, self.mean + half


class Claim(NamedTuple):
    """The paper says that the second arm ends above the first."""

    lower: str
    higher: str


@dataclass(frozen=True)
class Comparison:
    """F1 of one arm minus that of another, seed by seed."""

    claim: Claim
    difference: SeedMean | None
    """None without a seed that both were run with."""

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies above 0, holds it, or lies below; fewer than two seeds show nothing."""
        interval = self.difference.interval if self.difference else None
        if interval is None or interval[0] <= 0 <= interval[1]:
            return "not shown"
        return "reproduced" if interval[0] > 0 else "reversed"


def of_arm(entries: Sequence[Entry], arm: str) -> list[Entry]:
    """The entries of an arm by seed."""
    return sorted((entry for entry in entries if entry.arm == arm), key=lambda entry: entry.seed)


def seed_mean(entries: Sequence[Entry], figure: str) -> SeedMean:
    """Mean of one figure over an arm's entries, as `f1`; `before.f1` is that of the policy it began with, `gain` the
    rise of F1 over it.
    """
    return SeedMean(tuple(_value(entry, figure) for entry in entries), tuple(entry.seed for entry in entries))


def compare(entries: Sequence[Entry], claim: Claim, figure: str = "f1") -> Comparison:
    """Hold a claim against the seeds that both its arms were run with."""
    lower, higher = ({entry.seed: _value(entry, figure) for entry in of_arm(entries, arm)} for arm in claim)
    seeds = tuple(sorted(lower.keys() & higher.keys()))
    if not seeds:
        return Comparison(claim, None)
    return Comparison(claim, SeedMean(tuple(higher[seed] - lower[seed] for seed in seeds), seeds))


def _value(entry: Entry, figure: str) -> float:
    if figure == "gain":
        return entry.f1 - entry.before.f1
    place, _, name = figure.rpartition(".")
    return float(getattr(entry.before if place else entry, name))
