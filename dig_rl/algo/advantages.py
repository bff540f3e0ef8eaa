"""From rewards to advantages, within the group of completions of one pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dig_rl.config import Config, LearnerConfig
from dig_rl.types import RolloutGroup


def compute_advantages(rewards: np.ndarray, learner: LearnerConfig) -> np.ndarray:
    """How much better each completion is than its group, by the rule `learner.advantage`.

        group_norm     (r_i - mean) / (std + eps), std with ddof 1
        group_mean     r_i - mean
        leave_one_out  r_i - mean of the others

    Args:
        rewards: `[G]` rewards of one group, G at least 2.
        learner: the rule and eps.

    Returns:
        `[G]` float64 advantages; they sum to 0.

    Raises:
        ValueError: fewer than two rewards.

    Source:
        group_norm: GRPO, DeepSeekMath (arXiv 2402.03300), section 4.1.2. group_mean: Dr. GRPO (arXiv 2503.20783),
        section 3.2. leave_one_out: RLOO, Kool et al. (2019) and Ahmadian et al. (arXiv 2402.14740).
    """
    if len(rewards) < 2:
        raise ValueError(
            f"advantages compare completions of one pair: expected 2 or more rewards, found {len(rewards)}"
        )
    rewards = np.asarray(rewards, dtype=np.float64)
    centred = rewards - rewards.mean()
    if learner.advantage == "group_mean":
        return centred
    if learner.advantage == "leave_one_out":
        return centred * (len(rewards) / (len(rewards) - 1))
    return centred / (rewards.std(ddof=1) + learner.advantage_eps)


def group_advantages(group: RolloutGroup, config: Config) -> np.ndarray:
    """Advantages of a group's K scored completions.

    With `learner.normalize_terms`, every reward term is compared within the group on its own before the weighted sum,
    so that a term with a small spread counts for as much as its weight says.

    Args:
        group: a group with two scored completions or more.
        config: the rule, and the weights of the reward terms.

    Returns:
        `[K]` float64; they sum to 0.

    Source:
        GDPO (arXiv 2601.05242), group-wise part. Its second normalisation, over the batch, keeps the scale from growing
        with the number of terms; here the weights sum to 1, so it is left out.
    """
    if not config.learner.normalize_terms:
        return compute_advantages(group.rewards, config.learner)
    weighted = [
        term.weight * compute_advantages(_term_values(group, name), config.learner)
        for name, term in config.reward.terms.items()
    ]
    return np.sum(weighted, axis=0)


def has_signal(rewards: np.ndarray, tolerance: float) -> bool:
    """Whether the highest and lowest of `[G]` rewards differ by `tolerance` or more."""
    return bool(np.ptp(rewards) >= tolerance)


def drop_groups_without_signal(
    groups: Sequence[RolloutGroup], learner: LearnerConfig
) -> tuple[list[RolloutGroup], dict[str, int]]:
    """Keep the groups whose completions were rewarded differently; the others would contribute only noise.

    Args:
        groups: scored groups of one step.
        learner: least difference between the highest and lowest reward of a group (with `normalize_terms`: of any
            term), and whether truncated completions are learned from.

    Returns:
        The kept groups in order, with their scored completions alone, and how many were dropped by reason: `masked`
        (fewer than two completions have a score), `truncated` (no completion ended, and truncated ones are masked),
        `all_zero` (nothing right), `all_one` (nothing left to learn), `all_equal`.
    """
    kept = []
    dropped = {"masked": 0, "truncated": 0, "all_zero": 0, "all_one": 0, "all_equal": 0}
    for group in groups:
        reason = _why_dropped(group, learner)
        if reason is None:
            kept.append(group.without_masked())
        else:
            dropped[reason] += 1
    return kept, dropped


def _why_dropped(group: RolloutGroup, learner: LearnerConfig) -> str | None:
    if len(group.scored) < 2:
        return "masked"
    completions = group.without_masked().sampled.completions
    if learner.mask_truncated_completions and all(completion.finish_reason == "length" for completion in completions):
        return "truncated"
    compared = [_term_values(group, name) for name in group.scored[0].terms] if learner.normalize_terms else []
    if any(has_signal(values, learner.min_reward_spread) for values in compared or [group.rewards]):
        return None
    level = float(group.rewards.mean())
    if level <= learner.min_reward_spread:
        return "all_zero"
    return "all_one" if level >= 1 - learner.min_reward_spread else "all_equal"


def _term_values(group: RolloutGroup, name: str) -> np.ndarray:
    return np.array([score.terms[name] for score in group.scored], dtype=np.float64)
