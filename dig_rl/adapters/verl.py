"""A reward as a verl reward function, named by path in its config.

    custom_reward_function.path: /path/to/dig_rl/adapters/verl.py
    custom_reward_function.name: compute_score
    custom_reward_function.reward_kwargs: {reward: launch/configs/rewards/paper.toml, root: /path/to/dig-rl,
                                           frame: norm1000, thinking: true}

`reward_model.ground_truth` of each row of the data set is `dig_rl.adapters.answer_scorer.ground_truth`. With
`reward_manager: batch`, name `compute_score_batch`.
Source: verl, `verl/trainer/ppo/reward.py` and `verl/workers/reward_manager/{naive,batch}.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Loaded by path, in an environment that dig-rl is not installed in, this file finds the rest beside itself.
if importlib.util.find_spec("dig_rl") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from dig_rl.adapters.answer_scorer import AnswerScorer
from dig_rl.parsing import CoordinateFrame

_scorer = functools.cache(AnswerScorer)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    frame: CoordinateFrame,
    thinking: bool,
    reward: str = "",
    root: str = ".",
) -> dict[str, float]:
    """Score one answer.

    Args:
        data_source: not used; a data set of ours has one kind of task.
        solution_str: what the policy wrote.
        ground_truth: its pair's truth.
        extra_info: not used.
        frame: coordinate convention of the policy's family.
        thinking: the policy thinks before it answers.
        reward: as in `AnswerScorer`.
        root: folder that `reward` and the plugins it names are relative to.

    Returns:
        `score`, the total in [0, 1], and every term by its name.

    Raises:
        DataError: the ground truth is not ours.
        PluginError: a plugin cannot be loaded or breaks its contract.
    """
    one = [data_source], [solution_str], [ground_truth], [extra_info]
    return compute_score_batch(*one, frame=frame, thinking=thinking, reward=reward, root=root)[0]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[str],
    extra_infos: Sequence[dict[str, Any] | None],
    *,
    frame: CoordinateFrame,
    thinking: bool,
    reward: str = "",
    root: str = ".",
) -> list[dict[str, float]]:
    """Score a batch; arguments and results as in `compute_score`, one of each an answer."""
    scorer = _scorer(reward, frame=frame, thinking=thinking, root=root)
    scores = scorer.score(list(solution_strs), list(ground_truths))
    return [{**score.terms, "score": score.total} for score in scores]
