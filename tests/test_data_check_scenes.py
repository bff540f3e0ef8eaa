"""The check of a data folder's stored scenes: do they fit the labels, and does every box fit the object's pixels?"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from dig_rl.data import PairRecord
from dig_rl.datagen.build import build_dataset
from dig_rl.datagen.recipe import DataRecipe, EditKind
from dig_rl.datagen.renderers import open_renderer
from dig_rl.errors import DataError
from dig_rl.inspection import pairs as pairs_module
from dig_rl.inspection.check import check_folder, figures_of
from dig_rl.inspection.masks import blender_ids, mask_problems, numpy_ids
from dig_rl.inspection.sheet import contact_sheet
from launch import data_check
from tests.data_folders import BOX, SIZE, line_of, write_folder

RECIPE = DataRecipe(
    width=64,
    height=48,
    samples=2,
    renderer="numpy",
    num_objects=(3, 4),
    arena_m=1.8,
    kinds=get_args(EditKind),
    splits={"train": {1: 4, 2: 4}, "test": {0: 2, 1: 2}},
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with moved objects and pairs without a change; tests must not change it."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    build_dataset(RECIPE, folder, make_renderer=lambda: open_renderer(RECIPE))
    return folder


def test_moved_objects_and_unchanged_pairs_are_sound_where_they_are_allowed(drawn: Path) -> None:
    check = check_folder(drawn, allow_no_change=True, make_ids=numpy_ids)
    assert check.findings == () and check.boxes_drawn
    figures = figures_of(check)
    assert figures["pairs_by_split_and_count"] == {"train": {"1": 4, "2": 4}, "test": {"0": 2, "1": 2}}
    assert figures["changes_by_split_and_kind"]["train"]["move"] == 4
    page = contact_sheet(check, figures, max_pairs=20)
    assert page.count(" from here</span>") == page.count(" to here</span>") == 2
    assert page.count(">no change<") == 2
    refused = check_folder(drawn)
    assert [error.pair_id for error in refused.errors] == ["pair-00008", "pair-00009"]
    assert all("no difference at all" in error.problem and error.line for error in refused.errors)


def test_several_processes_find_what_one_finds(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "FEWEST_TO_SHARE", 0)
    alone, shared = (figures_of(check_folder(drawn, workers=workers, make_ids=numpy_ids)) for workers in (1, 2))
    assert alone == shared and len(alone["errors"]) == 2 and alone["boxes_compared_with_drawn_scenes"]


def test_the_command_draws_the_scenes_of_its_own_accord(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(drawn, tmp_path / "data")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    number, side = next(
        (number, side) for number, line in enumerate(lines) for side in "ab" if shifted(line, side, 2.0) is not None
    )
    lines[number] = shifted(lines[number], side, 2.0) or ""
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["data_check", "--data", str(folder), "--allow-no-change"])
    with pytest.raises(DataError, match="1 error, 0 warnings"):
        data_check.main()
    printed = capsys.readouterr().out
    pair_id = json.loads(lines[number])["pair_id"]
    assert f"error: metadata.jsonl, line {number + 1}, pair {pair_id}: differences.0.box_{side} is" in printed


def shifted(line: str, side: str, by_px: float) -> str | None:
    """The line with the one box of its first difference moved, if it has just that box and room for it."""
    values = json.loads(line)
    for difference in values["differences"][:1]:
        box, other = difference[f"box_{side}"], difference[f"box_{'b' if side == 'a' else 'a'}"]
        if box is not None and other is None and box[2] + by_px <= RECIPE.width:
            difference[f"box_{side}"] = difference["box"] = [box[0] + by_px, box[1], box[2] + by_px, box[3]]
            return json.dumps(values)
    return None


def copy_of(drawn: Path, folder: Path) -> Path:
    """The drawn folder without its manifest, to be spoiled."""
    for path in drawn.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            (folder / path.relative_to(drawn)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(drawn)).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda scene: scene.update(pair_id="other"), "belongs to pair 'other'"),
        (lambda scene: scene["edits"].pop(), "lists the edits"),
        (lambda scene: scene.update(scene_b=scene["scene_a"]), "its scenes differ in"),
        (lambda scene: scene["scene_a"].update(sky_strength="1"), "cannot be drawn: .*sky_strength"),
        (lambda scene: scene.pop("scene_b"), "does not have the layout"),
        (lambda scene: scene["scene_a"].update(objects=[{"object_id": "1"}]), "without an integer object_id"),
        (lambda scene: scene["scene_a"].update(version=99), "cannot be drawn: scene version 99"),
    ],
)
def test_scene_files_that_do_not_fit(drawn: Path, tmp_path: Path, spoil: Any, expected: str) -> None:
    folder = copy_of(drawn, tmp_path)
    path = folder / "scenes/pair-00000.json"
    scene = json.loads(path.read_text())
    spoil(scene)
    path.write_text(json.dumps(scene))
    (error,) = check_folder(folder, allow_no_change=True, make_ids=numpy_ids).errors
    assert error.file == "scenes/pair-00000.json" and error.pair_id == "pair-00000"
    assert re.search(expected, error.problem)


def test_a_scene_in_two_splits_is_an_error(drawn: Path, tmp_path: Path) -> None:
    folder = copy_of(drawn, tmp_path)
    train, test = (json.loads((folder / f"scenes/pair-{number:05d}.json").read_text()) for number in (0, 10))
    (changed,) = (edit["object_id"] for edit in test["edits"])
    objects = [item for item in train["scene_a"]["objects"] if item["object_id"] != changed]
    objects += [item for item in test["scene_b"]["objects"] if item["object_id"] == changed]
    test |= {"scene_a": train["scene_a"], "scene_b": {**train["scene_a"], "objects": objects}}
    (folder / "scenes/pair-00010.json").write_text(json.dumps(test))
    (error,) = check_folder(folder, allow_no_change=True).errors
    assert error.line == 11 and error.problem.startswith("the same scene as in pair pair-00000 (line 1, split train)")


def test_a_pair_id_cannot_lead_out_of_the_scenes(tmp_path: Path) -> None:
    names = {f"image_{side}_file_name": f"images/p0_{side}.png" for side in "ab"}
    folder = write_folder(tmp_path / "data", [line_of("../../secret", **names)])
    (folder / "scenes").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (error,) = check_folder(folder).findings
    assert "leads out of scenes/" in error.problem


def test_boxes_are_compared_with_the_pixels_of_their_object(tmp_path: Path) -> None:
    record = check_folder(write_folder(tmp_path, [line_of("p0")])).pairs[0].record
    x_min, y_min, x_max, y_max = BOX

    def ids(shift: int = 0, object_id: int = 1) -> np.ndarray:
        drawn = np.zeros(SIZE[::-1], np.uint8)
        drawn[y_min:y_max, x_min + shift : x_max + shift] = object_id
        return drawn

    assert list(mask_problems(record, ids(), ids(shift=1))) == []
    (moved,) = mask_problems(record, ids(), ids(shift=2))
    assert "box_b" in moved and "[12.0, 8.0, 24.0, 20.0]" in moved
    (gone,) = mask_problems(record, ids(object_id=2), ids())
    assert "box_a" in gone and "no visible pixel" in gone


@pytest.mark.slow
def test_blender_can_be_asked_instead(drawn: Path, tmp_path: Path) -> None:
    """Labels of the numpy renderer against Blender's pixels, drawn from the scenes alone."""
    folder = copy_of(drawn, tmp_path)
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(lines[:6]))
    check = check_folder(folder, make_ids=blender_ids)
    assert check.errors == () and check.boxes_drawn
    assert all(isinstance(pair.record, PairRecord) for pair in check.pairs) and len(check.pairs) == 6
