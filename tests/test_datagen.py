"""Scenes, edits, recipes and plans: invariants of the sampler, and numbers worked out by hand."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dig_rl.datagen.edits import Edit, PlannedChange, change_attribute, edit_scene, plan_changes, sizes_needed
from dig_rl.datagen.pairs import plan_pairs
from dig_rl.datagen.recipe import DEFAULT_KINDS, DataRecipe, Distractors, EditKind, with_total
from dig_rl.datagen.sampling import jitter, sample_scene
from dig_rl.datagen.scene import Scene, SceneObject, scene_from_json, scene_to_json
from dig_rl.errors import ConfigError, DataError
from dig_rl.layers import build

RECIPE = DataRecipe(num_objects=(3, 7), arena_m=3.0)
ATTRIBUTES = ("shape", "color", "material", "size")
OBJECT = scene_to_json(sample_scene(np.random.default_rng(3), RECIPE))["objects"][0]


def scene_of(seed: int) -> Scene:
    return sample_scene(np.random.default_rng(seed), RECIPE)


def gap(first: SceneObject, second: SceneObject) -> float:
    distance = math.hypot(first.x_m - second.x_m, first.y_m - second.y_m)
    return distance - first.radius_m - second.radius_m


def test_sampled_scenes_keep_counts_arena_and_clearance() -> None:
    counts: Counter[int] = Counter()
    looks: dict[str, Counter[str]] = {name: Counter() for name in ATTRIBUTES}
    for seed in range(400):
        objects = scene_of(seed).objects
        counts[len(objects)] += 1
        assert [item.object_id for item in objects] == list(range(1, len(objects) + 1))
        for index, item in enumerate(objects):
            assert abs(item.x_m) <= 3.0 and abs(item.y_m) <= 3.0 and 0 <= item.yaw_deg < 360
            assert all(gap(item, other) >= 0.25 - 1e-9 for other in objects[:index])
            for name in ATTRIBUTES:
                looks[name][getattr(item, name)] += 1
    assert set(counts) == {3, 4, 5, 6, 7} and min(counts.values()) > 50  # 80 expected, sd 8
    assert [len(looks[name]) for name in ATTRIBUTES] == [6, 8, 2, 2]
    for values in looks.values():
        assert min(values.values()) > 0.75 * values.total() / len(values)


def test_a_seed_gives_one_scene_on_every_machine() -> None:
    text = json.dumps(scene_to_json(scene_of(12)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "5f0c83f99798cd00"
    assert text == json.dumps(scene_to_json(scene_of(12))) != json.dumps(scene_to_json(scene_of(13)))


def test_a_scene_survives_json() -> None:
    scene = scene_of(3)
    assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "scene version 2"),
        ({"fog": 1}, "fog: Unexpected"),
        ({"objects": [{"shape": "cube"}]}, "objects.0.object_id: Field required"),
        ({"objects": [OBJECT | {"shape": "teapot"}]}, "objects.0.shape: .*expected one of cube"),
        ({"objects": [OBJECT | {"x_m": math.nan}]}, "objects.0.x_m"),
        ({"objects": [OBJECT | {"x_m": "0"}]}, "objects.0.x_m: .*valid number"),
        ({"objects": [OBJECT | {"object_id": 256}]}, "objects.0.object_id: .*less than or equal to 255"),
        ({"objects": [OBJECT] * 300}, "objects: .*at most 255"),
        ({"camera": {"position_m": [0, 0], "look_at_m": [0, 0, 0]}}, "camera.position_m.2"),
        ({"lights": 3}, "lights: .*valid array"),
    ],
)
def test_a_strange_scene_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        scene_from_json({**scene_to_json(scene_of(3)), **change})


def test_too_many_objects_for_the_arena_is_a_clear_error() -> None:
    crowded = DataRecipe(num_objects=(10, 10), arena_m=1.0)
    with pytest.raises(ConfigError, match=r"10 objects .* do not fit into arena_m 1"):
        sample_scene(np.random.default_rng(0), crowded)


def test_a_scene_has_the_sizes_it_must_have() -> None:
    first_sizes: Counter[str] = Counter()
    for seed in range(100):
        needed = ("large", "large", "small", "large")
        objects = sample_scene(np.random.default_rng(seed), RECIPE, needed).objects
        sizes = Counter(item.size for item in objects)
        assert 4 <= len(objects) <= 7 and sizes["large"] >= 3 and sizes["small"] >= 1
        first_sizes[objects[0].size] += 1
    assert 20 < first_sizes["small"] < 50  # ids do not tell which sizes were asked for


ALL_KINDS: tuple[EditKind, ...] = (*DEFAULT_KINDS, "move")


@pytest.mark.parametrize("num_differences", [1, 2, 3, 4])
def test_edits_change_exactly_what_was_planned(num_differences: int) -> None:
    planned: Counter[PlannedChange] = Counter()
    made = 0
    for seed in range(150):
        rng = np.random.default_rng([seed, num_differences])
        changes = plan_changes(rng, num_differences, ALL_KINDS, planned)
        scene_a = sample_scene(rng, RECIPE, sizes_needed(changes))
        edited = edit_scene(rng, scene_a, changes, RECIPE)
        if edited is None:
            continue
        made += 1
        scene_b, edits = edited
        before, after = ({item.object_id: item for item in scene.objects} for scene in (scene_a, scene_b))
        assert {i for i in before.keys() | after.keys() if before.get(i) != after.get(i)} == {
            e.object_id for e in edits
        }
        found = Counter(PlannedChange(e.kind, (before.get(e.object_id) or after[e.object_id]).size) for e in edits)
        assert found == Counter(changes)
        for edit in edits:
            assert_only_the_edit_differs(edit, before.get(edit.object_id), after.get(edit.object_id))
        assert replace(scene_b, objects=scene_a.objects) == scene_a
        for item in scene_b.objects:  # nothing stands where another object was, a moved one's old place included
            others = [other for other in (*scene_a.objects, *scene_b.objects) if other.object_id != item.object_id]
            assert all(gap(item, other) >= 0.25 - 1e-9 for other in others)
    assert made > 100
    assert {change.kind for change in planned} == set(ALL_KINDS if num_differences > 1 else DEFAULT_KINDS)


def assert_only_the_edit_differs(edit: Edit, old: SceneObject | None, new: SceneObject | None) -> None:
    if old is None or new is None:
        assert edit.kind == ("add" if old is None else "remove")
    elif edit.kind == "move":
        assert replace(new, x_m=old.x_m, y_m=old.y_m) == old and gap(old, new) >= 0.25 - 1e-9
    else:
        assert [name for name in ATTRIBUTES if getattr(old, name) != getattr(new, name)] == [edit.kind]
        assert replace(new, **{edit.kind: getattr(old, edit.kind)}) == old


def test_no_planned_change_leaves_the_scene_as_it_is() -> None:
    scene = scene_of(1)
    assert edit_scene(np.random.default_rng(0), scene, (), RECIPE) == (scene, ())


def test_a_scene_without_an_object_of_the_planned_size_is_not_edited() -> None:
    scene = scene_of(1)
    small = replace(scene, objects=tuple(replace(item, size="small") for item in scene.objects))
    assert edit_scene(np.random.default_rng(0), small, (PlannedChange("color", "large"),), RECIPE) is None


def test_jitter_is_bounded_and_off_by_default() -> None:
    scene, rng = scene_of(2), np.random.default_rng(0)
    assert jitter(rng, scene, Distractors()) == scene
    shifts = []
    for _ in range(200):
        shaken = jitter(rng, scene, Distractors(camera_jitter_m=0.2, light_jitter_m=0.5))
        assert shaken.objects == scene.objects and shaken.camera.look_at_m == scene.camera.look_at_m
        shifts.append(np.subtract(shaken.camera.position_m, scene.camera.position_m))
        assert np.abs(np.subtract(shaken.lights[0].position_m, scene.lights[0].position_m)).max() <= 0.5
    assert 0.19 < np.abs(shifts).max() <= 0.2 and np.abs(np.mean(shifts, axis=0)).max() < 0.04  # 4 sd


def test_an_attribute_never_changes_to_itself() -> None:
    item, rng = scene_of(0).objects[0], np.random.default_rng(0)
    new_colors = {change_attribute(rng, item, "color").color for _ in range(200)}
    assert len(new_colors) == 7 and item.color not in new_colors


# --- recipe


def test_count_keeps_proportions_and_reaches_the_total() -> None:
    recipe = DataRecipe(splits={"train": {1: 80, 2: 80, 3: 40}, "test": {1: 40}})
    assert with_total(recipe, 24).splits == {"train": {1: 8, 2: 8, 3: 4}, "test": {1: 4}}
    assert with_total(recipe, 1).num_pairs == 1
    for count in (7, 239, 241, 5000):
        scaled = with_total(recipe, count)
        assert scaled.num_pairs == count
        assert abs(scaled.splits["train"][3] - count * 40 / 240) < 1
    with pytest.raises(ConfigError, match="COUNT must be at least 1"):
        with_total(recipe, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sample": 4}, "did you mean samples"),
        ({"rules": {"max_iou": 0.5}}, "rules.max_iou: no such key; did you mean rules.max_box_iou"),
        ({"num_objects": [5, 3]}, "fewest <= most"),
        ({"kinds": ["colour"]}, "'color'"),
        (
            {"num_objects": [2, 3], "splits": {"train": {"4": 1}}},
            "4 changes need as many objects, num_objects ends at 3",
        ),
        ({"splits": {"train": {"-1": 1}}}, "differences and pairs must be at least 0"),
        ({"kinds": ["add", "add"]}, "names a kind twice"),
        ({"kinds": ["move"], "splits": {"train": {"3": 1}}}, "moves alone cannot make \\[3\\]"),
        ({"kinds": []}, "at least 1 item"),
        ({"renderer": "povray"}, "'blender' or 'numpy'"),
        ({"renderer": "numpy", "device": "cuda"}, "device cuda is for renderer blender"),
        ({"device": "tpu"}, "'optix'"),
        ({"distractors": {"camera_jitter": 0.1}}, "did you mean distractors.camera_jitter_m"),
        ({"splits": {"train": {"1": 0}}}, "no pair at all"),
        ({"splits": {"dev": {"1": 1}}}, "'train'"),
        ({"num_objects": [3, 254]}, "object ids end at 255"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(DataRecipe, {"splits": {"train": {"2": 1}}, **values}, where="a test")


def test_pairs_have_their_own_seeds_and_a_fixed_order() -> None:
    recipe = DataRecipe(seed=4, splits={"train": {2: 2, 1: 3}, "test": {4: 2}})
    tasks = plan_pairs(recipe)
    assert [task.num_differences for task in tasks] == [1, 1, 1, 2, 2, 4, 4]
    assert [(task.pair_id, task.split) for task in tasks][-2:] == [("pair-00005", "test"), ("pair-00006", "test")]
    assert len({task.seed for task in tasks}) == 7 and all(0 <= task.seed < 2**48 for task in tasks)
    longer = plan_pairs(DataRecipe(seed=4, splits={"train": {2: 9, 1: 3}}))
    assert longer[:5] == tasks[:5]
    assert {task.seed for task in plan_pairs(recipe.model_copy(update={"seed": 5}))}.isdisjoint(t.seed for t in tasks)


def kinds_of(changes: int, pairs: int, kinds: tuple[EditKind, ...] = DEFAULT_KINDS) -> list[tuple[PlannedChange, ...]]:
    recipe = DataRecipe(seed=3, kinds=kinds, splits={"train": {changes: pairs}})
    return [task.changes for task in plan_pairs(recipe)]


@pytest.mark.parametrize(("changes", "pairs"), [(1, 12), (1, 1600), (2, 80), (3, 41), (4, 400)])
def test_kinds_and_sizes_are_planned_evenly(changes: int, pairs: int) -> None:
    counts = Counter(change for planned in kinds_of(changes, pairs) for change in planned)
    kinds = Counter[str]()
    for change, count in counts.items():
        kinds[change.kind] += count
    assert kinds.total() == changes * pairs and set(kinds) == set(DEFAULT_KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 2  # a kind may lead by 1 when it is chosen once more
    assert all(abs(counts[PlannedChange(kind, "small")] - counts[PlannedChange(kind, "large")]) <= 1 for kind in kinds)


@pytest.mark.parametrize(("changes", "num_objects"), [(0, (3, 5)), (1, (3, 10)), (3, (3, 5)), (4, (3, 6)), (4, (4, 4))])
def test_numbers_of_objects_are_planned_evenly(changes: int, num_objects: tuple[int, int]) -> None:
    tasks = plan_pairs(DataRecipe(seed=3, num_objects=num_objects, splits={"train": {changes: 90}}))
    counts = Counter(task.num_objects for task in tasks)
    assert set(counts) == set(range(num_objects[0], num_objects[1] + 1))
    assert max(counts.values()) - min(counts.values()) <= 1
    for task in tasks:
        scene = sample_scene(np.random.default_rng(task.seed), RECIPE, sizes_needed(task.changes), task.num_objects)
        assert len(scene.objects) == task.num_objects


def test_kinds_within_a_pair_are_nearly_independent() -> None:
    """Drawn independently, both changes would be of one kind in 1/6 of the pairs; never would tell the second one."""
    same = [first.kind == second.kind for first, second in kinds_of(2, 3000)]
    assert 0.06 < float(np.mean(same)) < 0.2


def test_moves_count_two_and_are_as_frequent_as_the_rest() -> None:
    for changes in (2, 3, 4):
        planned = kinds_of(changes, 400, ALL_KINDS)
        assert all(sum(2 if change.kind == "move" else 1 for change in each) == changes for each in planned)
        kinds = Counter(change.kind for each in planned for change in each)
        assert max(kinds.values()) - min(kinds.values()) <= 3, kinds
    assert all(change.kind != "move" for (change,) in kinds_of(1, 50, ALL_KINDS))
    assert kinds_of(2, 3, ("move",)) and all(len(each) == 2 for each in kinds_of(4, 5, ("move",)))


def test_pairs_without_a_change_are_planned_when_asked_for() -> None:
    tasks = plan_pairs(DataRecipe(splits={"train": {1: 1, 0: 2}}))
    assert [(task.num_differences, len(task.changes)) for task in tasks] == [(0, 0), (0, 0), (1, 1)]
