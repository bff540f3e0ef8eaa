"""The real thing: Blender renders, labels are checked against rays, and builds survive being killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dig_rl.data import load_examples
from dig_rl.datagen.labels import box_of_mask
from dig_rl.datagen.pairs import PairTask, make_pair
from dig_rl.datagen.recipe import DataRecipe, EditKind
from dig_rl.datagen.renderer import REPOSITORY, BlenderRenderer
from dig_rl.datagen.sampling import sample_scene, stage
from dig_rl.datagen.scene import Scene, SceneObject

pytestmark = pytest.mark.slow

SIZE = (64, 64)
RECIPE = DataRecipe(width=64, height=64, samples=4, num_objects=(3, 4), arena_m=1.6)
TINY = REPOSITORY / "launch/configs/data/tiny.toml"


@pytest.fixture(scope="module")
def blender() -> Iterator[BlenderRenderer]:
    with BlenderRenderer(*SIZE, 4) as renderer:
        yield renderer


def start_build(out: Path, workers: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.data", "--config", str(TINY), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def build(out: Path, workers: int = 2) -> str:
    process = start_build(out, workers)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def children(pid: int) -> list[int]:
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in text.split()]


def wait_for_receipts(out: Path, count: int, process: subprocess.Popen[str]) -> list[int]:
    """Wait until some pairs are finished; returns the process ids of the Blenders at work."""
    deadline = time.monotonic() + 120
    while len(list((out / ".building/receipts").glob("*.json"))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return children(process.pid)


def wait_until_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, f"still alive after {seconds} s: {pids}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one worker") / "tiny data"
    build(out, workers=1)
    return out


@pytest.mark.parametrize("kind", ["color", "shape", "size", "material", "add", "remove"])
def test_a_pair_of_each_kind_shows_its_change_inside_its_box(blender: BlenderRenderer, kind: EditKind) -> None:
    recipe = RECIPE.model_copy(update={"kinds": (kind,)})
    pair = make_pair(PairTask("p", "train", 1, seed=7), recipe, blender)
    (difference,) = pair.record.differences
    assert difference.kind == kind
    image_a, image_b = (image.astype(int) for image in pair.images)
    changed = np.abs(image_a - image_b).max(axis=2)
    x0, y0, x1, y1 = map(int, difference.box)
    inside = np.zeros(changed.shape, dtype=bool)
    inside[y0:y1, x0:x1] = True
    assert changed[inside].mean() > 5 * changed[~inside].mean() and changed[inside].max() > 40
    assert (difference.box_a is None) == (kind == "add") and (difference.box_b is None) == (kind == "remove")


def test_pictures_do_not_depend_on_process_history_or_threads(blender: BlenderRenderer) -> None:
    scenes = [sample_scene(np.random.default_rng(seed), RECIPE) for seed in range(6)]
    first = [(blender.render_ids(scene), blender.render_beauty(scene, seed=1)) for scene in scenes]
    with BlenderRenderer(*SIZE, 4, threads=2) as other:
        for scene, (ids, beauty) in reversed(list(zip(scenes, first, strict=True))):
            assert (other.render_beauty(scene, seed=1) == beauty).all()
            assert (other.render_ids(scene) == ids).all()
            assert (other.render_beauty(scene, seed=2) != beauty).any()


def test_far_from_a_change_without_light_transport_nothing_changes(blender: BlenderRenderer) -> None:
    """The upper corner sees neither shadow nor reflection of an object at the bottom when only the sky glows."""
    objects = (SceneObject(1, "sphere", "red", "rubber", "large", -1.2, 1.2, 0.0),)
    scene = replace(stage(RECIPE, objects), lights=())
    changed = replace(scene, objects=(*objects, SceneObject(2, "cube", "cyan", "rubber", "small", 1.5, -1.5, 30.0)))
    pictures = [blender.render_beauty(one, seed=5).astype(int) for one in (scene, changed)]
    difference = np.abs(pictures[0] - pictures[1]).max(axis=2)
    box = box_of_mask(blender.render_ids(changed) == 2)
    assert box is not None
    assert difference[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])].max() > 60
    assert difference[:16, :16].max() <= 1


def sphere_ids_by_rays(scene: Scene, width: int, height: int) -> np.ndarray:
    """Ids seen by rays through the pixel centres of a scene of spheres: its own camera model, no rasteriser."""
    camera = scene.camera
    eye, target = np.array(camera.position_m), np.array(camera.look_at_m)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half_x, half_y = (
        camera.sensor_width_mm / 2 / camera.focal_length_mm,
        camera.sensor_height_mm / 2 / camera.focal_length_mm,
    )
    if width / height < half_x / half_y:
        half_y = half_x * height / width
    else:
        half_x = half_y * width / height
    ids, nearest = np.zeros((height, width), dtype=np.uint8), np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            ray = (
                forward
                + right * half_x * (2 * (column + 0.5) / width - 1)
                + up * half_y * (1 - 2 * (row + 0.5) / height)
            )
            ray /= np.linalg.norm(ray)
            for item in scene.objects:
                to_center = np.array([item.x_m, item.y_m, item.radius_m]) - eye
                along = float(to_center @ ray)
                miss = float(to_center @ to_center) - along**2
                if miss <= item.radius_m**2 and along - (item.radius_m**2 - miss) ** 0.5 < nearest[row, column]:
                    nearest[row, column] = along - (item.radius_m**2 - miss) ** 0.5
                    ids[row, column] = item.object_id
    return ids


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (96, 40)])
def test_boxes_of_spheres_agree_with_rays_within_a_pixel(size: tuple[int, int]) -> None:
    sampled = sample_scene(np.random.default_rng(3), DataRecipe(num_objects=(5, 5), arena_m=1.5))
    scene = replace(sampled, objects=tuple(replace(item, shape="sphere") for item in sampled.objects))
    expected = sphere_ids_by_rays(scene, *size)
    with BlenderRenderer(*size, 1) as renderer:
        ids = renderer.render_ids(scene)
    for item in scene.objects:
        box, truth = box_of_mask(ids == item.object_id), box_of_mask(expected == item.object_id)
        assert box is not None and truth is not None
        assert np.abs(np.array(box) - np.array(truth)).max() <= 1
    assert (ids != expected).mean() < 0.01


def test_two_workers_make_the_same_bytes_as_one(tmp_path: Path, reference: Path) -> None:
    build(tmp_path / "data", workers=2)
    assert hashes(tmp_path / "data") == hashes(reference)
    assert "already complete" in build(tmp_path / "data")


@pytest.mark.parametrize("victim", ["build", "blender"])
def test_a_killed_build_or_blender_costs_nothing_but_time(tmp_path: Path, reference: Path, victim: str) -> None:
    process = start_build(tmp_path)
    blenders = wait_for_receipts(tmp_path, 3, process)
    assert len(blenders) == 2
    os.kill(process.pid if victim == "build" else blenders[0], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if victim == "build" else 0)
    wait_until_gone(blenders, 5)
    build(tmp_path)
    assert hashes(tmp_path) == hashes(reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_ends_within_seconds_and_goes_on(
    tmp_path: Path, reference: Path, number: signal.Signals
) -> None:
    process = start_build(tmp_path)
    blenders = wait_for_receipts(tmp_path, 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "of 12 pairs finished; the same command goes on" in errors and "Traceback" not in errors
    wait_until_gone(blenders, 5)
    build(tmp_path)
    assert hashes(tmp_path) == hashes(reference)


def test_datasets_reads_the_folder_as_two_image_columns(tmp_path: Path, reference: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="a second's import that only this test needs")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(reference), cache_dir=str(tmp_path))["train"]
    assert len(loaded) == 12
    first, line = loaded[0], json.loads((reference / "metadata.jsonl").read_text().splitlines()[0])
    assert first["image_a"].size == first["image_b"].size == SIZE
    assert first["pair_id"] == line["pair_id"] and first["num_differences"] == 1
    with Image.open(reference / line["image_b_file_name"]) as stored:
        assert (np.array(first["image_b"]) == np.array(stored)).all()


def test_our_own_reader_takes_the_folder(reference: Path) -> None:
    assert [example.num_differences for example in load_examples(reference, "train")] == [1, 1, 1, 2, 2, 2, 3, 4]
    assert [example.num_differences for example in load_examples(reference, "test")] == [1, 2, 3, 4]
