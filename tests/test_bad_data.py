"""Every kind of bad data gives one error that names file, line and pair: to a run, and to the check of a folder."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.data import load_examples
from dig_rl.errors import DataError
from dig_rl.inspection.check import check_folder
from tests.data_folders import SIZE, line_of, pictures, write_folder


def png(width: int, height: int, depth: int, color_type: int, pixels: bytes) -> bytes:
    """A PNG from its parts, with right checksums whatever it claims."""

    def chunk(name: bytes, contents: bytes) -> bytes:
        return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def replace_bytes(old: bytes, new: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def save_as(mode: str, **options: Any) -> Callable[[Path], Any]:
    return lambda path: Image.fromarray(pictures(1)[1]).convert(mode).save(path, **options)


def link_to(target: str) -> Callable[[Path], Any]:
    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SIXTEEN_BIT_RGB = png(*SIZE, 16, 2, (b"\0" + bytes(SIZE[0] * 6)) * SIZE[1])
BOMB = png(50_000, 50_000, 8, 2, b"")
HEAVY = png(9_000, 9_000, 8, 2, b"")
"""Below the size from which Pillow refuses by itself."""

SPOILED_IMAGES = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "damaged"),
    "no picture": (lambda path: path.write_bytes(b"not a picture"), "damaged"),
    "wrong checksum": (replace_bytes(b"IDAT", b"IDXT"), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "another size": (lambda path: Image.new("RGB", (48, 64)).save(path), "is 48x64, the line says 64x48"),
    "palette": (save_as("P"), "mode P"),
    "alpha": (save_as("RGBA"), "mode RGBA"),
    "transparent color": (save_as("RGB", transparency=(0, 0, 0)), "without palette or transparency"),
    "grey of 16 bits": (lambda path: Image.fromarray(np.zeros(SIZE[::-1], np.uint16)).save(path), "16 bits"),
    "color of 16 bits": (lambda path: path.write_bytes(SIXTEEN_BIT_RGB), "16 bits"),
    "bomb": (lambda path: path.write_bytes(BOMB), "damaged .*bomb"),
    "small bomb": (lambda path: path.write_bytes(HEAVY), "claims 9000x9000"),
    "link to a file of the system": (link_to("/etc/hostname"), "is damaged"),
    "link to itself": (link_to("p1_b.png"), "cannot be looked up"),
    "pipe": (replace_by_pipe, "not a file"),
    "folder": (replace_by_folder, "not a file"),
}


@pytest.mark.parametrize(("spoil", "expected"), SPOILED_IMAGES.values(), ids=SPOILED_IMAGES)
def test_a_bad_image(tmp_path: Path, spoil: Callable[[Path], Any], expected: str) -> None:
    folder = write_folder(tmp_path / "data", [line_of("p0"), line_of("p1")])
    spoil(folder / "images/p1_b.png")
    problem = rf"metadata.jsonl, line 2, pair p1: image images/p1_b.png .*{expected}"
    with pytest.raises(DataError, match=problem):
        load_examples(folder, "train")
    (error,) = check_folder(folder).findings
    assert error.severity == "error"
    with pytest.raises(DataError, match=problem):
        raise DataError(str(error))


def changed(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A line whose first difference is changed."""
    line = line_of("p1")
    line["differences"][index] |= changes
    return line


def text_with(old: str, new: str) -> str:
    return json.dumps(line_of("p1")).replace(old, new)


SPOILED_LINES = {
    "box outside": (changed(box=[60.0, 0.0, 65.0, 4.0], box_a=None, box_b=None), "differences.0.box .*x_max <= 64"),
    "box of no width": (changed(box_b=[4.0, 4.0, 4.0, 9.0]), "box_b .*x_min < x_max"),
    "unknown key": (line_of("p1", colour="red"), "unknown key colour"),
    "missing key": ({key: value for key, value in line_of("p1").items() if key != "width"}, "missing key width"),
    "wrong count": (line_of("p1", num_differences=2), "num_differences is 2, but 1 differences are listed"),
    "no change": (line_of("p1", num_differences=0, differences=[]), "no difference at all"),
    "cut off": (text_with("}]}", "}]"), "not one complete JSON object"),
    "NaN": (text_with("10.0", "NaN"), "NaN is not a number"),
    "infinite": (text_with("10.0", "1e999"), "differences.0"),
    "null byte in a name": (line_of("p1", image_b_file_name="images/\0.png"), "cannot be looked up"),
    "name without end": (line_of("p1", image_b_file_name="images/" + "a" * 5000), "cannot be looked up"),
    "name outside": (line_of("p1", image_b_file_name="../outside.png"), "outside the data folder"),
}


