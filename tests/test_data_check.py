"""The check of a data folder: hashes, duplicates, labels against pixels and scenes, the command and its page."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.datagen.build import build_dataset
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.errors import DataError
from dig_rl.inspection.check import DataCheck, check_folder, figures_of
from dig_rl.inspection.pixels import compare_pictures
from dig_rl.inspection.sheet import choose_pairs, contact_sheet
from launch import data_check
from tests.data_folders import BOX, line_of, pictures, write_folder, write_manifest
from tests.flat_renderer import FlatRenderer

RECIPE = DataRecipe(
    width=64,
    height=48,
    num_objects=(3, 4),
    arena_m=2.0,
    kinds=("color", "size", "material", "add", "remove"),  # flat pictures show no shapes
    splits={"train": {1: 4, 2: 3}, "test": {1: 2}},
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made by the real pipeline with flat pictures; tests must not change it."""
    folder = tmp_path_factory.mktemp("generated") / "data"
    build_dataset(RECIPE, folder, make_renderer=lambda: FlatRenderer(64, 48, RECIPE.arena_m))
    return folder


def problems(check: DataCheck) -> list[str]:
    return [f"{finding.severity}: {finding}" for finding in check.findings]


def test_a_generated_folder_is_sound(generated: Path) -> None:
    check = check_folder(generated)
    assert check.errors == () and check.has_manifest and not check.boxes_drawn
    figures = figures_of(check)
    assert figures["pairs_by_split_and_count"] == {"train": {"1": 4, "2": 3}, "test": {"1": 2}}
    assert list(figures["pairs_by_split_and_count"]) == ["train", "test"]
    assert figures["num_scenes"] == 9 and figures["num_changes"] == 12
    # Flat pictures have no shadows: every changed pixel belongs to a changed object.
    assert figures["explained"] == {"mean": 1.0, "min": 1.0, "median": 1.0, "max": 1.0}


def test_pixels_are_counted_against_boxes_grown_by_one(tmp_path: Path) -> None:
    record = next(iter(check_folder(write_folder(tmp_path, [line_of("p0")])).pairs)).record
    picture_a, picture_b = (np.zeros((48, 64, 3), np.uint8) for _ in range(2))
    picture_b[8:20, 10:13, 2] = 200  # 36 pixels of the box, 144 in all
    picture_b[7, 9] = 200  # touches the box's corner: explained
    picture_b[40, 40:47] = 17  # 7 clear changes elsewhere
    picture_b[41, 40:45] = 16  # 5 faint ones
    figures, largest = compare_pictures(picture_a, picture_b, record)
    assert figures.changed == pytest.approx(44 / (48 * 64))
    assert figures.explained == pytest.approx(37 / 44) and figures.explained_any == pytest.approx(37 / 49)
    assert figures.changed_in_box == (36 / 144,) and largest == (200,)


def test_labels_that_the_pixels_contradict(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of(f"p{index}") for index in range(3)])
    Image.open(folder / "images/p0_a.png").save(folder / "images/p0_b.png")
    picture = pictures(1)[0]
    picture[8:20, 10:22] += 9
    Image.fromarray(picture).save(folder / "images/p1_b.png")
    picture = pictures(2)[1]
    picture[30:45, 30:60] = 255  # 450 pixels besides the 144 of the box
    Image.fromarray(picture).save(folder / "images/p2_b.png")
    identical, faint, outside = problems(check_folder(folder))
    assert re.search(r"error: .*line 1, pair p0: .*both pictures are identical within the box", identical)
    assert re.search(r"warning: .*line 2, pair p1: .*by more than 9 of 255 levels", faint)
    assert re.search(r"warning: .*line 3, pair p2: only 24% of the clearly changed", outside)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "add"}, "an added object has a box_a"),
        ({"kind": "remove"}, "a removed object has a box_b"),
        ({"box": [0.0, 0.0, 5.0, 5.0]}, "neither box_a, box_b nor the box around both"),
        ({"visible_px_a": 145}, "visible_px_a is 145, box_a holds 144 pixels"),
        ({"visible_px_b": 0, "visible_fraction_b": 0.0}, "visible_px_b is 0, box_b holds 144 pixels"),
        ({"box_a": None}, "box_a is null, but visible_px_a is 144"),
        ({"visible_fraction_a": 0.0}, "visible_fraction_a is 0, but visible_px_a is 144"),
    ],
)
def test_labels_that_contradict_themselves(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    line = line_of("p0")
    line["differences"][0] |= changes
    (error,) = check_folder(write_folder(tmp_path, [line])).findings
    assert error.severity == "error" and error.line == 1 and expected in error.problem


def test_files_against_the_manifest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of("p0"), line_of("p1")])
    write_manifest(folder)
    assert check_folder(folder).findings == ()
    picture = pictures(1)[1]
    picture[0, 0] += 1
    Image.fromarray(picture).save(folder / "images/p1_b.png")
    (folder / "images/stray.png").write_bytes(b"")
    (folder / "metadata.jsonl").write_text(
        (folder / "metadata.jsonl").read_text().replace('"seed": null', '"seed": 3', 1)
    )
    changed, metadata, stray = sorted(problems(check_folder(folder)))
    assert re.search(r"error: metadata.jsonl, line 2, pair p1: image images/p1_b.png has sha256 .* changed", changed)
    assert re.search(r"error: metadata.jsonl: has sha256", metadata)
    assert stray == "warning: images/stray.png: manifest.json does not list this file"


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 3}', "{}", '{"sha256": {"a": 1}}', "\x00"])
def test_a_damaged_manifest_is_an_error(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path, [line_of("p0")])
    (folder / "manifest.json").write_text(text)
    (error,) = check_folder(folder).errors
    assert error.file == "manifest.json"


