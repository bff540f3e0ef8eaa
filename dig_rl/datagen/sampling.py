"""Random scenes from an explicit generator.

Only additions and multiplications reach a position, so one seed gives one scene on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from dig_rl.datagen.recipe import DataRecipe, Distractors
from dig_rl.datagen.scene import COLORS_SRGB, MATERIALS, SHAPES, SIZES_M, Camera, DiskLight, Scene, SceneObject, Vector
from dig_rl.errors import ConfigError

PLACEMENT_TRIES = 50
LAYOUT_TRIES = 200


def sample_scene(rng: np.random.Generator, recipe: DataRecipe, sizes: Sequence[str] = ()) -> Scene:
    """Draw a scene: number, looks and places of the objects; camera and light are fixed by the recipe.

    Args:
        rng: decides everything.
        recipe: the bounds.
        sizes: sizes that some of the objects, chosen at random, must have.

    Raises:
        ConfigError: the objects do not fit into the arena.
    """
    fewest, most = recipe.num_objects
    count = int(rng.integers(max(fewest, len(sizes)), most + 1))
    fixed_sizes: dict[int, str] = {}
    if sizes:
        chosen = rng.choice(count, size=len(sizes), replace=False).tolist()
        fixed_sizes = dict(zip(chosen, sizes, strict=True))
    for _ in range(LAYOUT_TRIES):
        objects = _sample_layout(rng, recipe, count, fixed_sizes)
        if objects is not None:
            return stage(recipe, objects)
    raise ConfigError(
        f"{count} objects with clearance_m {recipe.clearance_m:g} do not fit into arena_m {recipe.arena_m:g} "
        f"after {LAYOUT_TRIES} tries; enlarge arena_m or lower num_objects"
    )


def sample_object(
    rng: np.random.Generator,
    recipe: DataRecipe,
    object_id: int,
    others: Iterable[SceneObject],
    size: str | None = None,
) -> SceneObject | None:
    """Draw an object, of a given size perhaps, that keeps its distance from `others`; None if no place was found."""
    shape, material = _choice(rng, SHAPES), _choice(rng, MATERIALS)
    color, any_size = _choice(rng, tuple(COLORS_SRGB)), _choice(rng, tuple(SIZES_M))
    yaw_deg = float(rng.uniform(0.0, 360.0))
    unplaced = SceneObject(object_id, shape, color, material, size or any_size, 0.0, 0.0, yaw_deg)
    return place(rng, recipe, unplaced, others)


def place(
    rng: np.random.Generator, recipe: DataRecipe, item: SceneObject, others: Iterable[SceneObject]
) -> SceneObject | None:
    """The object in a random place that keeps its distance from `others`; None if no place was found."""
    others = tuple(others)
    for _ in range(PLACEMENT_TRIES):
        x_m, y_m = (float(value) for value in rng.uniform(-recipe.arena_m, recipe.arena_m, size=2))
        placed = replace(item, x_m=x_m, y_m=y_m)
        if keeps_clear(placed, others, recipe.clearance_m):
            return placed
    return None


def jitter(rng: np.random.Generator, scene: Scene, distractors: Distractors) -> Scene:
    """The scene with its camera and lights a little off."""
    camera = replace(scene.camera, position_m=_shift(rng, scene.camera.position_m, distractors.camera_jitter_m))
    lights = tuple(
        replace(light, position_m=_shift(rng, light.position_m, distractors.light_jitter_m)) for light in scene.lights
    )
    return replace(scene, camera=camera, lights=lights)


def keeps_clear(placed: SceneObject, others: Iterable[SceneObject], clearance_m: float) -> bool:
    """Whether the enclosing cylinder of `placed` is at least `clearance_m` from those of all `others`."""
    return all(
        (placed.x_m - other.x_m) ** 2 + (placed.y_m - other.y_m) ** 2
        >= (placed.radius_m + other.radius_m + clearance_m) ** 2
        for other in others
    )


def stage(recipe: DataRecipe, objects: tuple[SceneObject, ...]) -> Scene:
    """Put objects before the fixed camera and under the fixed light, both scaled to the arena."""
    scale = (recipe.arena_m + max(SIZES_M.values())) / 2.7  # composed for an arena of 2 m and large objects
    return Scene(
        objects=objects,
        camera=Camera((0.0, -8.0 * scale, 6.4 * scale), (0.0, -0.15 * scale, 0.3 * scale)),
        lights=(
            DiskLight(
                position_m=(-6.0 * scale, -5.0 * scale, 10.0 * scale),
                look_at_m=(0.0, 0.0, 0.0),
                diameter_m=4.0 * scale,
                power_w=1500.0 * scale * scale,
                srgb=(255, 250, 243),
            ),
        ),
        sky_srgb=(237, 246, 255),
        sky_strength=0.5,
        ground_srgb=(173, 173, 175),
    )


def _sample_layout(
    rng: np.random.Generator, recipe: DataRecipe, count: int, fixed_sizes: dict[int, str]
) -> tuple[SceneObject, ...] | None:
    objects: list[SceneObject] = []
    for index in range(count):
        placed = sample_object(rng, recipe, index + 1, objects, size=fixed_sizes.get(index))
        if placed is None:
            return None
        objects.append(placed)
    return tuple(objects)


def _shift(rng: np.random.Generator, position_m: Vector, most_m: float) -> Vector:
    x_m, y_m, z_m = (
        float(value + shift) for value, shift in zip(position_m, rng.uniform(-most_m, most_m, 3), strict=True)
    )
    return x_m, y_m, z_m


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
