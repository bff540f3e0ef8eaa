"""Scenes, edits and labels: invariants of the sampler, hand-made masks, and published colour differences."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dig_rl.config import build
from dig_rl.datagen.color_difference import ciede2000, srgb_to_lab
from dig_rl.datagen.edits import Edit, PlannedChange, change_attribute, edit_scene, plan_changes, sizes_needed
from dig_rl.datagen.labels import (
    IdPicture,
    box_of_mask,
    label_differences,
    rejection_by_color,
    rejection_by_ids,
    share_explained,
)
from dig_rl.datagen.pairs import plan_pairs
from dig_rl.datagen.recipe import DEFAULT_KINDS, DataRecipe, Distractors, EditKind, LabelRules, with_total
from dig_rl.datagen.sampling import jitter, sample_scene
from dig_rl.datagen.scene import Scene, SceneObject, scene_from_json, scene_to_json
from dig_rl.errors import ConfigError, DataError

RECIPE = DataRecipe(num_objects=(3, 7), arena_m=3.0)
ATTRIBUTES = ("shape", "color", "material", "size")


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
    [({"version": 2}, "scene version 2"), ({"fog": 1}, "fog"), ({"objects": [{"shape": "cube"}]}, "missing")],
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


# --- labels, on masks small enough to count by hand


def ids_with(**rectangles: tuple[int, int, int, int]) -> np.ndarray:
    """`[12, 16]` ids; `o3=(x0, y0, x1, y1)` fills a half-open rectangle with id 3, later ones in front."""
    ids = np.zeros((12, 16), dtype=np.uint8)
    for name, (x0, y0, x1, y1) in rectangles.items():
        ids[y0:y1, x0:x1] = int(name[1:])
    return ids


def picture(alone: dict[int, int] | None = None, **rectangles: tuple[int, int, int, int]) -> IdPicture:
    return IdPicture(ids_with(**rectangles), alone or {})


RULES = LabelRules(min_visible_px=800)  # 8 pixels of a 16x12 picture


def test_the_box_of_a_mask_is_tight_and_half_open() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    assert box_of_mask(mask) is None
    mask[3, 2] = True
    assert box_of_mask(mask) == (2.0, 3.0, 3.0, 4.0)
    mask[1, 6] = True
    assert box_of_mask(mask) == (2.0, 1.0, 7.0, 4.0)
    assert box_of_mask(np.ones((5, 7), dtype=bool)) == (0.0, 0.0, 7.0, 5.0)


def test_labels_by_hand() -> None:
    a = picture({1: 8, 2: 20}, o1=(0, 0, 4, 2), o2=(8, 2, 12, 6))
    b = picture({1: 32, 3: 12}, o1=(0, 0, 8, 4), o3=(2, 2, 5, 6))
    edits = [Edit("size", 1), Edit("remove", 2), Edit("add", 3)]
    size, removed, added = label_differences(edits, a, b, "union")
    assert (size.box_a, size.box_b, size.box) == ((0, 0, 4, 2), (0, 0, 8, 4), (0, 0, 8, 4))
    assert (size.visible_px_a, size.visible_px_b, size.visible_fraction_b) == (8, 26, 26 / 32)
    assert (removed.box, removed.box_b, removed.visible_px_b, removed.visible_fraction_b) == ((8, 2, 12, 6), None, 0, 0)
    assert removed.visible_fraction_a == 16 / 20
    assert (added.box, added.box_a, added.visible_px_b) == ((2, 2, 5, 6), None, 12)
    assert [item.box for item in label_differences(edits, a, b, "a")] == [size.box_a, removed.box_a, added.box_b]
    assert [item.box for item in label_differences(edits, a, b, "b")] == [size.box_b, removed.box_a, added.box_b]


def test_a_moved_object_is_two_differences() -> None:
    a, b = picture({1: 8}, o1=(0, 0, 4, 2)), picture({1: 20}, o1=(6, 6, 11, 10), o2=(9, 6, 11, 10))
    left, arrived = label_differences([Edit("move", 1)], a, b, "union")
    assert (left.kind, left.object_id, arrived.kind, arrived.object_id) == ("move", 1, "move", 1)
    assert (left.box_a, left.box_b, left.box) == ((0, 0, 4, 2), None, (0, 0, 4, 2))
    assert (left.visible_px_a, left.visible_px_b, left.visible_fraction_a, left.visible_fraction_b) == (8, 0, 1, 0)
    assert (arrived.box_a, arrived.box_b, arrived.box) == (None, (6, 6, 9, 10), (6, 6, 9, 10))
    assert (arrived.visible_px_a, arrived.visible_px_b, arrived.visible_fraction_b) == (0, 12, 12 / 20)
    for target in ("a", "b"):
        assert [item.box for item in label_differences([Edit("move", 1)], a, b, target)] == [left.box, arrived.box]


def test_the_share_explained_by_hand() -> None:
    image_a = np.full((12, 16, 3), 100, dtype=np.uint8)
    image_b = image_a.copy()
    differences = label_differences([Edit("color", 1)], *[picture({1: 8}, o1=(4, 4, 8, 6))] * 2, "union")
    assert share_explained((image_a, image_b), differences) is None
    image_b[4, 4] = (100, 100, 109)  # in the box
    image_b[3, 3] = 91  # in its margin of one pixel
    image_b[6, 8] = 0  # so too
    image_b[7, 8] = 255  # beyond it
    image_b[0, 0] = 108  # 8 levels are no change
    assert share_explained((image_a, image_b), differences) == 3 / 4
    assert share_explained((image_b, image_a), differences) == 3 / 4
    assert share_explained((image_a, image_b), ()) == 0.0
    moved = label_differences(
        [Edit("move", 1)], picture({1: 1}, o1=(0, 0, 1, 1)), picture({1: 1}, o1=(8, 7, 9, 8)), "b"
    )
    image_b[0, 0] = 0
    assert share_explained((image_a, image_b), moved) == 3 / 5  # (0, 0), (8, 7), and (8, 6) in the margin


def test_the_pixel_floor_scales_with_the_area() -> None:
    assert LabelRules().min_visible_px_at(160, 120) == 50
    assert LabelRules().min_visible_px_at(320, 240) == 200
    assert LabelRules().min_visible_px_at(96, 64) == 16


@pytest.mark.parametrize(
    ("edits", "a", "b", "expected"),
    [
        ([Edit("color", 1)], picture({1: 8}, o1=(0, 0, 4, 2)), picture({1: 8}, o1=(0, 0, 4, 2)), None),
        ([Edit("color", 1)], picture({1: 8}, o1=(0, 0, 4, 2)), picture({1: 7}, o1=(0, 0, 7, 1)), "small_change"),
        ([Edit("color", 1)], picture({1: 17}, o1=(0, 0, 4, 2)), picture({1: 8}, o1=(0, 0, 4, 2)), "covered_change"),
        ([Edit("color", 1)], picture({1: 16}, o1=(0, 0, 4, 2)), picture({1: 8}, o1=(0, 0, 4, 2)), None),
        ([Edit("remove", 1)], picture({1: 0}), picture(), "small_change"),
        (
            [Edit("add", 3)],
            picture(o2=(0, 0, 3, 3)),
            picture({3: 9}, o2=(0, 0, 3, 3), o3=(1, 0, 4, 3)),
            "hidden_by_change",
        ),
        ([Edit("remove", 3)], picture({3: 9}, o3=(0, 0, 3, 3)), picture(o2=(0, 0, 3, 3)), "hidden_by_change"),
        (
            [Edit("remove", 3)],
            picture({3: 9}, o3=(0, 0, 3, 3), o2=(5, 5, 6, 6)),
            picture(o2=(5, 5, 6, 6)),
            "hidden_object",
        ),
        (
            [Edit("color", 1), Edit("color", 3)],
            picture({1: 16, 3: 12}, o1=(0, 0, 4, 4), o3=(6, 0, 9, 4)),
            picture({1: 16, 3: 12}, o1=(0, 0, 4, 4), o3=(6, 0, 9, 4)),
            None,
        ),
        ([], picture(o2=(0, 0, 3, 3)), picture(o2=(0, 0, 3, 3)), None),
        ([], picture(o2=(0, 0, 3, 1)), picture(o2=(0, 0, 3, 1)), "hidden_object"),
        (
            [Edit("move", 1)],
            picture({1: 12}, o1=(0, 0, 3, 4)),
            picture({1: 12}, o1=(0, 1, 3, 5)),
            "overlapping_changes",
        ),
        ([Edit("move", 1)], picture({1: 12}, o1=(0, 0, 3, 4)), picture({1: 12}, o1=(0, 2, 3, 6)), None),
        (  # boxes 4x6 and 4x6, 8 of 40 pixels shared in each picture, but their unions 8x6 and 4x6 share half
            [Edit("shape", 1), Edit("shape", 3)],
            picture({1: 24, 3: 24}, o1=(0, 0, 4, 6), o3=(4, 0, 8, 6)),
            picture({1: 24, 3: 24}, o3=(0, 0, 4, 6), o1=(4, 0, 8, 6)),
            "overlapping_changes",
        ),
    ],
)
def test_each_rule_rejects_by_hand_made_ids(
    edits: list[Edit], a: IdPicture, b: IdPicture, expected: str | None
) -> None:
    ids_a = {2} | {edit.object_id for edit in edits if edit.kind != "add"}
    ids_b = {2} | {edit.object_id for edit in edits if edit.kind != "remove"}
    if 2 not in a.ids and 2 not in b.ids:
        ids_a, ids_b = ids_a - {2}, ids_b - {2}
    assert rejection_by_ids(edits, (ids_a, ids_b), a, b, RULES) == expected


@pytest.mark.parametrize(
    ("kind", "color_b", "expected"),
    [
        ("color", (87, 87, 87), "faint_picture"),
        ("color", (95, 95, 95), "faint_picture"),
        ("color", (173, 35, 35), None),
        ("material", (95, 95, 95), "faint_picture"),
        ("shape", (87, 87, 87), None),
    ],
)
def test_faint_colours_in_the_pictures_are_rejected(kind: Any, color_b: tuple[int, ...], expected: str | None) -> None:
    look = picture({1: 8}, o1=(0, 0, 4, 2))
    image_a = np.full((12, 16, 3), 87, dtype=np.uint8)
    image_b = np.zeros_like(image_a)  # black elsewhere, which must not count
    image_b[look.ids == 1] = color_b
    assert rejection_by_color([Edit(kind, 1)], (image_a, image_b), look, look, LabelRules()) == expected


@pytest.mark.parametrize(
    ("lab_1", "lab_2", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (61, -5, 29), 22.8977),
        ((50, 2.5, 0), (56, -27, -3), 31.9030),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000_equals_the_published_test_data(lab_1: Any, lab_2: Any, expected: float) -> None:
    """Source: table 1 of Sharma, Wu and Dalal (2005)."""
    assert float(ciede2000(np.array(lab_1), np.array(lab_2))) == pytest.approx(expected, abs=5e-5)
    assert float(ciede2000(np.array(lab_2), np.array(lab_1))) == pytest.approx(expected, abs=5e-5)


def test_lab_of_known_colours() -> None:
    known = {(255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20)}
    for srgb, lab in known.items():
        assert srgb_to_lab(np.array(srgb)) == pytest.approx(np.array(lab), abs=0.02)
