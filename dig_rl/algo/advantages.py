"""From rewards to advantages, within the group of completions of one pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dig_rl.types import RolloutGroup


def compute_advantages(rewards: np.ndarray, eps: float) -> np.ndarray:
    """Rewards of one group, centred and divided by their spread: (r - mean) / (std + eps).

    Args:
        rewards: `[G]` total rewards, G at least 2.
        eps: added to the sample standard deviation (ddof 1).

    Returns:
        `[G]` float64 advantages; they sum to 0.

    Raises:
        ValueError: fewer than two rewards.

    Source: GRPO, DeepSeekMath (arXiv 2402.03300), section 4.1.2.
    """
    if len(rewards) < 2:
        raise ValueError(
            f"advantages compare completions of one pair: expected 2 or more rewards, found {len(rewards)}"
        )
    rewards = np.asarray(rewards, dtype=np.float64)
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + eps)


def has_signal(rewards: np.ndarray, tolerance: float) -> bool:
    """Whether the highest and lowest of `[G]` rewards differ by `tolerance` or more."""
    return bool(np.ptp(rewards) >= tolerance)


def drop_groups_without_signal(
    groups: Sequence[RolloutGroup], tolerance: float
) -> tuple[list[RolloutGroup], dict[str, int]]:
    """Keep the groups whose completions were rewarded differently; the others would contribute only noise.

    Args:
        groups: scored groups of one step.
        tolerance: least difference between the highest and lowest reward of a group.

    Returns:
        The kept groups in order, with their scored completions alone, and how many were dropped by reason: `masked`
        (fewer than two completions have a score), `all_zero` (nothing right), `all_one` (nothing left to learn),
        `all_equal`.
    """
    kept = []
    dropped = {"masked": 0, "all_zero": 0, "all_one": 0, "all_equal": 0}
    for group in groups:
        if len(group.scored) < 2:
            dropped["masked"] += 1
        elif has_signal(group.rewards, tolerance):
            kept.append(group.without_masked())
        else:
            dropped[_why_dropped(float(group.rewards.mean()), tolerance)] += 1
    return kept, dropped


def _why_dropped(level: float, tolerance: float) -> str:
    if level <= tolerance:
        return "all_zero"
    return "all_one" if level >= 1 - tolerance else "all_equal"
