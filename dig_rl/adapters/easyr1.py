"""A reward as an EasyR1 reward function, named by path in its config.

    worker.reward.reward_function: /path/to/dig_rl/adapters/easyr1.py:compute_score
    worker.reward.reward_function_kwargs: {reward: launch/configs/rewards/paper.toml, root: /path/to/dig-rl,
                                           frame: norm1000, thinking: true}

The answer column of the data set (`data.answer_key`) holds `dig_rl.adapters.answer_scorer.ground_truth`.
Source: EasyR1, `verl/workers/reward/function.py`: `RewardInput`, `RewardScore`, and its two kinds of function.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

# Loaded by path, in an environment that dig-rl is not installed in, this file finds the rest beside itself.
if importlib.util.find_spec("dig_rl") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from dig_rl.adapters.answer_scorer import AnswerScorer, columns_of
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
        reward_inputs: `response`, `ground_truth` and, where it is known, `response_length` of each answer.
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
    responses, truths = columns_of(batch, ("response", "ground_truth"))
    lengths = [item.get("response_length", 0) for item in batch]
    scores = _scorer(reward, frame=frame, thinking=thinking, root=root).score(responses, truths, lengths)
    results = [_as_easyr1(score) for score in scores]
    return results[0] if isinstance(reward_inputs, Mapping) else results


def _as_easyr1(score: Score) -> dict[str, float]:
    return {**score.terms, "overall": score.total}
