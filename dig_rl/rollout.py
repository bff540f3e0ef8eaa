"""Random seeds of a step's samples: a function of what is sampled, never of who samples it or when."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from dig_rl.types import Example

MAX_GROUP_SIZE = 1024
"""Seeds of two groups lie at least this far apart, since sample i of a group is drawn with the group's seed + i."""


def group_seeds(run_seed: int, step: int, examples: Sequence[Example]) -> list[int]:
    """Seed of each group's first sample; sample i uses this + i.

    Args:
        run_seed: `seed` of the config.
        step: training step.
        examples: pairs of the step. A pair that occurs twice gets two seeds.

    Returns:
        Multiples of `MAX_GROUP_SIZE` below 2**63.
    """
    seen: Counter[str] = Counter()
    seeds = []
    for example in examples:
        name = f"{run_seed}/{step}/{example.pair_id}/{seen[example.pair_id]}"
        seen[example.pair_id] += 1
        digest = hashlib.sha256(name.encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "big") % (2**63 // MAX_GROUP_SIZE) * MAX_GROUP_SIZE)
    return seeds
