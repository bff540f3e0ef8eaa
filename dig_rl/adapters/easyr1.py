"""A reward as an EasyR1 reward function, named by path in its config.

    worker.reward.reward_function: /path/to/dig_rl/adapters/easyr1.py:compute_score
    worker.reward.reward_function_kwargs: {reward: launch/configs/rewards/paper.toml, root: /path/to/dig-rl,
                                           frame: norm1000, thinking: true}

The answer column of the data set (`data.answer_key`) holds `dig_rl.adapters.answer_scorer.ground_truth`.
Source: EasyR1, `verl/workers/reward/function.py`: `RewardInput`, `RewardScore`, and its two kinds of function.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, overload

from dig_rl.adapters.answer_scorer import AnswerScorer
from dig_rl.parsing import CoordinateFrame
from dig_rl.types import Score

# Read by EasyR1 versions that have no `reward_type` in their config.
REWARD_NAME = "dig_rl"
REWARD_TYPE = "batch"

_scorer = functools.cache(AnswerScorer)


@overload
def compute_score(
    reward_inputs: Mapping[str, Any], *, frame: CoordinateFrame, thinking: bool, reward: str = ..., root: str = ...
) -> dict[str, float]: ...


@overload
def compute_score(
    reward_inputs: Sequence[Mapping[str, Any]],
    *,
    frame: CoordinateFrame,
    thinking: bool,
    reward: str = ...,
    root: str = ...,
) -> list[dict[str, float]]: ...


def compute_score(
    reward_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    frame: CoordinateFrame,
    thinking: bool,
    reward: str = "",
    root: str = ".",
) -> dict[str, float] | list[dict[str, float]]:
    """Score a batch (`reward_type: batch`) or one answer (`reward_type: sequential`).

    Args:
        reward_inputs: `response`, `response_length` and `ground_truth` of each answer.
        frame: coordinate convention of the policy's family.
        thinking: the policy thinks before it answers.
        reward: as in `AnswerScorer`.
        root: folder that `reward` and the plugins it names are relative to.

    Returns:
        `overall`, the total in [0, 1], and every term by its name; a list of them for a batch.

    Raises:
        DataError: a ground truth is not ours.
        PluginError: a plugin cannot be loaded or breaks its contract.
    """
    batch = [reward_inputs] if isinstance(reward_inputs, Mapping) else reward_inputs
    scores = _scorer(reward, frame=frame, thinking=thinking, root=root).score(
        [item["response"] for item in batch],
        [item["ground_truth"] for item in batch],
        [item["response_length"] for item in batch],
    )
    results = [_as_easyr1(score) for score in scores]
    return results[0] if isinstance(reward_inputs, Mapping) else results


def _as_easyr1(score: Score) -> dict[str, float]:
    return {**score.terms, "overall": score.total}
