"""Controlled changes: planned before there is a scene, then made to it, each on its own object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dig_rl.datagen.recipe import DataRecipe, EditKind, differences_of
from dig_rl.datagen.sampling import keeps_clear, place, sample_object
from dig_rl.datagen.scene import COLORS_SRGB, MATERIALS, SHAPES, SIZES_M, Scene, SceneObject

ATTRIBUTE_OPTIONS = {"color": tuple(COLORS_SRGB), "shape": SHAPES, "size": tuple(SIZES_M), "material": MATERIALS}
KIND_SLACK = 1
"""A kind is planned only while it leads the least planned one by at most this many."""


@dataclass(frozen=True)
class PlannedChange:
    """What is to change, whatever the scene: kept over all tries at a pair, so that rejections favour nothing."""

    kind: EditKind
    size: str
    """Of the object before the change; of an added object, its own."""


@dataclass(frozen=True)
class Edit:
    """One change of one object."""

    kind: EditKind
    object_id: int


def plan_changes(
    rng: np.random.Generator, num_differences: int, kinds: Sequence[EditKind], planned: Counter[PlannedChange]
) -> tuple[PlannedChange, ...]:
    """Choose changes that make `num_differences` together, evenly over kinds, and over sizes within a kind.

    Args:
        rng: decides among the kinds and sizes that were planned least.
        num_differences: what they count together; a move counts 2.
        kinds: to choose from; they can make up the number.
        planned: what the pairs before this one got; the choice is added to it.
    """
    changes: list[PlannedChange] = []
    remaining = num_differences
    while remaining:
        fitting = [kind for kind in kinds if _can_make(remaining - differences_of(kind), kinds)]
        counts = {kind: sum(planned[PlannedChange(kind, size)] for size in SIZES_M) for kind in fitting}
        behind = [kind for kind in fitting if counts[kind] <= min(counts.values()) + KIND_SLACK]
        kind = behind[int(rng.integers(len(behind)))]
        options = [PlannedChange(kind, size) for size in SIZES_M]
        fewest = min(planned[option] for option in options)
        options = [option for option in options if planned[option] == fewest]
        change = options[int(rng.integers(len(options)))]
        planned[change] += 1
        changes.append(change)
        remaining -= differences_of(kind)
    return tuple(changes)


def sizes_needed(changes: Sequence[PlannedChange]) -> tuple[str, ...]:
    """Sizes that objects of the reference scene must have so that the changes can be made."""
    return tuple(change.size for change in changes if change.kind != "add")


def edit_scene(
    rng: np.random.Generator, scene: Scene, changes: Sequence[PlannedChange], recipe: DataRecipe
) -> tuple[Scene, tuple[Edit, ...]] | None:
    """Make the planned changes, each to an object of its own.

    Places that an object left stay empty, so that an addition is never mistaken for a change of what stood there.

    Returns:
        The changed scene and its edits by object id, or None when there is no room for an object that grew, moved or
        was added, or no object of a planned size.
    """
    edits = _choose_objects(rng, scene, changes)
    if edits is None:
        return None
    objects = {item.object_id: item for item in scene.objects}
    for edit in edits:
        if edit.kind == "remove":
            del objects[edit.object_id]
        elif edit.kind != "move":
            objects[edit.object_id] = change_attribute(rng, objects[edit.object_id], edit.kind)
    if any(_collides(item, objects, scene, recipe) for item in objects.values()):
        return None
    for edit in edits:
        if edit.kind == "move":
            moved = place(rng, recipe, objects[edit.object_id], (*scene.objects, *objects.values()))
            if moved is None:
                return None
            objects[edit.object_id] = moved
    for change in changes:
        if change.kind == "add":
            new_id = max(objects.keys() | {item.object_id for item in scene.objects}) + 1
            added = sample_object(rng, recipe, new_id, (*scene.objects, *objects.values()), size=change.size)
            if added is None:
                return None
            objects[new_id] = added
            edits.append(Edit("add", new_id))
    changed = replace(scene, objects=tuple(objects[object_id] for object_id in sorted(objects)))
    return changed, tuple(sorted(edits, key=lambda edit: edit.object_id))


def change_attribute(rng: np.random.Generator, item: SceneObject, kind: EditKind) -> SceneObject:
    """The object with a different color, shape, size or material, every other value as likely."""
    options = [option for option in ATTRIBUTE_OPTIONS[kind] if option != getattr(item, kind)]
    change: dict[str, Any] = {kind: options[int(rng.integers(len(options)))]}
    return replace(item, **change)


def _can_make(num_differences: int, kinds: Sequence[EditKind]) -> bool:
    if num_differences <= 0:
        return num_differences == 0
    return any(differences_of(kind) == 1 for kind in kinds) or num_differences % 2 == 0


def _choose_objects(rng: np.random.Generator, scene: Scene, changes: Sequence[PlannedChange]) -> list[Edit] | None:
    """An object of the planned size for every change but additions."""
    free = list(scene.objects)
    edits: list[Edit] = []
    for change in changes:
        if change.kind != "add":
            fitting = [item for item in free if item.size == change.size]
            if not fitting:
                return None
            item = fitting[int(rng.integers(len(fitting)))]
            free.remove(item)
            edits.append(Edit(change.kind, item.object_id))
    return edits


def _collides(item: SceneObject, objects: dict[int, SceneObject], scene: Scene, recipe: DataRecipe) -> bool:
    others = [other for other in (*scene.objects, *objects.values()) if other.object_id != item.object_id]
    return not keeps_clear(item, others, recipe.clearance_m)
