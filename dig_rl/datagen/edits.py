"""Controlled changes: K edits, each on its own object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dig_rl.datagen.recipe import DataRecipe, EditKind
from dig_rl.datagen.sampling import keeps_clear, sample_object
from dig_rl.datagen.scene import COLORS_SRGB, MATERIALS, SHAPES, SIZES_M, Scene, SceneObject

ATTRIBUTE_OPTIONS = {"color": tuple(COLORS_SRGB), "shape": SHAPES, "size": tuple(SIZES_M), "material": MATERIALS}


@dataclass(frozen=True)
class Edit:
    """One change of one object."""

    kind: EditKind
    object_id: int


def edit_scene(
    rng: np.random.Generator, scene: Scene, num_edits: int, recipe: DataRecipe
) -> tuple[Scene, tuple[Edit, ...]] | None:
    """Apply `num_edits` random edits to distinct objects.

    Removed places stay empty, so that an addition is never mistaken for a change of what stood there.

    Returns:
        The changed scene and its edits by object id, or None when an object that grew or was added found no room.
    """
    kinds = _sample_kinds(rng, num_edits, len(scene.objects), recipe)
    on_existing = [kind for kind in kinds if kind != "add"]
    chosen = rng.choice(len(scene.objects), size=len(on_existing), replace=False)
    edits = [Edit(kind, scene.objects[int(index)].object_id) for kind, index in zip(on_existing, chosen, strict=True)]
    objects = {item.object_id: item for item in scene.objects}
    for edit in edits:
        if edit.kind == "remove":
            del objects[edit.object_id]
        else:
            objects[edit.object_id] = change_attribute(rng, objects[edit.object_id], edit.kind)
    if any(_collides(item, objects, scene, recipe) for item in objects.values()):
        return None
    for _ in range(kinds.count("add")):
        new_id = max(objects.keys() | {item.object_id for item in scene.objects}) + 1
        added = sample_object(rng, recipe, new_id, (*scene.objects, *objects.values()))
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


def _sample_kinds(rng: np.random.Generator, num_edits: int, num_objects: int, recipe: DataRecipe) -> list[EditKind]:
    while True:
        kinds = [recipe.kinds[int(index)] for index in rng.integers(len(recipe.kinds), size=num_edits)]
        if num_edits - kinds.count("add") <= num_objects:
            return kinds


def _collides(item: SceneObject, objects: dict[int, SceneObject], scene: Scene, recipe: DataRecipe) -> bool:
    others = [other for other in (*scene.objects, *objects.values()) if other.object_id != item.object_id]
    return not keeps_clear(item, others, recipe.clearance_m)
