"""The objective in plain float64 loops, one completion and one token at a time, as the papers write it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dig_rl.config import LearnerConfig

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Batch:
    """Completions of different lengths: log-probabilities of their tokens, and one advantage each."""

    new: Rows
    old: Rows
    rollout: Rows
    ref: Rows | None
    advantages: Sequence[float]


def loss(batch: Batch, c: LearnerConfig, max_completion_tokens: int) -> float:
    """Of the whole batch."""
    rows = [token_losses(batch, index, c) for index in range(len(batch.new))]
    if c.loss == "dapo":
        return math.fsum(value for row in rows for value in row) / sum(map(len, rows))
    if c.loss == "dr_grpo":
        return math.fsum(math.fsum(row) / max_completion_tokens for row in rows) / len(rows)
    return math.fsum(math.fsum(row) / len(row) for row in rows) / len(rows)


def token_losses(batch: Batch, index: int, c: LearnerConfig) -> list[float]:
    """Of one completion."""
    new, old, rollout, advantage = (
        batch.new[index],
        batch.old[index],
        batch.rollout[index],
        batch.advantages[index],
    )
    length = len(new)
    sequence_ratio = math.prod(math.exp(n - o) for n, o in zip(new, old, strict=True)) ** (1 / length)
    geometric = math.prod(math.exp(o - r) for o, r in zip(old, rollout, strict=True)) ** (1 / length)
    values = []
    for t in range(length):
        ratio = sequence_ratio if c.loss == "gspo" else math.exp(new[t]) / math.exp(old[t])
        surrogate = min(ratio * advantage, max(1 - c.clip_low, min(1 + c.clip_high, ratio)) * advantage)
        if c.dual_clip is not None and advantage < 0:
            surrogate = max(surrogate, c.dual_clip * advantage)
        weight = 1.0
        if c.importance == "token_truncate":
            weight = min(math.exp(old[t]) / math.exp(rollout[t]), c.importance_cap)
        elif c.importance == "geometric_mask":
            weight = float(c.importance_band[0] <= geometric <= c.importance_band[1])
        value = -weight * surrogate
        if batch.ref is not None:
            value += c.kl_coef * kl(new[t], batch.ref[index][t], c.kl_estimator)
        values.append(value)
    return values


def kl(new: float, ref: float, estimator: str) -> float:
    """With r = reference / policy, as Schulman's note defines k1, k2 and k3."""
    r = math.exp(ref) / math.exp(new)
    return {"k1": -math.log(r), "k2": math.log(r) ** 2 / 2, "k3": (r - 1) - math.log(r)}[estimator]
