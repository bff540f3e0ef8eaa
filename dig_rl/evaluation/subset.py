"""Which pairs of a split stand for all of it, where not all are asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dig_rl.types import Example


def representative_pairs(examples: Sequence[Example], most: int | None) -> list[Example]:
    """A sample with the split's own shares of one change, two changes and so on, in the order of the split.

    Shares are rounded by largest remainder; equal remainders go to fewer changes first, to pairs without changes last.
    Within a number of changes the pairs are chosen by the hash of their id (`lowest_hashes`), so the sample depends on
    the split alone: neither on a seed nor on the order of the file.

    Args:
        examples: the split.
        most: how many to take; None, or as many as there are, takes all.
    """
    if most is None or most >= len(examples):
        return list(examples)
    by_count: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        by_count.setdefault(example.num_differences, []).append(index)
    strata = [by_count[count] for count in sorted(by_count, key=lambda count: (count == 0, count))]
    chosen = [
        stratum[index]
        for stratum, wanted in zip(strata, largest_remainder([len(stratum) for stratum in strata], most), strict=True)
        for index in lowest_hashes([examples[place].pair_id for place in stratum], wanted)
    ]
    return [examples[index] for index in sorted(chosen)]


def largest_remainder(sizes: Sequence[int], total: int) -> list[int]:
    """Parts of `total` in proportion to `sizes`, none above its size; earlier ones win ties.

    Args:
        sizes: of the groups, positive.
        total: at most their sum.
    """
    whole = sum(sizes)
    parts = [size * total // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: -(sizes[index] * total % whole))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def lowest_hashes(ids: Sequence[str], most: int | None) -> list[int]:
    """Indices of the `most` ids with the lowest SHA-256, in the order given: what lies side by side has no advantage.

    Args:
        ids: distinct.
        most: None takes all.
    """
    if most is None or most >= len(ids):
        return list(range(len(ids)))
    # Lone surrogates, which an id read from JSON may hold, have no UTF-8.
    ranked = sorted(
        range(len(ids)), key=lambda index: hashlib.sha256(ids[index].encode(errors="surrogatepass")).digest()
    )
    return sorted(ranked[:most])
