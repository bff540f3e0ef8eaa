"""Settings of a data folder: what to draw, how large, and how many pairs of each split.

A TOML file gives the sparse values, `launch/configs/data/` holds the shipped ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dig_rl.data import BoxTarget, Split
from dig_rl.errors import ConfigError
from dig_rl.layers import build, read_toml

EditKind = Literal["color", "shape", "size", "material", "add", "remove"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LabelRules(_Section):
    """When a sampled pair is rejected and sampled again."""

    min_visible_px: float = Field(50.0, gt=0)
    """Fewest visible pixels of an object in a picture of 160x120; scaled by area for other sizes."""
    min_visible_fraction: float = Field(0.5, ge=0, le=1)
    """Least visible part of a changed object in each picture that shows it."""
    max_box_iou: float = Field(0.5, gt=0, le=1)
    """Two change boxes overlap less than this."""
    min_color_difference: float = Field(10.0, ge=0)
    """Least mean CIEDE2000 over a recoloured or resurfaced object's pixels."""

    def min_visible_px_at(self, width: int, height: int) -> float:
        """`min_visible_px` scaled to a picture of this size."""
        return self.min_visible_px * (width * height) / (160 * 120)


class DataRecipe(_Section):
    """Everything that decides what a data folder holds."""

    seed: int = Field(0, ge=0)
    width: int = Field(160, ge=16, le=4096)
    """Pixels; multiples of 32 suit Qwen3-VL."""
    height: int = Field(120, ge=16, le=4096)
    samples: int = Field(16, ge=1, le=4096)
    """Light paths a pixel."""
    num_objects: tuple[int, int] = (3, 10)
    """Fewest and most objects of the reference picture."""
    arena_m: float = Field(3.0, gt=0)
    """Objects stand within this distance of the centre along x and y; the camera backs off to show them all."""
    clearance_m: float = Field(0.25, ge=0)
    """Least gap between the enclosing cylinders of two objects."""
    kinds: tuple[EditKind, ...] = Field(get_args(EditKind), min_length=1)
    """Kinds of change, each as likely as the others."""
    box_target: BoxTarget = "union"
    """What `box` of a difference is; any training run can choose another."""
    max_attempts: int = Field(500, ge=1)
    """Tries at one pair before the recipe is declared impossible."""
    rules: LabelRules = LabelRules()
    splits: dict[Split, dict[int, int]] = {"train": {1: 1}}
    """Pairs of each split by number of differences: `[splits.train]`, `1 = 80`, `2 = 80`."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> DataRecipe:
        fewest, most = self.num_objects
        if not 1 <= fewest <= most:
            raise ValueError(f"num_objects must be [fewest, most] with 1 <= fewest <= most, found {self.num_objects}")
        most_changes = max((changes for counts in self.splits.values() for changes in counts), default=0)
        if "add" not in self.kinds and most_changes > fewest:
            raise ValueError(
                f"{most_changes} changes need as many objects (num_objects starts at {fewest}) or kind add"
            )
        if most + most_changes > 255:
            raise ValueError(f"object ids end at 255; found {most} objects and {most_changes} changes")
        for split, counts in self.splits.items():
            if any(changes < 1 or pairs < 0 for changes, pairs in counts.items()):
                raise ValueError(f"splits.{split}: differences must be at least 1, pairs at least 0, found {counts}")
        if self.num_pairs < 1:
            raise ValueError("splits ask for no pair at all")
        return self

    @property
    def num_pairs(self) -> int:
        """Pairs over all splits."""
        return sum(pairs for counts in self.splits.values() for pairs in counts.values())


def load_recipe(path: str | Path, count: int | None = None) -> DataRecipe:
    """Read a recipe, with `count` pairs in all if that is given.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value does not fit, or `count` is below 1.
    """
    recipe = build(DataRecipe, read_toml(path), where=str(path))
    return recipe if count is None else with_total(recipe, count)


def with_total(recipe: DataRecipe, count: int) -> DataRecipe:
    """The recipe with `count` pairs in all, shared out in the recipe's proportions by largest remainders."""
    if count < 1:
        raise ConfigError(f"COUNT must be at least 1 pair, found {count}")
    cells = [(split, changes) for split, counts in recipe.splits.items() for changes in counts]
    shares = [recipe.splits[split][changes] * count / recipe.num_pairs for split, changes in cells]
    pairs = [int(share) for share in shares]
    by_remainder = sorted(range(len(cells)), key=lambda index: pairs[index] - shares[index])
    for index in by_remainder[: count - sum(pairs)]:
        pairs[index] += 1
    splits: dict[str, dict[int, int]] = {split: {} for split in recipe.splits}
    for (split, changes), number in zip(cells, pairs, strict=True):
        splits[split][changes] = number
    return DataRecipe(**{**recipe.model_dump(), "splits": splits})
