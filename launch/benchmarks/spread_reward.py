"""A reward for benchmarks: answers that differ are paid differently, so that no group is without signal."""

from __future__ import annotations

import zlib

from dig_rl.types import RewardInput


def spread(item: RewardInput) -> float:
    """A number in [0, 1] that the text decides."""
    return spread_of(item.completion)


def spread_of(text: str) -> float:
    """The same for any text."""
    return zlib.crc32(text.encode()) / 0xFFFFFFFF
