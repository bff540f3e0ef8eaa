"""Making a whole data folder with a flat test renderer: any number of workers, any interruption, one result."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.data import load_examples
from dig_rl.datagen.build import BuildProgress, build_dataset
from dig_rl.datagen.folder import encode_png
from dig_rl.datagen.pairs import make_pair, plan_pairs
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.scene import Scene, scene_from_json
from dig_rl.errors import ConfigError, DataError, RenderError
from tests.flat_renderer import FlatRenderer

RECIPE = DataRecipe(
    width=48, height=48, num_objects=(3, 5), arena_m=2.0, splits={"train": {1: 4, 2: 4, 4: 2}, "test": {3: 2}}
)


def flat() -> FlatRenderer:
    return FlatRenderer(48, 48, arena_m=2.0)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stop_after(pairs: int) -> Callable[[BuildProgress], None]:
    def report(progress: BuildProgress) -> None:
        if progress.done >= pairs:
            raise KeyboardInterrupt

    return report


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("reference") / "data"
    assert build_dataset(RECIPE, out, make_renderer=flat)
    return hashes(out)


def test_the_folder_is_complete_and_loads(tmp_path: Path) -> None:
    assert build_dataset(RECIPE, tmp_path, make_renderer=flat)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "manifest.json", "metadata.jsonl", "scenes"]
    examples = load_examples(tmp_path, "train")
    assert [example.num_differences for example in examples] == [1] * 4 + [2] * 4 + [4] * 2
    assert len(load_examples(tmp_path, "test")) == 2
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["num_pairs"] == 12 and manifest["pairs_by_split"] == {"test": 2, "train": 10}
    assert sum(manifest["differences_by_kind"].values()) == 4 + 8 + 8 + 6
    found = hashes(tmp_path)
    del found["manifest.json"]
    assert manifest["sha256"] == found and len(found) == 12 * 3 + 1


def test_labels_agree_with_the_stored_scenes(tmp_path: Path) -> None:
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    for line in (tmp_path / "metadata.jsonl").read_text().splitlines():
        record = json.loads(line)
        stored = json.loads((tmp_path / f"scenes/{record['pair_id']}.json").read_text())
        ids_a, ids_b = (flat().render_ids(scene_from_json(stored[name])) for name in ("scene_a", "scene_b"))
        for difference in record["differences"]:
            for ids, side in ((ids_a, "a"), (ids_b, "b")):
                box, shown = difference[f"box_{side}"], ids == difference["object_id"]
                assert difference[f"visible_px_{side}"] == shown.sum()
                assert (box is None) == (not shown.any())
                if box is not None:
                    x0, y0, x1, y1 = map(int, box)
                    assert shown[y0:y1, x0:x1].sum() == shown.sum()
                    assert (
                        shown[y0, :].any() and shown[y1 - 1, :].any() and shown[:, x0].any() and shown[:, x1 - 1].any()
                    )


@pytest.mark.parametrize("workers", [2, 5, 40])
def test_the_result_does_not_depend_on_the_workers(tmp_path: Path, reference: dict[str, str], workers: int) -> None:
    build_dataset(RECIPE, tmp_path, make_renderer=flat, workers=workers)
    assert hashes(tmp_path) == reference


@pytest.mark.parametrize("pairs", [0, 1, 5, 12])
def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path: Path, reference: dict[str, str], pairs: int) -> None:
    made: list[FlatRenderer] = []

    def remembered() -> FlatRenderer:
        made.append(flat())
        return made[-1]

    with pytest.raises(KeyboardInterrupt):
        build_dataset(RECIPE, tmp_path, make_renderer=remembered, workers=2, on_progress=stop_after(pairs))
    assert all(renderer.closed for renderer in made)
    assert not (tmp_path / "manifest.json").exists()
    seen: list[int] = []
    build_dataset(RECIPE, tmp_path, make_renderer=flat, on_progress=lambda progress: seen.append(progress.done))
    assert seen[0] >= pairs and seen == list(range(seen[0], 13))
    assert hashes(tmp_path) == reference


def test_a_damaged_or_half_written_file_is_made_again(tmp_path: Path, reference: dict[str, str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_dataset(RECIPE, tmp_path, make_renderer=flat, on_progress=stop_after(4))
    (tmp_path / "images/pair-00000_a.png").write_bytes(b"cut")
    (tmp_path / "images/pair-00001_b.png").unlink()
    (tmp_path / ".building/receipts/pair-00002.json").write_text("{")
    (tmp_path / ".building/partial/pair-00009_a.png").write_bytes(b"half")
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    assert hashes(tmp_path) == reference


def test_a_complete_folder_is_left_alone(tmp_path: Path, reference: dict[str, str]) -> None:
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    (tmp_path / ".building/receipts").mkdir(parents=True)  # as a kill right after the manifest leaves it

    def never() -> FlatRenderer:
        raise AssertionError("a complete folder needs no renderer")

    assert not build_dataset(RECIPE, tmp_path, make_renderer=never)
    assert hashes(tmp_path) == reference and not (tmp_path / ".building").exists()


def test_a_file_that_went_missing_is_made_again(tmp_path: Path, reference: dict[str, str]) -> None:
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    (tmp_path / "images/pair-00011_b.png").unlink()
    assert build_dataset(RECIPE, tmp_path, make_renderer=flat)
    assert hashes(tmp_path) == reference


@pytest.mark.parametrize("pairs", [3, 99])
def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path, pairs: int) -> None:
    try:
        build_dataset(RECIPE, tmp_path, make_renderer=flat, on_progress=stop_after(pairs))
    except KeyboardInterrupt:
        assert pairs == 3
    before = hashes(tmp_path)
    other = RECIPE.model_copy(update={"samples": 99, "splits": {"train": {1: 5}}})
    with pytest.raises(ConfigError, match=r"samples: 16 -> 99\n  splits.test: .*\n  splits.train.1: 4 -> 5"):
        build_dataset(other, tmp_path, make_renderer=flat)
    assert hashes(tmp_path) == before


def test_a_foreign_folder_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a data folder of ours"):
        build_dataset(RECIPE, tmp_path, make_renderer=flat)
    with pytest.raises(DataError, match="is a file"):
        build_dataset(RECIPE, tmp_path / "thesis.txt", make_renderer=flat)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_cannot_make_one_folder(tmp_path: Path) -> None:
    (tmp_path / ".building").mkdir()
    with (tmp_path / ".building/lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is making"):
            build_dataset(RECIPE, tmp_path, make_renderer=flat)


def test_a_renderer_that_fails_ends_the_build_and_keeps_what_is_done(tmp_path: Path, reference: dict[str, str]) -> None:
    class Failing(FlatRenderer):
        def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
            if len(list((tmp_path / "images").iterdir())) >= 6:
                raise RenderError("out of paint")
            return super().render_beauty(scene, seed)

    with pytest.raises(RenderError, match="out of paint"):
        build_dataset(RECIPE, tmp_path, make_renderer=lambda: Failing(48, 48, 2.0), workers=2)
    assert len(list((tmp_path / ".building/receipts").iterdir())) >= 3
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    assert hashes(tmp_path) == reference


def test_two_versions_of_a_renderer_do_not_share_a_folder(tmp_path: Path, reference: dict[str, str]) -> None:
    class Newer(FlatRenderer):
        version = "flat 2"

    with pytest.raises(KeyboardInterrupt):
        build_dataset(RECIPE, tmp_path, make_renderer=flat, on_progress=stop_after(4))
    with pytest.raises(DataError, match=r"pair-0000\d was drawn by flat 2, pair-00000 by flat; use one version"):
        build_dataset(RECIPE, tmp_path, make_renderer=lambda: Newer(48, 48, 2.0))
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    assert hashes(tmp_path) == reference


def test_an_impossible_recipe_says_why(tmp_path: Path) -> None:
    values: dict[str, Any] = {"max_attempts": 20, "rules": {"min_visible_px": 1e5}}
    recipe = DataRecipe.model_validate({**RECIPE.model_dump(), **values})
    with pytest.raises(ConfigError, match=r"no acceptable pair-00000 .* in 20 tries \(rejected: .*small_change"):
        build_dataset(recipe, tmp_path, make_renderer=flat)


def test_rejections_are_counted_as_they_happened(tmp_path: Path) -> None:
    build_dataset(RECIPE, tmp_path, make_renderer=flat, workers=3)
    expected: dict[str, int] = {}
    for task in plan_pairs(RECIPE):
        for reason, count in make_pair(task, RECIPE, flat()).rejections.items():
            expected[reason] = expected.get(reason, 0) + count
    assert json.loads((tmp_path / "manifest.json").read_text())["rejections"] == expected and expected


def test_png_files_hold_pixels_and_nothing_else() -> None:
    contents, chunks, position = encode_png(np.zeros((4, 6, 3), dtype=np.uint8)), [], 8
    while position < len(contents):
        length = int.from_bytes(contents[position : position + 4], "big")
        chunks.append(contents[position + 4 : position + 8])
        position += length + 12
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]
