"""One pair: sample, edit, look at ids, render, label; again until nothing speaks against it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from dig_rl.data import PairRecord, Split
from dig_rl.datagen.edits import Edit, edit_scene
from dig_rl.datagen.labels import IdPicture, Rejection, label_differences, rejection_by_color, rejection_by_ids
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import Renderer
from dig_rl.datagen.sampling import sample_scene
from dig_rl.datagen.scene import Scene, scene_to_json
from dig_rl.errors import ConfigError


@dataclass(frozen=True)
class PairTask:
    """One pair to make; nothing but these values and the recipe decides what it shows."""

    pair_id: str
    split: Split
    num_differences: int
    seed: int
    """In [0, 2**48)."""


@dataclass(frozen=True)
class FinishedPair:
    """A pair that passed every rule."""

    record: PairRecord
    images: tuple[np.ndarray, np.ndarray]
    """Reference and changed picture, `[H, W, 3]` uint8 sRGB."""
    scenes: dict[str, Any]
    """Both scenes and the edits as JSON values."""
    rejections: Counter[Rejection]
    """Tries thrown away before this pair, by reason."""


@dataclass(frozen=True)
class _Candidate:
    scenes: tuple[Scene, Scene]
    edits: tuple[Edit, ...]
    pictures: tuple[IdPicture, IdPicture]
    images: tuple[np.ndarray, np.ndarray]


def plan_pairs(recipe: DataRecipe) -> list[PairTask]:
    """Every pair of the recipe in the order of `metadata.jsonl`.

    Pair ids, and so file names, say nothing of the split: `datasets` takes a file named `train-...` for a split of its
    own and then ignores `metadata.jsonl`.
    """
    tasks: list[PairTask] = []
    for split, counts in recipe.splits.items():
        changes = [number for number, pairs in sorted(counts.items()) for _ in range(pairs)]
        for index, number in enumerate(changes):
            seed = _pair_seed(recipe.seed, split, index)
            tasks.append(PairTask(f"pair-{len(tasks):05d}", split, number, seed))
    return tasks


def make_pair(task: PairTask, recipe: DataRecipe, renderer: Renderer) -> FinishedPair:
    """Sample until a pair passes every rule, and render it.

    Raises:
        ConfigError: the recipe's `max_attempts` tries were all rejected.
        RenderError: the renderer failed.
    """
    rejections: Counter[Rejection] = Counter()
    for attempt in range(recipe.max_attempts):
        outcome = _try_pair(np.random.default_rng([task.seed, attempt]), task, recipe, renderer)
        if isinstance(outcome, _Candidate):
            return _finish(task, recipe, outcome, rejections)
        rejections[outcome] += 1
    raise ConfigError(
        f"no acceptable {task.pair_id} with {task.num_differences} differences in {recipe.max_attempts} tries "
        f"(rejected: {dict(rejections.most_common())}); draw fewer or larger objects, a larger picture, or relax rules"
    )


def _try_pair(
    rng: np.random.Generator, task: PairTask, recipe: DataRecipe, renderer: Renderer
) -> _Candidate | Rejection:
    scene_a = sample_scene(rng, recipe)
    edited = edit_scene(rng, scene_a, task.num_differences, recipe)
    if edited is None:
        return "no_room"
    scene_b, edits = edited
    scenes = (scene_a, scene_b)
    changed = [edit.object_id for edit in edits]
    ids_a, ids_b = ({item.object_id for item in scene.objects} for scene in scenes)
    picture_a, picture_b = (_look(renderer, scene, changed) for scene in scenes)
    rejection = rejection_by_ids(edits, (ids_a, ids_b), picture_a, picture_b, recipe.rules)
    if rejection:
        return rejection
    noise_seed = task.seed % 2**31
    images = (renderer.render_beauty(scene_a, noise_seed), renderer.render_beauty(scene_b, noise_seed))
    rejection = rejection_by_color(edits, images, picture_a, picture_b, recipe.rules)
    return rejection or _Candidate(scenes, edits, (picture_a, picture_b), images)


def _look(renderer: Renderer, scene: Scene, changed: list[int]) -> IdPicture:
    present = [item.object_id for item in scene.objects if item.object_id in changed]
    alone = {item: int(np.count_nonzero(renderer.render_ids(scene, only=item))) for item in present}
    return IdPicture(ids=renderer.render_ids(scene), alone_px=alone)


def _finish(task: PairTask, recipe: DataRecipe, candidate: _Candidate, rejections: Counter[Rejection]) -> FinishedPair:
    record = PairRecord(
        image_a_file_name=f"images/{task.pair_id}_a.png",
        image_b_file_name=f"images/{task.pair_id}_b.png",
        pair_id=task.pair_id,
        width=recipe.width,
        height=recipe.height,
        num_differences=task.num_differences,
        split=task.split,
        seed=task.seed,
        differences=label_differences(candidate.edits, *candidate.pictures, recipe.box_target),
    )
    scene_a, scene_b = candidate.scenes
    scenes = {
        "pair_id": task.pair_id,
        "edits": [{"kind": edit.kind, "object_id": edit.object_id} for edit in candidate.edits],
        "scene_a": scene_to_json(scene_a),
        "scene_b": scene_to_json(scene_b),
    }
    return FinishedPair(record, candidate.images, scenes, rejections)


def _pair_seed(seed: int, split: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
