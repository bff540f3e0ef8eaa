"""What a stage file holds; curricula/README.md is its documentation for users."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dig_rl.bounds import Temperature
from dig_rl.config import Config
from dig_rl.data import Kind
from dig_rl.errors import ConfigError
from dig_rl.layers import build, read_toml
from dig_rl.types import Example

# Strict: a length of `true`, or of "3", is a slip.
Count = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]

MAX_SPREAD = 0.5
"""Greatest standard deviation (ddof 0) of rewards in [0, 1]: one half at 0, the other at 1."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Promotion(_Table):
    """A stage ends early when a mean over its last steps reaches a level."""

    metric: str = "reward"
    """`reward`, the weighted total, or the name of one reward term, as `f1`; of the stage's own pairs."""
    level: float = Field(gt=0, le=1)
    """The mean that is enough."""
    window: Length
    """Last steps that the mean is taken over; never fewer."""
    min_steps: Length = 1
    """Steps that the stage has in any case."""

    @property
    def earliest_step(self) -> int:
        """Steps of the stage before which the rule cannot hold."""
        return max(self.min_steps, self.window)


class Adaptive(_Table):
    """Pairs are drawn in proportion to the spread (standard deviation, ddof 0) of their last group's rewards."""

    floor: float = Field(0.05, gt=0, le=MAX_SPREAD)
    """Least weight of a pair. A pair not yet seen weighs as much as a pair can, 0.5."""


class Overrides(_Table):
    """Settings of the run that a stage may change while engines keep running."""

    group_size: int | None = Field(None, ge=2, le=1024, strict=True)
    """In place of `rollout.group_size`."""
    temperature: Temperature | None = None
    """In place of `rollout.temperature`, for sampler and learner alike."""
    max_completion_tokens: Length | None = None
    """In place of `rollout.max_completion_tokens`, and not above it."""
    lr: float | None = Field(None, ge=0)
    """In place of `learner.lr`."""
    lr_end: float | None = Field(None, ge=0)
    """Where the learning rate goes from there, in a straight line over the stage's steps: the step after the last one
    would have it."""


class Stage(_Table):
    """One stage: which pairs, for how long, drawn how."""

    name: str = Field(min_length=1)
    """Letters, digits, spaces and `._,:+-()`, since tables and plots read other signs as markup."""
    differences: tuple[Count, Count]
    """Fewest and most changes of a pair, both included."""
    kinds: tuple[Kind, ...] | None = Field(None, min_length=1)
    """Every change of a pair is of one of these kinds."""
    size: tuple[Share, Share] | None = None
    """Least and greatest area of every change's box, as a share of the picture."""
    visibility: tuple[Share, Share] | None = None
    """Least and greatest visible fraction of every change (see `Example.visible_fractions`)."""
    steps: Length | None = None
    """Length in training steps; the greatest length where there is a promotion rule, as with the next two."""
    epochs: Length | None = None
    """Length in passes over the pairs that fit; the last step is filled up from one more pass."""
    until_step: Length | None = None
    """The stage ends when the whole run has had this many steps."""
    promotion: Promotion | None = None
    replay: float = Field(0.0, ge=0, lt=1)
    """Share of the stage's pairs that are drawn from those of all earlier stages."""
    adaptive: Adaptive | None = None
    """Prefer pairs whose answers still disagree; without it, pairs are shuffled and taken in passes."""
    overrides: Overrides = Overrides()

    @model_validator(mode="after")
    def _is_consistent(self) -> Stage:
        if not re.fullmatch(r"\w[\w .,:+()-]*", self.name):
            raise ValueError(f"name must consist of letters, digits, spaces and ._,:+-(), found {self.name!r}")
        for key in ("differences", "size", "visibility"):
            bounds = getattr(self, key)
            if bounds is not None and bounds[0] > bounds[1]:
                least, most = ("fewest", "most") if key == "differences" else ("least", "greatest")
                raise ValueError(f"{key} must be [{least}, {most}], found {list(bounds)}")
        lengths = [key for key in ("steps", "epochs", "until_step") if getattr(self, key) is not None]
        if len(lengths) != 1:
            role = "its greatest length, since promotion may never come" if self.promotion else "its length"
            found = " and ".join(lengths) or "none of them"
            raise ValueError(f"a stage has either steps or epochs or until_step as {role}, found {found}")
        return self

    def admits(self, example: Example) -> bool:
        """Whether a pair belongs to this stage; what is not known of a pair (visibility, kind) fits no filter."""
        return all(fits(example) for _, fits in self.filters())

    def filters(self) -> list[tuple[str, Callable[[Example], bool]]]:
        """What the stage asks of a pair: each demand in words, and whether a pair meets it."""
        fewest, most = self.differences
        filters: list[tuple[str, Callable[[Example], bool]]] = [
            (f"{fewest} to {most} differences", lambda example: fewest <= example.num_differences <= most)
        ]
        if self.kinds is not None:
            kinds = set(self.kinds)
            filters.append((f"only kinds {', '.join(self.kinds)}", lambda example: kinds.issuperset(example.kinds)))
        if self.size is not None:
            low, high = self.size
            words = f"boxes of {low:g} to {high:g} of the picture"
            filters.append((words, lambda example: all(low <= share <= high for share in example.area_shares)))
        if self.visibility is not None:
            filters.append(_visibility_filter(*self.visibility))
        return filters

    def num_replayed(self, num_steps: int, prompts_per_step: int) -> int:
        """Replayed pairs in the first `num_steps` steps: the share of all their pairs, rounded down."""
        return math.floor(self._exact_replay * prompts_per_step * num_steps)

    def steps_for(self, num_pairs: int, prompts_per_step: int) -> int:
        """Steps after which the stage has drawn `num_pairs` or more of its own, replayed ones not counted."""
        own_a_step = (1 - self._exact_replay) * prompts_per_step
        # t steps hold ceil(own_a_step * t) own pairs: the least t whose count reaches num_pairs.
        return math.floor((num_pairs - 1) / own_a_step) + 1

    @property
    def _exact_replay(self) -> Fraction:
        return Fraction(str(self.replay))  # a float of 0.1 is a little more than a tenth, and would round otherwise


