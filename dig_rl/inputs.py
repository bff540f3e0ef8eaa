"""What a run reads and checks before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dig_rl.config import Config
from dig_rl.curriculum import Curriculum, open_curriculum, stage_config
from dig_rl.data import load_examples
from dig_rl.evaluation.subset import representative_pairs
from dig_rl.plugins import load_plugin
from dig_rl.policy.targets import check_targets
from dig_rl.policy_limits import check_policy_limits
from dig_rl.scoring_pool import hash_plugins
from dig_rl.types import Example


@dataclass(frozen=True)
class Inputs:
    """What is checked and read before anything heavy starts."""

    examples: list[Example]
    heldout: list[Example]
    validation: list[Example]
    """Empty without `evaluation.every_steps`."""
    curriculum: Curriculum
    plugin_hashes: dict[str, str]


def read_inputs(config: Config, root: Path) -> Inputs:
    """Load plugins, data and stages, so that a mistake in any of them ends the run in a second.

    Raises:
        PluginError, DataError, ConfigError: what was expected, found, where.
    """
    for term in config.reward.terms.values():
        load_plugin(term.use, term.kwargs, root)
    data = config.data
    options: dict[str, Any] = {"allow_no_change": data.allow_no_change, "box_target": data.box_target}
    examples = load_examples(data.path, data.train_split, **options)
    max_pairs = config.evaluation.max_pairs
    heldout = representative_pairs(load_examples(data.path, data.heldout_split, **options), max_pairs)
    validation: list[Example] = []
    if config.evaluation.every_steps is not None:
        validation = representative_pairs(load_examples(data.path, data.validation_split, **options), max_pairs)
    curriculum = open_curriculum(config, examples, root)
    check_policy_limits(config)
    check_targets(config)
    for stage in curriculum.stages:
        stage_config(config, stage)  # says which override cannot be carried out
    return Inputs(examples, heldout, validation, curriculum, hash_plugins(config.reward, root))
