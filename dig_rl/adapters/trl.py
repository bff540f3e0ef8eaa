"""A reward as a TRL reward function, for `GRPOTrainer(reward_funcs=...)`.

The data set needs a column `ground_truth` (`dig_rl.adapters.answer_scorer.ground_truth`) beside `prompt` and `images`.
Source: TRL 1.16, `GRPOTrainer._calculate_rewards`, for what it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dig_rl.adapters.answer_scorer import AnswerScorer
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
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        ground_truth: Sequence[str],
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float]:
        step = trainer_state.global_step if trainer_state is not None else 0
        texts = [_text(completion) for completion in completions]
        scores = scorer.score(texts, ground_truth, [len(ids) for ids in completion_ids], step)
        if log_metric is not None:
            for term in scores[0].terms:
                log_metric(f"reward/{term}", sum(score.terms[term] for score in scores) / len(scores))
        return [score.total for score in scores]

    score.__name__ = reward.rpartition(":")[2] or "dig_rl"  # what TRL calls it in its logs
    return score


def _text(completion: Any) -> str:
    """What was written: TRL passes text, or the messages of a conversation whose content is text or parts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
