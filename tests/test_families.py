"""Families: every label follows from the pictures, every pair keeps the rules, and a folder can be made in pieces."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from dig_rl.datagen import family_shards
from dig_rl.datagen.families import Family, FamilyRecipe, make_family
from dig_rl.datagen.family_shards import (
    FAMILIES_A_SHARD,
    FamilyShard,
    make_families,
    read_families,
    refuse_shared_scenes,
)
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.errors import ConfigError, DataError
from tests.flat_renderer import FlatRenderer

ARENA_M = 1.8


def recipe(**changes: object) -> FamilyRecipe:
    pictures = DataRecipe(seed=3, width=96, height=64, samples=1, arena_m=ARENA_M, renderer="numpy")
    return FamilyRecipe.model_validate({"pictures": pictures, "num_families": 2, **changes})


def family(index: int) -> Family:
    return make_family(index, recipe(), FlatRenderer(96, 64, ARENA_M))


@pytest.fixture(scope="module")
def families() -> list[Family]:
    return [family(index) for index in range(8)]


def test_boxes_hold_every_pixel_that_differs(families: list[Family]) -> None:
    """Flat pictures have no shadows, so the pixels alone tell where the changes are."""
    seen = 0
    for made in families:
        for pair in made.pairs:
            first, second = (made.images[picture].astype(int) for picture in pair.pictures)
            differs = (first != second).any(axis=2)
            boxed = np.zeros_like(differs)
            for x0, y0, x1, y1 in pair.boxes_xyxy_px:
                boxed[int(y0) : int(y1), int(x0) : int(x1)] = True
            assert not (differs & ~boxed).any()
            seen += differs.any()
    assert seen > 100


def test_pairs_have_one_to_four_changes(families: list[Family]) -> None:
    pairs = [pair for made in families for pair in made.pairs]
    assert {len(pair.boxes_xyxy_px) for pair in pairs} == {1, 2, 3, 4}
    assert all(pair.pictures[0] < pair.pictures[1] for pair in pairs)


def test_what_pictures_show_of_objects_agrees_with_the_labels(families: list[Family]) -> None:
    unchanged = 0
    for made in families:
        assert made.states.shape == made.objects_xyxy_px.shape[:2] == (len(made.images), len(made.places_m))
        for pair in made.pairs:
            states, boxes = made.states[list(pair.pictures)], made.objects_xyxy_px[list(pair.pictures)]
            changed = states[0] != states[1]
            both = boxes[:, changed]
            union = np.concatenate([np.nanmin(both[..., :2], axis=0), np.nanmax(both[..., 2:], axis=0)], axis=-1)
            assert sorted(map(tuple, union.tolist())) == sorted(pair.boxes_xyxy_px)
            unchanged += int((~np.isnan(boxes).any(axis=(0, 2)) & ~changed).sum())
    assert unchanged > 100


def test_layouts_of_different_sizes_are_filled_up(families: list[Family]) -> None:
    num_objects = [len(made.places_m) for made in families]
    assert len(set(num_objects)) > 1
    shard = family_shards.as_shard(families, 4, max(num_objects) + 1)
    starts = np.cumsum([0, *(len(made.images) for made in families)])
    for made, start in zip(families, starts, strict=False):
        rows, there = slice(start, start + len(made.images)), len(made.places_m)
        assert np.array_equal(shard.states[rows, :there], made.states)
        assert np.array_equal(shard.objects_xyxy_px[rows, :there], made.objects_xyxy_px, equal_nan=True)
        assert (shard.states[rows, there:] == -1).all() and np.isnan(shard.objects_xyxy_px[rows, there:]).all()


def test_a_family_depends_on_its_index_and_seed_alone(families: list[Family]) -> None:
    once, again, other = families[5], family(5), families[6]
    assert np.array_equal(once.images, again.images)
    assert once.pairs == again.pairs
    assert not set(once.places_m) & set(other.places_m)


def test_a_folder_made_in_pieces_equals_one_made_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_shards, "FAMILIES_A_SHARD", 1)
    at_once, in_pieces = tmp_path / "a", tmp_path / "b"
    told: list[tuple[int, int]] = []
    for folder in (at_once, in_pieces):
        make_families(recipe(), folder, 1, lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)] * 2
    (in_pieces / "families-000001.npz").unlink()
    with pytest.raises(DataError, match=r"families-000001\.npz is missing: the folder is not finished"):
        list(read_families(in_pieces))
    make_families(recipe(), in_pieces, 1, lambda done, total: told.append((done, total)))
    assert told[-2:] == [(1, 2), (2, 2)]
    for one, other in zip(read_families(at_once), read_families(in_pieces), strict=True):
        for name in FamilyShard.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(ConfigError, match="num_families: 2 -> 3"):
        make_families(recipe(num_families=3), at_once, 1, lambda done, total: None)
    assert FAMILIES_A_SHARD == 100  # the name imported here is the shipped value


def _stuck_but_for_the_first(recipe: FamilyRecipe, out: Path, first: int) -> None:
    if first:
        time.sleep(3600)


def test_an_interruption_does_not_wait_for_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(family_shards, "FAMILIES_A_SHARD", 1)
    monkeypatch.setattr(family_shards, "_make_shard", _stuck_but_for_the_first)
    with pytest.raises(KeyboardInterrupt):
        make_families(recipe(num_families=4), tmp_path, 2, interrupt)
    deadline = time.monotonic() + 60
    while multiprocessing.active_children():  # no join: the pool's own thread may be reaping the same process
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_damage_is_named(tmp_path: Path) -> None:
    make_families(recipe(num_families=1), tmp_path, 1, lambda done, total: None)
    path = tmp_path / "families-000000.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"families-000000.npz is damaged .* delete it"):
        list(read_families(tmp_path))
    np.savez(path, images=np.zeros(1))
    with pytest.raises(DataError, match=r"was made by another version of dig-rl .*states.*; delete the folder"):
        list(read_families(tmp_path))
    with pytest.raises(DataError, match="is no folder of families"):
        list(read_families(tmp_path / "nowhere"))


def test_a_shared_scene_is_found(tmp_path: Path) -> None:
    families, data = tmp_path / "families", tmp_path / "data"
    make_families(recipe(num_families=1), families, 1, lambda done, total: None)
    (data / "scenes").mkdir(parents=True)
    x_m, y_m = next(read_families(families)).places_m[2].tolist()

    def write(x_m: float) -> None:
        scene = {"objects": [{"x_m": 0.1, "y_m": 0.2}, {"x_m": x_m, "y_m": y_m}]}
        values = {"scene_a": {"objects": []}, "scene_b": scene}
        (data / "scenes" / "pair-00000.json").write_text(json.dumps(values))

    with pytest.raises(DataError, match=r"has no scenes/\*\.json, so nothing says whether"):
        refuse_shared_scenes(families, data)
    write(x_m + 1e-9)
    refuse_shared_scenes(families, data)
    write(x_m)
    with pytest.raises(DataError, match=r"pair-00000\.json shows a scene of the families in .*; give one of them"):
        refuse_shared_scenes(families, data)
