"""Which pairs come next: stages as data, each a filter and a length, drawn without replacement epoch by epoch.

Every draw is a function of (seed, stage, step) alone, so a resumed run draws exactly the pairs of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dig_rl.config import build, read_toml
from dig_rl.errors import CheckpointError, ConfigError
from dig_rl.types import Example, RolloutGroup


class Stage(BaseModel):
    """One stage: which pairs, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    differences: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    """Fewest and most changes of a pair, both included."""
    steps: int | None = Field(None, ge=1)
    """Length in training steps."""
    epochs: int | None = Field(None, ge=1)
    """Length in passes over the pairs that fit; the last step is filled up from one more pass."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Stage:
        if self.differences[0] > self.differences[1]:
            raise ValueError(f"differences must be [fewest, most], found {list(self.differences)}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage has either steps or epochs")
        return self

    def admits(self, example: Example) -> bool:
        """Whether a pair belongs to this stage."""
        return self.differences[0] <= example.num_differences <= self.differences[1]


class _StageFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: list[dict[str, Any]] = Field(min_length=1)


def load_stages(path: str | Path) -> tuple[Stage, ...]:
    """Read a stage file: one `[[stages]]` table a stage, in the order they are trained.

    Raises:
        ConfigError: the file is missing, not TOML, or a stage is wrong.
    """
    tables = build(_StageFile, read_toml(path), where=str(path)).stages
    stages = tuple(build(Stage, table, where=f"{path}, stage {index}") for index, table in enumerate(tables, start=1))
    repeated = [name for name, count in Counter(stage.name for stage in stages).items() if count > 1]
    if repeated:
        raise ConfigError(f"{path}: stage names must differ, found {', '.join(repeated)} more than once")
    return stages


class Curriculum:
    """The stream of pairs of a run."""

    def __init__(
        self, stages: Sequence[Stage], examples: Sequence[Example], *, seed: int, prompts_per_step: int
    ) -> None:
        """Sort the pairs into stages.

        Args:
            stages: in the order they are trained.
            examples: training pairs; one may belong to several stages.
            seed: of every shuffle.
            prompts_per_step: P, pairs of one step.

        Raises:
            ConfigError: no pair fits a stage.
        """
        self._stages = tuple(stages)
        self._streams = [
            _Stream(_admitted(stage, examples), (seed, index), prompts_per_step) for index, stage in enumerate(stages)
        ]
        self._lengths = [
            stage.steps or math.ceil((stage.epochs or 0) * len(stream.examples) / prompts_per_step)
            for stage, stream in zip(stages, self._streams, strict=True)
        ]
        self._stage_index = 0
        self._step = 0  # within the stage
        self._mean_rewards: dict[str, list[float]] = {stage.name: [] for stage in stages}

    @property
    def stage(self) -> Stage:
        """Stage of the next draw; the last one when the run is finished."""
        return self._stages[self.stage_index]

    @property
    def stage_index(self) -> int:
        """Index of `stage`."""
        return min(self._stage_index, len(self._stages) - 1)

    @property
    def finished(self) -> bool:
        """Whether every stage has had its steps."""
        return self._stage_index == len(self._stages)

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(self._lengths)

    @property
    def mean_rewards(self) -> dict[str, list[float]]:
        """Mean total reward of each observed step by stage name, in order: what a promotion rule decides on."""
        return {name: list(values) for name, values in self._mean_rewards.items()}

    def next_examples(self) -> list[Example]:
        """Draw the P pairs of the next step; no pair twice in a step if the stage has P or more.

        Raises:
            RuntimeError: the curriculum is finished.
        """
        if self.finished:
            raise RuntimeError(f"the curriculum is finished after {self.total_steps} steps; nothing is left to draw")
        examples = self._streams[self._stage_index].step(self._step)
        self._step += 1
        if self._step == self._lengths[self._stage_index]:
            self._stage_index, self._step = self._stage_index + 1, 0
        return examples

    def observe(self, groups: Sequence[RolloutGroup]) -> None:
        """Take note of how one step's groups of one stage were rewarded, dropped groups included."""
        means = [group.rewards.mean() for group in groups if group.scored]
        if means:
            self._mean_rewards[groups[0].stage].append(float(np.mean(means)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint needs, as JSON values."""
        return {
            "stage_index": self._stage_index,
            "step": self._step,
            "mean_rewards": self.mean_rewards,
            "fingerprint": self._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: stages, pairs, seed or pairs per step are not those of the checkpoint.
        """
        if state["fingerprint"] != self._fingerprint():
            raise CheckpointError(
                "stages, training pairs, seed or pairs per step differ from those of the checkpoint, so the run cannot "
                "draw the pairs it would have drawn; restore them, or give RUN= a new name"
            )
        self._stage_index, self._step = state["stage_index"], state["step"]
        self._mean_rewards = {name: list(values) for name, values in state["mean_rewards"].items()}

    def _fingerprint(self) -> str:
        stages = [
            [stage.model_dump(), length, stream.describe()]
            for stage, length, stream in zip(self._stages, self._lengths, self._streams, strict=True)
        ]
        return hashlib.sha256(json.dumps(stages).encode()).hexdigest()


class _Stream:
    """The endless stream of one stage's pairs: shuffled epochs one after the other, cut into steps."""

    def __init__(self, examples: Sequence[Example], seed: tuple[int, int], prompts_per_step: int) -> None:
        self.examples = examples
        self._seed = seed
        self._prompts_per_step = prompts_per_step
        self._orders: list[list[int]] = []

    def describe(self) -> list[Any]:
        return [self._seed, self._prompts_per_step, [example.pair_id for example in self.examples]]

    def step(self, index: int) -> list[Example]:
        start = index * self._prompts_per_step
        return [self._at(position) for position in range(start, start + self._prompts_per_step)]

    def _at(self, position: int) -> Example:
        epoch, offset = divmod(position, len(self.examples))
        while len(self._orders) <= epoch:
            self._orders.append(self._next_order())
        return self.examples[self._orders[epoch][offset]]

    def _next_order(self) -> list[int]:
        epoch = len(self._orders)
        order: list[int] = np.random.default_rng([*self._seed, epoch]).permutation(len(self.examples)).tolist()
        num_shared = epoch * len(order) % self._prompts_per_step
        if not num_shared:
            return order
        # A step that straddles two epochs takes its first pairs from the end of the last: draw others to fill it up.
        taken = set(self._orders[-1][-num_shared:])
        fresh = [index for index in order if index not in taken][: self._prompts_per_step - num_shared]
        first = set(fresh)
        return fresh + [index for index in order if index not in first]


def _admitted(stage: Stage, examples: Sequence[Example]) -> list[Example]:
    admitted = [example for example in examples if stage.admits(example)]
    if not admitted:
        offered = sorted(Counter(example.num_differences for example in examples).items())
        described = ", ".join(f"{count} pairs with {number}" for number, count in offered) or "no pairs"
        fewest, most = stage.differences
        raise ConfigError(
            f'stage "{stage.name}" wants pairs with {fewest} to {most} differences, but the training data has '
            f"{described}; change the stage's differences or make data that fits"
        )
    return admitted
