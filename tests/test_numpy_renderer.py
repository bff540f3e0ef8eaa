"""Pictures and foresight of the numpy renderer: laws of light by hand, repeatability, whole folders."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.data import load_examples, read_records
from dig_rl.datagen.build import build_dataset
from dig_rl.datagen.color_difference import ciede2000, linear_to_srgb, srgb_to_lab, srgb_to_linear
from dig_rl.datagen.foresight import foreseen_color_difference
from dig_rl.datagen.numpy_renderer import NumpyRenderer
from dig_rl.datagen.recipe import DEFAULT_KINDS, DataRecipe
from dig_rl.datagen.renderer import REPOSITORY
from dig_rl.datagen.renderers import open_renderer
from dig_rl.datagen.sampling import sample_scene, stage
from dig_rl.datagen.scene import Camera, DiskLight, Scene, SceneObject
from dig_rl.errors import RenderError
from tests.test_datagen_build import hashes

SIZE = (64, 48)
RECIPE = DataRecipe(
    width=64,
    height=48,
    samples=4,
    renderer="numpy",
    num_objects=(3, 5),
    arena_m=1.6,
    kinds=(*DEFAULT_KINDS, "move"),
    splits={"train": {0: 1, 1: 3, 2: 3, 4: 1}},
)


def scene_of(seed: int, num_objects: int = 5) -> Scene:
    recipe = DataRecipe(num_objects=(num_objects, num_objects), arena_m=1.8)
    return sample_scene(np.random.default_rng(seed), recipe)


def changed(scene: Scene, object_id: int, **values: Any) -> Scene:
    objects = tuple(replace(item, **values) if item.object_id == object_id else item for item in scene.objects)
    return replace(scene, objects=objects)


def ground(*lights: DiskLight, sky_strength: float = 0.0) -> Scene:
    """Bare ground, straight from above."""
    camera = Camera((0.0, -0.01, 10.0), (0.0, 0.0, 0.0))
    return Scene((), camera, lights, (255, 255, 255), sky_strength, (128, 128, 128))


def test_linear_light_and_srgb_are_inverse() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert (linear_to_srgb(srgb_to_linear(levels)) == levels).all()
    assert linear_to_srgb(np.array([-0.5, 0.0, 1.0, 7.0])).tolist() == [0, 0, 255, 255]


def test_the_ground_reflects_what_the_sky_and_a_light_send() -> None:
    """An even sky of radiance 0.5 gives 0.5 x albedo. A small disk of power P overhead, Lambertian, has an intensity
    of P / pi along its axis, so the irradiance at distance d is P / (pi d^2), of which albedo / pi comes back.
    """
    albedo = float(srgb_to_linear(np.array(128))) + 0.011  # the sheen of a matte surface
    sky = NumpyRenderer(9, 9, 1).render_beauty(ground(sky_strength=0.5), seed=0)
    assert (sky == linear_to_srgb(np.array(0.5 * albedo))).all()
    light = DiskLight((0.0, 0.0, 8.0), (0.0, 0.0, 0.0), 0.01, 400.0, (255, 255, 255))
    lit = NumpyRenderer(301, 201, 1).render_beauty(ground(light), seed=0)
    expected = float(linear_to_srgb(np.array(albedo * 400.0 / np.pi**2 / 64.0)))
    assert lit[100, 150].mean() == pytest.approx(expected, abs=1.0)
    assert (NumpyRenderer(9, 9, 1).render_beauty(ground(replace(light, look_at_m=(0.0, 0.0, 20.0))), 0) == 0).all()


def test_objects_cast_shadows_that_soften_with_the_size_of_the_light() -> None:
    light = DiskLight((0.0, -4.0, 8.0), (0.0, 0.0, 0.0), 0.01, 1000.0, (255, 255, 255))
    ball = SceneObject(1, "cylinder", "red", "rubber", "large", 0.0, 0.0, 0.0)
    half_lit = []
    for diameter_m in (0.01, 3.0):
        scene = ground(replace(light, diameter_m=diameter_m))
        open_ground, shadowed = (NumpyRenderer(60, 40, 32).render_beauty(one, 3).astype(float)[..., 1] for one in
                                 (scene, replace(scene, objects=(ball,))))  # fmt: skip
        left = shadowed / open_ground
        seen_ground = NumpyRenderer(60, 40, 1).render_ids(replace(scene, objects=(ball,))) == 0
        assert left[seen_ground].min() < 0.1 and np.median(left[seen_ground]) == pytest.approx(1.0, abs=0.02)
        half_lit.append(int(((left > 0.2) & (left < 0.9) & seen_ground).sum()))
    assert half_lit[1] > 1.5 * half_lit[0]


def test_metal_mirrors_its_neighbour_and_rubber_does_not() -> None:
    ball = SceneObject(1, "sphere", "gray", "metal", "large", 0.0, 0.0, 0.0)
    beside = SceneObject(2, "cube", "red", "rubber", "large", 1.6, -0.4, 20.0)
    redness = {}
    for material in ("metal", "rubber"):
        scene = stage(RECIPE, (replace(ball, material=material), beside))
        shown = NumpyRenderer(*SIZE, 8).render_ids(scene) == 1
        picture = NumpyRenderer(*SIZE, 8).render_beauty(scene, 1).astype(int)
        redness[material] = int((picture[..., 0] - picture[..., 1])[shown].max())
    assert redness["metal"] > 40 and redness["rubber"] < 15


def test_pictures_repeat_and_differ_where_something_changed() -> None:
    scene = scene_of(4)
    renderer = NumpyRenderer(*SIZE, 6)
    first = renderer.render_beauty(scene, seed=5)
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8
    assert (NumpyRenderer(*SIZE, 6).render_beauty(scene, seed=5) == first).all()
    assert (renderer.render_beauty(scene, seed=6) != first).any()
    item = scene.objects[0]
    other = renderer.render_beauty(changed(scene, item.object_id, color="cyan" if item.color != "cyan" else "red"), 5)
    shown = renderer.render_ids(scene) == item.object_id
    differs = (other != first).any(axis=2)
    assert differs[shown].mean() > 0.95
    far = np.ones(shown.shape, dtype=bool)
    rows, columns = np.nonzero(shown)
    far[max(0, rows.min() - 12) : rows.max() + 12, max(0, columns.min() - 12) : columns.max() + 12] = False
    assert differs[far].mean() < 0.05  # mirrors may show it anywhere


def test_a_picture_does_not_depend_on_how_it_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(2)
    whole = NumpyRenderer(*SIZE, 5).render_beauty(scene, seed=1)
    monkeypatch.setattr("dig_rl.datagen.numpy_renderer.RAYS_AT_ONCE", 700)
    parts = NumpyRenderer(*SIZE, 5).render_beauty(scene, seed=1).astype(int)
    assert np.abs(parts - whole).max() <= 1


def test_a_closed_renderer_refuses_and_an_interrupt_stops_a_picture() -> None:
    renderer = NumpyRenderer(1024, 768, 64)
    threading.Timer(0.2, renderer.interrupt).start()
    with pytest.raises(RenderError, match="closed"):
        renderer.render_beauty(scene_of(0), seed=1)
    renderer.close()
    with pytest.raises(RenderError, match="closed"):
        renderer.render_ids(scene_of(0))


# --- whole folders


def test_a_folder_is_made_without_blender_and_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    for workers in (1, 3):
        out = tmp_path / str(workers)
        assert build_dataset(RECIPE, out, make_renderer=lambda: open_renderer(RECIPE), workers=workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["renderer"] == NumpyRenderer.version and manifest["recipe"]["renderer"] == "numpy"
    explained = manifest["changed_px_explained"]
    shares = explained["by_pair"]
    assert set(shares) == {f"pair-{index:05d}" for index in range(1, 8)}  # nothing changes in the first pair
    assert explained["mean"] == pytest.approx(np.mean(list(shares.values())), abs=1e-4)
    assert explained["least"] == min(shares.values()) and 0.3 < explained["least"] <= explained["median"] <= 1
    examples = load_examples(out, "train", allow_no_change=True)
    assert [example.num_differences for example in examples] == [0, 1, 1, 1, 2, 2, 2, 4]
    records = [record for _, record in read_records(out, allow_no_change=True)]
    moves = [record for record in records if any(item.kind == "move" for item in record.differences)]
    assert moves and all(sum(item.kind == "move" for item in record.differences) % 2 == 0 for record in moves)


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"splits": {"train": {1: 6, 2: 6}}})
    build_dataset(recipe, tmp_path / "whole", make_renderer=lambda: open_renderer(recipe))
    kinds = ", ".join(f'"{kind}"' for kind in recipe.kinds)
    (tmp_path / "numpy.toml").write_text(
        'renderer = "numpy"\nwidth = 64\nheight = 48\nsamples = 4\nnum_objects = [3, 5]\narena_m = 1.6\n'
        f"kinds = [{kinds}]\n[splits.train]\n1 = 6\n2 = 6\n"
    )
    out = tmp_path / "data"
    options = ["--config", str(tmp_path / "numpy.toml"), "--out", str(out)]
    command = [sys.executable, "-m", "launch.data", *options]
    build = subprocess.Popen([*command, "--workers", "2"], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((out / ".building/receipts").glob("*.json")):
        assert build.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    build.kill()
    build.wait()
    assert not (out / "manifest.json").exists()
    subprocess.run([*command, "--workers", "1"], cwd=REPOSITORY, check=True)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_distractors_change_pictures_but_not_labels(tmp_path: Path) -> None:
    quiet = RECIPE.model_copy(update={"splits": {"train": {0: 2}}, "kinds": DEFAULT_KINDS})
    distractors = {"camera_jitter_m": 0.2, "light_jitter_m": 0.5, "new_noise": True}
    shaken = DataRecipe(**{**quiet.model_dump(), "distractors": distractors})
    for name, recipe, equal in (("quiet", quiet, True), ("shaken", shaken, False)):
        build_dataset(recipe, tmp_path / name, make_renderer=lambda: NumpyRenderer(*SIZE, 4))
        for pair in ("pair-00000", "pair-00001"):
            a, b = ((tmp_path / name / f"images/{pair}_{side}.png").read_bytes() for side in "ab")
            assert (a == b) == equal
        assert all(
            example.target_boxes_px == () for example in load_examples(tmp_path / name, "train", allow_no_change=True)
        )


# --- foresight


def test_nothing_changed_is_foreseen_as_no_difference() -> None:
    scene = scene_of(1)
    for item in scene.objects:
        assert foreseen_color_difference((scene, scene), item.object_id, SIZE) in (0.0, math.inf)


def test_foresight_agrees_with_whole_pictures() -> None:
    renderer = NumpyRenderer(96, 64, 6)
    compared = 0
    for seed in range(6):
        scene = scene_of(seed)
        item = scene.objects[seed % 5]
        other = changed(scene, item.object_id, color="yellow" if item.color != "yellow" else "blue")
        shown = renderer.render_ids(scene) == item.object_id
        if shown.sum() > 60:
            looks = [srgb_to_lab(renderer.render_beauty(one, 1)[shown]) for one in (scene, other)]
            seen = float(ciede2000(*looks).mean())
            foreseen = foreseen_color_difference((scene, other), item.object_id, (96, 64))
            assert foreseen == pytest.approx(seen, rel=0.15)  # outlines are mixed with what is behind them
            coarse = foreseen_color_difference((scene, other), item.object_id, (960, 640))
            assert coarse == pytest.approx(foreseen, rel=0.05)
            compared += 1
    assert compared >= 4


def test_an_object_that_cannot_be_seen_twice_is_not_foreseen() -> None:
    front = SceneObject(1, "cylinder", "red", "rubber", "large", 0.0, -1.0, 0.0)
    behind = SceneObject(2, "torus", "gray", "rubber", "small", 0.0, 0.4, 0.0)
    hidden = stage(RECIPE, (front, behind))
    open_view = stage(RECIPE, (replace(front, x_m=-1.5), behind))
    assert foreseen_color_difference((hidden, hidden), 2, SIZE) == math.inf
    assert foreseen_color_difference((hidden, open_view), 2, SIZE) == math.inf
    assert foreseen_color_difference((open_view, changed(open_view, 2, color="red")), 2, SIZE) > 20
