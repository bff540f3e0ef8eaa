"""The pairs that a run is trained, chosen and measured on; it can do without those of the last two."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from dig_rl.config import Config
from dig_rl.data import load_examples
from dig_rl.errors import MissingSplitError
from dig_rl.types import Example

_log = logging.getLogger(__name__)


class Splits(NamedTuple):
    """Pairs of a run by what they are for."""

    train: list[Example]
    heldout: list[Example]
    """Empty where there are none; the run then has no figures from before and after training."""
    validation: list[Example]
    """Empty where there are none, or none are asked for; no checkpoint is then the best one."""


def load_splits(config: Config) -> Splits:
    """Read the pairs of a run, and say in one line each what it goes without.

    Raises:
        DataError: a label or an image is wrong, or there is no pair to train on.
    """
    data = config.data
    options: dict[str, Any] = {"allow_no_change": data.allow_no_change, "box_target": data.box_target}
    try:
        train = load_examples(data.path, data.train_split, **options)
    except MissingSplitError as error:
        raise MissingSplitError(f"{error}; name the pairs to train on with data.train_split") from None

    def load_if_there(key: str, split: str | None, without: str) -> list[Example]:
        if split is None:
            return []
        try:
            return load_examples(data.path, split, **options)
        except MissingSplitError as error:
            _log.warning("data.%s: %s; going on without %s", key, error, without)
            return []

    heldout = load_if_there("heldout_split", data.heldout_split, "held-out answers before and after training")
    validation: list[Example] = []
    if config.evaluation.every_steps is not None:
        without = "validation, so no checkpoint is chosen as the best"
        validation = load_if_there("validation_split", data.validation_split, without)
        if validation and not may_choose(config):
            _log.warning(
                "data.validation_split is that of the held-out pairs, %s: no checkpoint is chosen as the best by it",
                data.heldout_split,
            )
    return Splits(train, heldout, validation)


def may_choose(config: Config) -> bool:
    """Whether the best checkpoint may be kept: never by the pairs that the run is measured on."""
    return config.checkpoint.keep_best and config.data.validation_split != config.data.heldout_split