def _visibility_filter(low: float, high: float) -> tuple[str, Callable[[Example], bool]]:
    def fits(example: Example) -> bool:
        known = len(example.visible_fractions) == example.num_differences
        return known and all(seen is not None and low <= seen <= high for seen in example.visible_fractions)

    return f"visible fractions of {low:g} to {high:g}", fits


class _StageFile(_Table):
    stages: list[dict[str, Any]] = Field(min_length=1)


def load_stages(path: str | Path) -> tuple[Stage, ...]:
    """Read a stage file: one `[[stages]]` table a stage, in the order they are trained.

    Raises:
        ConfigError: the file is missing, not TOML, or a stage is wrong.
    """
    if not Path(path).is_file():
        raise ConfigError(f"no stage file at {path}; the config's key `curriculum` names it")
    tables = build(_StageFile, read_toml(path), where=str(path)).stages
    stages = tuple(build(Stage, table, where=f"{path}, stage {index}") for index, table in enumerate(tables, start=1))
    check_sequence(stages, str(path))
    return stages


def check_sequence(stages: Sequence[Stage], where: str) -> None:
    """Refuse stages that are right one by one but not together; `where` begins the message.

    Raises:
        ConfigError: a name occurs twice, or the first stage replays.
    """
    repeated = [name for name, count in Counter(stage.name for stage in stages).items() if count > 1]
    if repeated:
        raise ConfigError(f"{where}: stage names must differ, found {', '.join(repeated)} more than once")
    if stages[0].replay:
        raise ConfigError(
            f'{where}: stage "{stages[0].name}" is the first, so it has no earlier pairs to replay, found '
            f"replay = {stages[0].replay:g}; remove the key"
        )


def stage_config(config: Config, stage: Stage, done: float = 0.0) -> Config:
    """The config of a run as it holds during one stage.

    Args:
        config: the run's own.
        stage: the stage.
        done: share of the stage's steps that are behind, from 0 to below 1.

    Raises:
        ConfigError: an override cannot be carried out.
    """
    overrides = stage.overrides.model_dump(exclude_none=True)
    where = f'{config.curriculum}, stage "{stage.name}", overrides'
    if overrides.get("max_completion_tokens", 0) > config.rollout.max_completion_tokens:
        raise ConfigError(
            f"{where}.max_completion_tokens: expected at most rollout.max_completion_tokens "
            f"({config.rollout.max_completion_tokens}), which the context is checked for, found "
            f"{overrides['max_completion_tokens']}; raise the config's own value"
        )
    rates = [key for key in ("lr", "lr_end") if key in overrides]
    if rates and not config.learner.lr_is_ours:
        raise ConfigError(
            f"{where}.{rates[0]}: learner.deepspeed names a learning rate or has a scheduler, which decides on "
            "the learning rate; remove the override, or these keys"
        )
    start, end = overrides.pop("lr", config.learner.lr), overrides.pop("lr_end", None)
    learner = {"lr": start if end is None else start + (end - start) * done}
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update=overrides),
            "learner": config.learner.model_copy(update=learner),
        }
    )
