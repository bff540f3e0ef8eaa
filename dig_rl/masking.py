"""Completions that reward plugins broke on: masked within the budget of the config, an error beyond it.

A masked completion is never scored 0. It leaves its group's statistics and the update, and is counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from dig_rl.errors import PluginError
from dig_rl.types import RolloutGroup, SampledGroup, Score, ScoreFailure

_log = logging.getLogger(__name__)


def max_failed(groups: Sequence[SampledGroup], max_failed_frac: float, before: Sequence[RolloutGroup] = ()) -> int:
    """How many more completions of one step plugins may break on: the budget's fraction of all, rounded down.

    Args:
        groups: about to be scored.
        max_failed_frac: the budget.
        before: scored groups of the same step, in whose place these are sampled; they and their failures count.
    """
    num_completions = sum(len(group.completions) for group in [*groups, *(group.sampled for group in before)])
    num_failed = sum(score is None for group in before for score in group.scores)
    return math.floor(max_failed_frac * num_completions + 1e-9) - num_failed  # 0.1 * 30 must not round down to 2


def refuse_failures(failures: Sequence[ScoreFailure], max_failed: int) -> None:
    """Stop a run that is over its budget.

    Raises:
        PluginError: there are more than `max_failed` failures; tells the first.
    """
    if len(failures) <= max_failed:
        return
    budget = "reward.max_failed_frac allows no more in this step"
    if max_failed:
        budget = f"{len(failures)} completions of the step failed, reward.max_failed_frac allows {max_failed}"
    raise PluginError(
        f"{failures[0].reason}; {budget}. Nothing is scored 0 because a plugin broke: fix it, then continue the run "
        "with ALLOW_CHANGED_PLUGINS=1"
    )


def mask_failures(
    groups: Sequence[SampledGroup],
    outcomes: Sequence[tuple[Score | ScoreFailure, ...]],
    *,
    stage: str,
    max_failed: int,
) -> list[RolloutGroup]:
    """Put groups and their outcomes together.

    Args:
        groups: of one step.
        outcomes: for each group one for each completion.
        stage: curriculum stage of the step.
        max_failed: failures that are masked; one more is an error.

    Raises:
        PluginError: there are more than `max_failed` failures.
    """
    failures = [outcome for row in outcomes for outcome in row if isinstance(outcome, ScoreFailure)]
    refuse_failures(failures, max_failed)
    if failures:
        _log.warning("%d completions masked, at most %d may be: %s", len(failures), max_failed, failures[0].reason)
    return [
        RolloutGroup(group, tuple(None if isinstance(outcome, ScoreFailure) else outcome for outcome in row), stage)
        for group, row in zip(groups, outcomes, strict=True)
    ]
