"""Scores sampled groups with the configured plugins, in a process that holds no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dig_rl.config import Config
from dig_rl.parsing import CoordinateFrame
from dig_rl.scoring import Scorer
from dig_rl.types import RolloutGroup, SampledGroup


class RewardService:
    """Owns the plugins of a run."""

    def __init__(self, config: Config, root: str, frame: CoordinateFrame, prompt: str) -> None:
        """Load the plugins.

        Args:
            config: the run.
            root: folder that plugin paths are relative to.
            frame: coordinate convention of the policy.
            prompt: what the policy is asked, shown to plugins.

        Raises:
            PluginError: a plugin cannot be loaded.
        """
        self._scorer = Scorer(
            config.reward, root=Path(root), thinking=config.policy.thinking, frame=frame, prompt=prompt
        )

    def score_groups(self, groups: Sequence[SampledGroup], step: int, stage: str) -> list[RolloutGroup]:
        """Total and terms of every completion.

        Raises:
            PluginError: a plugin raised or broke its contract; names plugin and pair.
        """
        return [
            RolloutGroup(
                sampled=group,
                scores=self._scorer.score(group, step=step, stage=stage),
                stage=stage,
            )
            for group in groups
        ]