def test_a_manifest_cannot_make_the_check_read_outside(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [line_of("p0")])
    (tmp_path / "secret").write_text("secret")
    write_manifest(folder)
    hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
    (folder / "manifest.json").write_text(json.dumps({"sha256": {**hashes, "../secret": "0"}}))
    assert problems(check_folder(folder)) == ["error: ../secret: manifest.json lists this file, and it cannot be read"]


def test_a_picture_in_two_splits_is_an_error_and_in_one_a_warning(tmp_path: Path) -> None:
    lines = [line_of("p0"), line_of("p1"), line_of("p2", split="test"), line_of("p3")]
    folder = write_folder(tmp_path, lines)
    for copy, level in (("p1", 0), ("p2", 9)):  # the same pixels in other bytes
        with Image.open(folder / "images/p0_a.png") as image:
            image.save(folder / f"images/{copy}_a.png", compress_level=level)
        box = pictures(0)[0]
        box[BOX[1] : BOX[3], BOX[0] : BOX[2], 0 if copy == "p1" else 1] = 255
        Image.fromarray(box).save(folder / f"images/{copy}_b.png")
    error, warning = problems(check_folder(folder))
    assert error.startswith(
        "error: metadata.jsonl, line 3, pair p2: the same picture as in pair p0 (line 1, split train)"
    )
    assert warning.startswith("warning: metadata.jsonl, line 2, pair p1: the same picture as in pair p0")


def test_nearly_the_same_picture_and_the_same_seed_are_warnings(tmp_path: Path) -> None:
    lines = [line_of("p0", seed=7), line_of("p1", split="test"), line_of("p2", split="test", seed=7)]
    folder = write_folder(tmp_path, lines)
    for side, picture in zip("ab", pictures(0), strict=True):
        Image.fromarray(np.clip(picture.astype(int) + 1, 0, 255).astype(np.uint8)).save(
            folder / f"images/p1_{side}.png"
        )
    near, seed = problems(check_folder(folder))
    assert near.startswith("warning: metadata.jsonl, line 2, pair p1: nearly the same reference picture as in pair p0")
    assert seed.startswith("warning: metadata.jsonl, line 3, pair p2: the same seed as in pair p0")


class PageReader(HTMLParser):
    """Collects what a page refers to, its pairs and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.places: list[int] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [values[name] or "" for name in ("src", "href") if name in values]
        if "data-place" in values:
            self.places.append(int(values["data-place"] or ""))

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(check: DataCheck, most: int = 200) -> PageReader:
    reader = PageReader()
    reader.feed(contact_sheet(check, figures_of(check), most))
    return reader


def test_the_sheet_shows_every_pair_and_needs_nothing_else(generated: Path) -> None:
    page = read_page(check_folder(generated))
    assert page.places == list(range(9))
    assert page.references and all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert all(f"pair-0000{number}" in page.text for number in range(9))


def test_names_from_the_folder_stay_text(tmp_path: Path) -> None:
    names = {f"image_{side}_file_name": f"images/p0_{side}.png" for side in "ab"}
    hostile = "</script><img src=http://x>"
    page = read_page(check_folder(write_folder(tmp_path, [line_of(hostile, **names)])))
    assert hostile in page.text and not any(reference.startswith("http") for reference in page.references)
    assert page.tags.count("script") == 1


def test_a_folder_without_one_sound_pair_has_a_sheet(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of("p0")])
    (folder / "images/p0_a.png").unlink()
    page = read_page(check_folder(folder))
    assert page.places == [] and "does not exist" in page.text


def test_a_small_sheet_holds_findings_the_worst_explained_and_a_spread(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of(f"p{index}") for index in range(12)])
    picture = pictures(5)[1]
    picture[25:30, 25:30] = 255  # 25 pixels besides the box: the worst, but no finding
    Image.fromarray(picture).save(folder / "images/p5_b.png")
    picture = pictures(9)[0]
    picture[8:20, 10:22] += 9
    Image.fromarray(picture).save(folder / "images/p9_b.png")
    pairs = check_folder(folder).sound_pairs
    assert [place for place, _ in choose_pairs(pairs, 4)] == [0, 5, 9, 11]
    assert len(choose_pairs(pairs, 12)) == 12 and choose_pairs(pairs, 0) == []


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["data_check", *arguments])
    data_check.main()


def test_the_command_writes_figures_and_sheet(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--data", str(generated), "--out", str(tmp_path / "out"), "--masks", "none")
    printed = capsys.readouterr().out
    assert "9 (train 7, test 2)" in printed and "is sound, 0 warnings" in printed
    figures = json.loads((tmp_path / "out/check.json").read_text())
    assert figures["errors"] == [] and figures["num_pairs"] == 9
    assert "<article" in (tmp_path / "out/contact_sheet.html").read_text()


def test_the_command_fails_with_the_list_of_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path, [line_of("p0"), line_of("p1"), line_of("p2")])
    (folder / "images/p0_a.png").unlink()
    (folder / "images/p2_b.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 errors, 0 warnings"):
        run(monkeypatch, "--data", str(folder))
    printed = capsys.readouterr().out
    assert "error: metadata.jsonl, line 1, pair p0: image images/p0_a.png does not exist" in printed
    assert "error: metadata.jsonl, line 3, pair p2: image images/p2_b.png is damaged" in printed
    assert len(json.loads((folder / "check/check.json").read_text())["errors"]) == 2
    # What the check wrote is no part of the data: a second look finds the same.
    assert len(check_folder(folder).findings) == 2
