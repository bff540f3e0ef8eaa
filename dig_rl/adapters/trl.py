"""A reward as a TRL reward function, for `GRPOTrainer(reward_funcs=...)`.

The data set needs a column `ground_truth` (`dig_rl.adapters.answer_scorer.ground_truth`) beside `prompt` and `images`.
Source: TRL 1.16, `GRPOTrainer._calculate_rewards`, for what it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dig_rl.adapters.answer_scorer import AnswerScorer
from dig_rl.errors import DataError
from dig_rl.parsing import CoordinateFrame


def reward_function(
    reward: str, *, frame: CoordinateFrame, thinking: bool, root: str | Path = ".", prompt: str = ""
) -> Callable[..., list[float]]:
    """Make one callable for `reward_funcs`: the total of a config, or one plugin.

    A config's terms are logged as `reward/<term>`, where TRL offers `log_metric`.

    Args:
        reward: as in `AnswerScorer`.
        frame: coordinate convention of the policy's family.
        thinking: the policy thinks before it answers.
        root: folder that `reward` and the plugins it names are relative to.
        prompt: what the policy is asked, shown to plugins.

    Raises:
        ConfigError: the config is missing or wrong.
        PluginError: a plugin cannot be loaded.
    """
    scorer = AnswerScorer(reward, frame=frame, thinking=thinking, root=root, prompt=prompt)

    def score(
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        ground_truth: Sequence[Any] | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        if completions is None or ground_truth is None:
            given = {"prompts": prompts, "completions": completions, "ground_truth": ground_truth, **columns}
            found = ", ".join(name for name, value in given.items() if value is not None) or "nothing"
            raise DataError(
                f"expected completions and a column ground_truth, as TRL hands them over by name, found {found}; "
                "`make data-export FORMAT=trl` writes such a data set, and "
                "dig_rl.adapters.answer_scorer.ground_truth(example) one value of the column"
            )
        step = trainer_state.global_step if trainer_state is not None else 0
        lengths = None if completion_ids is None else [len(ids) for ids in completion_ids]
        scores = scorer.score(completions, ground_truth, lengths, step)
        if log_metric is not None and scores:
            for term in scores[0].terms:
                log_metric(f"reward/{term}", sum(score.terms[term] for score in scores) / len(scores))
        return [score.total for score in scores]

    score.__name__ = reward.rpartition(":")[2] or "dig_rl"  # what TRL calls it in its logs
    return score