@pytest.mark.parametrize(("line", "expected"), SPOILED_LINES.values(), ids=SPOILED_LINES)
def test_a_bad_line(tmp_path: Path, line: dict[str, Any] | str, expected: str) -> None:
    folder = write_folder(tmp_path / "data", [line_of("p0"), line])
    problem = rf"(?s)metadata.jsonl, line 2, pair p1: .*{expected}"
    with pytest.raises(DataError, match=problem):
        load_examples(folder, "train")
    (error,) = check_folder(folder).errors
    with pytest.raises(DataError, match=problem):
        raise DataError(str(error))


def test_an_id_that_was_used_before(tmp_path: Path) -> None:
    again = line_of("p0", image_a_file_name="images/p1_a.png", image_b_file_name="images/p1_b.png")
    folder = write_folder(tmp_path, [line_of("p0"), again])
    with pytest.raises(DataError, match="line 2, pair p0: this pair id was used before, in line 1"):
        load_examples(folder, "train")
    assert [str(error) for error in check_folder(folder).findings] == [
        "metadata.jsonl, line 2, pair p0: this pair id was used before, in line 1"
    ]


def test_grey_images_are_as_good_as_color(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of("p0")])
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert len(load_examples(folder, "train")) == 1
    assert check_folder(folder).findings == ()


def test_pairs_without_change_may_be_allowed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of("p0"), line_of("p1", num_differences=0, differences=[])])
    (warning,) = check_folder(folder, allow_no_change=True).findings
    # The pictures differ by the square of 144 pixels nevertheless, 4.7 % of 3072.
    assert warning.severity == "warning" and "4.7% of the pixels change clearly" in warning.problem


def test_the_check_lists_every_error_and_the_run_the_first(tmp_path: Path) -> None:
    lines = [line_of("p0"), changed(kind="colour"), line_of("p2", width=63), line_of("p3", split="test")]
    folder = write_folder(tmp_path, lines)
    (folder / "images/p0_a.png").unlink()
    (folder / "images/p3_a.png").write_bytes(b"")
    check = check_folder(folder)
    assert [(error.line, error.pair_id) for error in check.errors] == [
        (1, "p0"),
        (2, "p1"),
        (3, "p2"),
        (3, "p2"),  # both images of p2 have another size than the line says
        (4, "p3"),
    ]
    assert [pair.record.pair_id for pair in check.pairs] == ["p0", "p2", "p3"] and check.sound_pairs == []


def test_an_empty_file_holds_no_pairs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [])
    assert [str(error) for error in check_folder(folder).errors] == ["metadata.jsonl: holds no pairs"]
    with pytest.raises(DataError, match="no pair of split"):
        load_examples(folder, "train")


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make data OUT="):
        check_folder(tmp_path / "absent")


def test_a_picture_whose_pixels_are_cut_off_behind_right_checksums(tmp_path: Path) -> None:
    """Only decoding finds this one, so only the check does."""
    folder = write_folder(tmp_path, [line_of("p0"), line_of("p1")])
    (folder / "images/p1_b.png").write_bytes(png(*SIZE, 8, 2, bytes(100)))
    (error,) = check_folder(folder).findings
    assert str(error).startswith("metadata.jsonl, line 2, pair p1: image images/p1_b.png is damaged")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [line_of("p\x1b[31m\n0", image_a_file_name="images/absent.png")])
    error = check_folder(folder).errors[0]
    assert "pair p\\x1b[31m\\x0a0: image" in str(error) and str(error).isprintable()
