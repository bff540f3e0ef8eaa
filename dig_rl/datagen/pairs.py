"""One pair: sample, edit, foresee, look at ids, render, label; again until nothing speaks against it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from dig_rl.data import PairRecord, Split
from dig_rl.datagen.edits import Edit, PlannedChange, edit_scene, plan_changes, sizes_needed
from dig_rl.datagen.labels import (
    IdPicture,
    Rejection,
    label_differences,
    rejection_by_color,
    rejection_by_foresight,
    rejection_by_ids,
    share_explained,
)
from dig_rl.datagen.recipe import DataRecipe, differences_of
from dig_rl.datagen.renderer import Renderer
from dig_rl.datagen.sampling import jitter, sample_scene
from dig_rl.datagen.scene import Scene, scene_to_json
from dig_rl.errors import ConfigError


@dataclass(frozen=True)
class PairTask:
    """One pair to make; nothing but these values and the recipe decides what it shows."""

    pair_id: str
    split: Split
    changes: tuple[PlannedChange, ...]
    seed: int
    """In [0, 2**48)."""

    @property
    def num_differences(self) -> int:
        """What the changes count together; a move counts 2."""
        return sum(differences_of(change.kind) for change in self.changes)


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
    share_explained: float | None
    """Share of the changed pixels that lie in labelled boxes grown by one pixel; None when no pixel has changed."""


@dataclass(frozen=True)
class _Candidate:
    scenes: tuple[Scene, Scene]
    edits: tuple[Edit, ...]
    pictures: tuple[IdPicture, IdPicture]
    images: tuple[np.ndarray, np.ndarray]


def plan_pairs(recipe: DataRecipe) -> list[PairTask]:
    """Every pair of the recipe in the order of `metadata.jsonl`.

    Kinds are planned evenly among the pairs of a split that have as many differences; more pairs leave the first ones
    as they are. Pair ids, and so file names, say nothing of the split: `datasets` takes a file named `train-...` for a
    split of its own and then ignores `metadata.jsonl`.
    """
    tasks: list[PairTask] = []
    for split, counts in recipe.splits.items():
        index = 0
        for number, pairs in sorted(counts.items()):
            rng = np.random.default_rng(_pair_seed(recipe.seed, f"{split}/kinds", number))
            planned: Counter[PlannedChange] = Counter()
            for _ in range(pairs):
                changes = plan_changes(rng, number, recipe.kinds, planned)
                seed = _pair_seed(recipe.seed, split, index)
                tasks.append(PairTask(f"pair-{len(tasks):05d}", split, changes, seed))
                index += 1
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
    scene_a = sample_scene(rng, recipe, sizes_needed(task.changes))
    edited = edit_scene(rng, scene_a, task.changes, recipe)
    if edited is None:
        return "no_room"
    scene_b, edits = edited
    scenes = (scene_a, jitter(rng, scene_b, recipe.distractors))
    changed = [edit.object_id for edit in edits]
    ids_a, ids_b = ({item.object_id for item in scene.objects} for scene in scenes)
    rejection = rejection_by_foresight(edits, scenes, (recipe.width, recipe.height), recipe.rules)
    if rejection:
        return rejection
    picture_a, picture_b = (_look(renderer, scene, changed) for scene in scenes)
    rejection = rejection_by_ids(edits, (ids_a, ids_b), picture_a, picture_b, recipe.rules)
    if rejection:
        return rejection
    noise_a = noise_b = task.seed % 2**31
    if recipe.distractors.new_noise:
        noise_b = int(rng.integers(2**31))
    images = (renderer.render_beauty(scenes[0], noise_a), renderer.render_beauty(scenes[1], noise_b))
    rejection = rejection_by_color(edits, images, picture_a, picture_b, recipe.rules)
    return rejection or _Candidate(scenes, edits, (picture_a, picture_b), images)


def _look(renderer: Renderer, scene: Scene, changed: list[int]) -> IdPicture:
    present = [item.object_id for item in scene.objects if item.object_id in changed]
    alone = {item: int(np.count_nonzero(renderer.render_ids(scene, only=item))) for item in present}
    return IdPicture(ids=renderer.render_ids(scene), alone_px=alone)


def _finish(task: PairTask, recipe: DataRecipe, candidate: _Candidate, rejections: Counter[Rejection]) -> FinishedPair:
    differences = label_differences(candidate.edits, *candidate.pictures, recipe.box_target)
    record = PairRecord(
        image_a_file_name=f"images/{task.pair_id}_a.png",
        image_b_file_name=f"images/{task.pair_id}_b.png",
        pair_id=task.pair_id,
        width=recipe.width,
        height=recipe.height,
        num_differences=task.num_differences,
        split=task.split,
        seed=task.seed,
        differences=differences,
    )
    scene_a, scene_b = candidate.scenes
    scenes = {
        "pair_id": task.pair_id,
        "edits": [{"kind": edit.kind, "object_id": edit.object_id} for edit in candidate.edits],
        "scene_a": scene_to_json(scene_a),
        "scene_b": scene_to_json(scene_b),
    }
    explained = share_explained(candidate.images, differences)
    return FinishedPair(record, candidate.images, scenes, rejections, explained)


def _pair_seed(seed: int, split: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
