"""Scores sampled groups with the configured plugins: a door in front of scoring processes that hold no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dig_rl.config import Config
from dig_rl.parsing import CoordinateFrame
from dig_rl.scoring_pool import ScoringPool
from dig_rl.scoring_worker import ScorerSpec
from dig_rl.types import SampledGroup, Score, ScoreFailure


class RewardService:
    """Owns scoring processes; plugins never run in this one."""

    def __init__(
        self, config: Config, root: str, frame: CoordinateFrame, prompt: str, plugin_hashes: dict[str, str]
    ) -> None:
        """Start the scoring processes.

        Args:
            config: the run.
            root: folder that plugin paths are relative to.
            frame: coordinate convention of the policy.
            prompt: what the policy is asked, shown to plugins.
            plugin_hashes: of `dig_rl.scoring_pool.hash_plugins`, where the run was started.

        Raises:
            PluginError: a plugin cannot be loaded, or its file here is another.
        """
        self._pool = ScoringPool(
            ScorerSpec(
                reward=config.reward,
                root=Path(root),
                thinking=config.policy.thinking,
                frame=frame,
                prompt=prompt,
                plugin_hashes=plugin_hashes,
            )
        )

    def score_groups(
        self, groups: Sequence[SampledGroup], step: int, stage: str, max_failed: int
    ) -> list[tuple[Score | ScoreFailure, ...]]:
        """Outcome of every completion, as `ScoringPool.score`.

        Raises:
            PluginError: plugins broke on more than `max_failed` completions; names plugin, pair and completion.
        """
        return self._pool.score(groups, step=step, stage=stage, max_failed=max_failed)
