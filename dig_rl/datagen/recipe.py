"""Settings of a data folder: what to draw, how large, and how many pairs of each split.

A TOML file gives the sparse values, `launch/configs/data/` holds the shipped ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dig_rl.config import build, read_toml
from dig_rl.data import BoxTarget, Split
from dig_rl.errors import ConfigError

EditKind = Literal["color", "shape", "size", "material", "add", "remove", "move"]
DEFAULT_KINDS: tuple[EditKind, ...] = ("color", "shape", "size", "material", "add", "remove")
Device = Literal["cpu", "cuda", "optix", "metal"]


def differences_of(kind: EditKind) -> int:
    """Differences that one change makes: a moved object is one where it was and one where it is."""
    return 2 if kind == "move" else 1


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
    """Least mean CIEDE2000 over the pixels that show a recoloured or resurfaced object in both pictures."""
    foresight_margin: float = Field(1.2, ge=1)
    """How many times `min_color_difference` must be foreseen before the pictures are drawn."""

    def min_visible_px_at(self, width: int, height: int) -> float:
        """`min_visible_px` scaled to a picture of this size."""
        return self.min_visible_px * (width * height) / (160 * 120)


class Distractors(_Section):
    """What else differs between the two pictures and is no change; nothing unless asked for."""

    camera_jitter_m: float = Field(0.0, ge=0)
    """The camera of the changed picture is up to this far off along each axis; it looks at the same point."""
    light_jitter_m: float = Field(0.0, ge=0)
    """So is every light."""
    new_noise: bool = False
    """The changed picture gets a noise of its own."""


class DataRecipe(_Section):
    """Everything that decides what a data folder holds."""

    seed: int = Field(0, ge=0)
    width: int = Field(160, ge=16, le=4096)
    """Pixels; multiples of 32 suit Qwen3-VL."""
    height: int = Field(120, ge=16, le=4096)
    samples: int = Field(16, ge=1, le=4096)
    """Light paths a pixel."""
    renderer: Literal["blender", "numpy"] = "blender"
    """Blender Cycles, or rays cast in numpy: no set-up, faster, plainer pictures."""
    device: Device = "cpu"
    """What Blender computes on."""
    num_objects: tuple[int, int] = (3, 10)
    """Fewest and most objects of the reference picture."""
    arena_m: float = Field(3.0, gt=0)
    """Objects stand within this distance of the centre along x and y; the camera backs off to show them all."""
    clearance_m: float = Field(0.25, ge=0)
    """Least gap between the enclosing cylinders of two objects."""
    kinds: tuple[EditKind, ...] = Field(DEFAULT_KINDS, min_length=1)
    """Kinds of change, each as frequent as the others; `move` counts as two differences."""
    box_target: BoxTarget = "union"
    """What `box` of a difference is; any training run can choose another."""
    max_attempts: int = Field(500, ge=1)
    """Tries at one pair before the recipe is declared impossible."""
    rules: LabelRules = LabelRules()
    distractors: Distractors = Distractors()
    splits: dict[Split, dict[int, int]] = {"train": {1: 1}}
    """Pairs of each split by number of differences: `[splits.train]`, `1 = 80`, `2 = 80`; `0` for none."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> DataRecipe:
        fewest, most = self.num_objects
        if not 1 <= fewest <= most:
            raise ValueError(f"num_objects must be [fewest, most] with 1 <= fewest <= most, found {self.num_objects}")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds names a kind twice: {list(self.kinds)}")
        if self.device != "cpu" and self.renderer != "blender":
            raise ValueError(f"device {self.device} is for renderer blender; renderer {self.renderer} uses the CPU")
        for split, counts in self.splits.items():
            if any(changes < 0 or pairs < 0 for changes, pairs in counts.items()):
                raise ValueError(f"splits.{split}: differences and pairs must be at least 0, found {counts}")
        wanted = {changes for counts in self.splits.values() for changes, pairs in counts.items() if pairs}
        if self.kinds == ("move",) and any(changes % 2 for changes in wanted):
            raise ValueError(f"a move is two differences: moves alone cannot make {sorted(wanted)}; add another kind")
        most_changes = max(wanted, default=0)
        if self.kinds != ("add",) and most_changes > most:
            raise ValueError(f"{most_changes} changes need as many objects, num_objects ends at {most}")
        if most + most_changes > 255:
            raise ValueError(f"object ids end at 255; found {most} objects and {most_changes} changes")
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
