"""What an ablation recipe holds; launch/configs/recipes/ablations.toml is the one that `make ablations` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dig_rl.layers import build, read_toml

Axis = Literal["reward", "curriculum", "control"]
Control = Literal["shuffled_labels", "blank_image_b", "sft_more"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ArmRecipe(_Table):
    """One arm: what differs from the recipe's full method."""

    axis: Axis
    """Table of the report that the arm belongs to."""
    same_run_as: str | None = None
    """Another arm with the same settings: that run is written down under this name as well."""
    reward_weights: dict[str, float] | None = None
    """Weights of the reward's terms, in place of the recipe's; terms that are not named are left out."""
    curriculum: str | None = None
    """Stage file, in place of the recipe's."""
    set: tuple[str, ...] = ()
    """`section.key=value` overrides of its own, after everything else."""
    control: Control | None = None
    """What is done to the data, or in place of GRPO."""
    minutes_of: str | None = None
    """`sft_more`: the arm whose minutes of training it gets, seed by seed."""
    training: dict[str, Any] = {}
    """`sft_more`: settings of `dig_rl.family_warmup.FamilyWarmupConfig`, all but the number of steps, and
    `coordinate_levels`, in place of the config's `warmup.coordinate_levels`."""
    later: bool = False
    """Comes after every seed of the arms that are not."""

    @model_validator(mode="after")
    def _is_consistent(self) -> ArmRecipe:
        if (self.axis == "control") != (self.control is not None):
            raise ValueError('arms with axis = "control", and only they, name a control')
        if (self.control == "sft_more") != (self.minutes_of is not None):
            raise ValueError('minutes_of belongs to control = "sft_more", which needs it')
        if self.training and self.control != "sft_more":
            raise ValueError('training belongs to control = "sft_more"')
        changes = (self.reward_weights, self.curriculum, self.set or None, self.control)
        if self.same_run_as is not None and any(change is not None for change in changes):
            raise ValueError("an arm with same_run_as has no settings of its own")
        return self


class AblationRecipe(_Table):
    """Everything that decides which runs there are and in what they differ."""

    config: str
    """TOML file with the settings that all runs share."""
    set: tuple[str, ...] = ()
    """`section.key=value` overrides of it, as `SET=` takes them."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Every arm is run once with each."""
    curriculum: str
    """Stage file of arms without one of their own."""
    reward_weights: dict[str, float]
    """Weights, by the names of the config's reward terms, of arms without their own."""
    arms: dict[str, ArmRecipe] = Field(min_length=1)
    """In the order they are run, each seed in turn."""

    @model_validator(mode="after")
    def _arms_go_together(self) -> AblationRecipe:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must differ and be 0 or more, found {list(self.seeds)}")
        for name, arm in self.arms.items():
            for key in ("same_run_as", "minutes_of"):
                other = getattr(arm, key)
                if other is None:
                    continue
                if other not in self.arms:
                    raise ValueError(f"arms.{name}.{key} names {other!r}; arms are {', '.join(self.arms)}")
                if self.arms[other].same_run_as is not None or self.arms[other].control is not None:
                    raise ValueError(f"arms.{name}.{key} names {other!r}, which has no GRPO run of its own")
        return self


def load_recipe(path: str | Path) -> AblationRecipe:
    """Read a recipe.

    Raises:
        ConfigError: the file is missing, not TOML, or wrong; the key is named.
    """
    return build(AblationRecipe, read_toml(path), where=str(path))
