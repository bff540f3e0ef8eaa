"""A `metadata.jsonl` written by hand: what is not known is left out, and files lie where their owner put them."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dig_rl.data import load_examples, read_records
from dig_rl.errors import DataError
from dig_rl.exchange.coco import export_coco
from dig_rl.inspection.check import check_folder, figures_of
from launch import data_check
from tests.data_folders import BOX, line_of, write_folder, write_manifest

KNOWN = ("image_a_file_name", "image_b_file_name", "pair_id", "width", "height", "split")


def short_line(name: str, **changes: Any) -> dict[str, Any]:
    """A pair of which no more is said than must be."""
    return {key: line_of(name)[key] for key in KNOWN} | {"differences": [{"box": list(BOX)}]} | changes


def test_what_is_not_known_is_null_by_itself(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [short_line("p0"), short_line("p1", differences=[{"kind": None, "box_b": [*BOX]}])])
    (_, plain), (_, one_sided) = read_records(folder)
    (difference,) = plain.differences
    assert (plain.num_differences, plain.seed, difference.kind, difference.box) == (1, None, "unknown", BOX)
    unknown = (
        "object_id",
        "box_a",
        "box_b",
        *(f"visible_{what}_{side}" for what in ("px", "fraction") for side in "ab"),
    )
    assert all(getattr(difference, name) is None for name in unknown)
    assert (one_sided.differences[0].box_a, one_sided.differences[0].box) == (None, BOX)
    assert check_folder(folder).findings == ()


def test_the_box_that_is_left_out_encloses_both_sides(tmp_path: Path) -> None:
    sides = {"box_a": [10.0, 9.0, 22.0, 20.0], "box_b": [11.0, 8.0, 20.0, 19.5]}
    folder = write_folder(tmp_path, [short_line("p0", differences=[sides])])
    assert read_records(folder)[0][1].differences[0].box == (10.0, 8.0, 22.0, 20.0)
    assert load_examples(folder, "train", box_target="b")[0].target_boxes_px == ((11.0, 8.0, 20.0, 19.5),)


def test_a_byte_order_mark_carriage_returns_and_blank_lines_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [short_line("p0", pair_id="K\u2028 0"), short_line("p1")])
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    text = "\r\n".join([lines[0].replace("\\u2028", "\u2028"), "", lines[1], "", "  ", ""])
    (folder / "metadata.jsonl").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert [(line, record.pair_id) for line, record in read_records(folder)] == [(1, "K\u2028 0"), (3, "p1")]
    assert check_folder(folder).findings == ()


def test_folders_of_pictures_are_followed_through_links_and_told(tmp_path: Path) -> None:
    """`images/` is a link, one picture is a link, one has an absolute path."""
    folder = write_folder(tmp_path / "data", [short_line("p0"), short_line("p1")])
    elsewhere, third = tmp_path / "disk two", tmp_path / "third.png"
    absolute = short_line("p1", image_a_file_name=str(elsewhere / "p1_a.png"))
    (folder / "metadata.jsonl").write_text(json.dumps(short_line("p0")) + "\n" + json.dumps(absolute) + "\n")
    write_manifest(folder)
    (folder / "images").rename(elsewhere)
    (folder / "images").symlink_to(elsewhere)
    (elsewhere / "p0_b.png").rename(third)
    (elsewhere / "p0_b.png").symlink_to(third)
    assert len(load_examples(folder, "train")) == 2
    check = check_folder(folder)
    assert check.findings == () and check.has_manifest
    assert figures_of(check)["folders_outside"] == {"images": str(elsewhere), str(elsewhere): str(elsewhere)}
    export_coco(folder, tmp_path / "out")
    (elsewhere / "p1_b.png").write_bytes((elsewhere / "p1_a.png").read_bytes())
    assert any("has sha256" in error.problem for error in check_folder(folder).errors)


def test_a_name_that_climbs_out_is_refused_even_through_a_link(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [short_line("p0", image_a_file_name="images/../../p0_a.png")])
    (folder / "images/p0_a.png").rename(tmp_path / "p0_a.png")
    with pytest.raises(DataError, match=r"lies outside the data folder: expected no `\.\.` in the name"):
        load_examples(folder, "train")


def test_many_faults_of_one_kind_are_one_message_with_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [short_line(f"p{index}") for index in range(8)]
    for index in range(1, 8):
        del lines[index]["width"]
    lines[4]["split"] = "dev"
    folder = write_folder(tmp_path, lines)
    # Line 5 has a fault of its own beside the common one.
    with pytest.raises(DataError, match=r"line 2, pair p1: missing key width; the same fault in 5 more lines$"):
        load_examples(folder, "train")
    monkeypatch.setattr(data_check, "contact_sheet", lambda *_: "")  # takes seconds
    monkeypatch.setattr(sys, "argv", ["data_check", "--data", str(folder)])
    with pytest.raises(DataError, match="7 errors"):
        data_check.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(printed) == 2 and "(and 5 more like it, in lines 3, 4, 6, 7, 8)" in printed[0] and "dev" in printed[1]


def test_faulty_pictures_are_counted_whatever_their_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [short_line(f"p{index}") for index in range(3)])
    for name in ("p0_a", "p1_b", "p1_a"):
        (folder / f"images/{name}.png").unlink()
    (folder / "images/p2_a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"p0: image images/p0_a.png does not exist .*same fault in 1 more line$"):
        load_examples(folder, "train")
