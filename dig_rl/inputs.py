"""What a run reads and checks before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dig_rl.config import Config
from dig_rl.curriculum import Curriculum, open_curriculum, stage_config
from dig_rl.evaluation.subset import representative_pairs
from dig_rl.plugins import load_plugin
from dig_rl.policy.targets import check_targets
from dig_rl.policy_files import hash_policy_files, is_from_hub
from dig_rl.policy_limits import check_policy_limits
from dig_rl.scoring_pool import hash_plugins
from dig_rl.splits import load_splits
from dig_rl.types import Example


@dataclass(frozen=True)
class Inputs:
    """What is checked and read before anything heavy starts."""

    examples: list[Example]
    heldout: list[Example]
    """Empty where the data has none."""
    validation: list[Example]
    """Empty where the data has none, or without `evaluation.every_steps`."""
    curriculum: Curriculum
    plugin_hashes: dict[str, str]
    policy_files: dict[str, str] = field(default_factory=dict)
    """As `dig_rl.policy_files` has them; of a hub's policy none before it is loaded."""


def read_inputs(config: Config, root: Path) -> Inputs:
    """Load plugins, data and stages, so that a mistake in any of them ends the run in a second.

    Raises:
        PluginError, DataError, ConfigError: what was expected, found, where.
    """
    for term in config.reward.terms.values():
        load_plugin(term.use, term.kwargs, root)
    examples, heldout, validation = load_splits(config)
    max_pairs = config.evaluation.max_pairs
    heldout, validation = (representative_pairs(pairs, max_pairs) for pairs in (heldout, validation))
    curriculum = open_curriculum(config, examples, root)
    check_policy_limits(config)
    check_targets(config)
    for stage in curriculum.stages:
        stage_config(config, stage)  # says which override cannot be carried out
    policy_files = {} if is_from_hub(config) else hash_policy_files(config)
    return Inputs(examples, heldout, validation, curriculum, hash_plugins(config.reward, root), policy_files)
