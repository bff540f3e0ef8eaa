"""Making up for groups without signal with further pairs, within a bound.

A step that stays short learns from what it has: the shortfall is reported, never an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dig_rl.types import Example, RolloutGroup

_SEED_WORD = 0x5EF111
"""Sets these draws apart from the curriculum's, which start from the same run seed."""


@dataclass(frozen=True)
class Collected:
    """The groups of one step."""

    groups: list[RolloutGroup]
    """Every group that was sampled, in order."""
    kept: list[RolloutGroup]
    """Those with signal, at most as many as pairs were drawn at first."""
    dropped: dict[str, int]
    """Groups without signal by reason."""
    figures: dict[str, float]
    """Seconds by phase, summed over rounds, and what was refilled; keys as in `dig_rl.metrics`."""


def spare_examples(examples: Sequence[Example], drawn: Sequence[Example], *, seed: int, step: int) -> list[Example]:
    """Every pair of `examples` that the step has not drawn, in a random order that (seed, step) fixes."""
    taken = {example.pair_id for example in drawn}
    spare = [example for example in examples if example.pair_id not in taken]
    order = np.random.default_rng([_SEED_WORD, seed, step]).permutation(len(spare))
    return [spare[index] for index in order]


def collect_with_refills(
    collect: Callable[[Sequence[Example], Sequence[RolloutGroup]], tuple[list[RolloutGroup], dict[str, float]]],
    select: Callable[[Sequence[RolloutGroup]], tuple[list[RolloutGroup], dict[str, int]]],
    examples: Sequence[Example],
    spare: Sequence[Example],
    max_refills: int,
) -> Collected:
    """Sample and score groups until there are as many with signal as pairs in `examples`, or the bound is reached.

    Args:
        collect: samples and scores one group a pair, told the step's groups so far; returns also seconds by phase.
        select: keeps the groups with signal, and counts the others by reason.
        examples: the P pairs of the step.
        spare: further pairs, in the order they are used.
        max_refills: further rounds at most; each draws as many pairs as groups are missing.

    Source:
        Dynamic sampling: DAPO (arXiv 2503.14476), equation 11. There sampling goes on until the batch is full.
    """
    everything: list[RolloutGroup] = []
    seconds: Counter[str] = Counter()
    wanted, used, num_rounds = list(examples), 0, 0
    while True:
        groups, phases = collect(wanted, everything)
        everything, num_rounds = everything + groups, num_rounds + 1
        seconds.update(phases)
        kept, dropped = select(everything)
        missing = len(examples) - len(kept)
        wanted = list(spare[used : used + missing])
        if num_rounds > max_refills or not wanted:
            break
        used += len(wanted)
    refilled = {"rollout/refilled_groups": float(used), "rollout/missing_groups": float(missing)}
    return Collected(everything, kept, dropped, dict(seconds) | refilled)
