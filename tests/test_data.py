"""Reading a data folder: what it gives, and that each possible mistake is named with file, line and pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dig_rl.data import load_examples, target_box
from dig_rl.errors import DataError

SIZE = (64, 32)


def difference(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "kind": "size",
        "object_id": 3,
        "box": [10.0, 8.0, 20.0, 16.0],
        "box_a": [10.0, 8.0, 18.0, 16.0],
        "box_b": [12.0, 9.0, 20.0, 15.0],
        "visible_px_a": 60,
        "visible_px_b": 40,
        "visible_fraction_a": 1.0,
        "visible_fraction_b": 0.75,
    }
    return {**known, **changes}


def pair(pair_id: str, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "image_a_file_name": f"images/{pair_id}_a.png",
        "image_b_file_name": f"images/{pair_id}_b.png",
        "pair_id": pair_id,
        "width": SIZE[0],
        "height": SIZE[1],
        "num_differences": 1,
        "split": "train",
        "seed": 9,
        "differences": [difference()],
    }
    return {**known, **changes}


def write_folder(folder: Path, lines: list[str]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for line in lines:
        for name in ("p1", "p2", "p3"):
            if f'"{name}"' in line:
                for side in "ab":
                    Image.new("RGB", SIZE).save(folder / f"images/{name}_{side}.png")
    (folder / "metadata.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def folder_with(folder: Path, *pairs: dict[str, Any]) -> Path:
    return write_folder(folder, [json.dumps(item) for item in pairs])


def test_examples_come_in_the_order_of_the_lines_and_of_one_split_only(tmp_path: Path) -> None:
    folder_with(tmp_path, pair("p3"), pair("p1", split="test"), pair("p2"))
    examples = load_examples(tmp_path, "train")
    assert [example.pair_id for example in examples] == ["p3", "p2"]
    first = examples[0]
    assert first.image_size_px == SIZE and first.kinds == ("size",) and first.split == "train"
    assert Path(first.image_a_path) == tmp_path.resolve() / "images/p3_a.png"
    assert Path(first.image_b_path).is_absolute() and first.num_differences == 1


@pytest.mark.parametrize(
    ("box_target", "expected"),
    [("union", (10.0, 8.0, 20.0, 16.0)), ("a", (10.0, 8.0, 18.0, 16.0)), ("b", (12.0, 9.0, 20.0, 15.0))],
)
def test_the_box_follows_the_chosen_target(tmp_path: Path, box_target: Any, expected: tuple[float, ...]) -> None:
    folder_with(tmp_path, pair("p1"))
    assert load_examples(tmp_path, "train", box_target=box_target)[0].target_boxes_px == (expected,)


@pytest.mark.parametrize("box_target", ["union", "a", "b"])
def test_a_change_absent_from_one_image_takes_its_box_in_the_other(box_target: Any) -> None:
    box = (1.0, 2.0, 3.0, 4.0)
    assert target_box(None, box, box_target) == box == target_box(box, None, box_target)


def test_an_import_that_knows_only_the_box_keeps_it(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("object_id", "box_a", "box_b", "visible_px_a", "visible_px_b"))
    unknown |= dict.fromkeys(("visible_fraction_a", "visible_fraction_b"))
    folder_with(tmp_path, pair("p1", seed=None, differences=[difference(**unknown)]))
    assert load_examples(tmp_path, "train", box_target="b")[0].target_boxes_px == ((10.0, 8.0, 20.0, 16.0),)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"visible_fraction_a": 0.9, "visible_fraction_b": 0.75}, 0.75),
        ({"visible_fraction_a": 0.6, "visible_fraction_b": 0.0, "box_b": None}, 0.6),  # removed: one picture shows it
        ({"visible_fraction_a": 0.6, "visible_fraction_b": None}, None),
        ({"visible_fraction_a": 0.6, "visible_fraction_b": 0.6, "box_a": None, "box_b": None}, None),
    ],
)
def test_visible_fraction_is_the_lower_one_of_the_pictures_that_show_the_object(
    tmp_path: Path, changes: dict[str, Any], expected: float | None
) -> None:
    folder_with(tmp_path, pair("p1", differences=[difference(**changes)]))
    assert load_examples(tmp_path, "train")[0].visible_fractions == (expected,)


def test_pairs_without_difference_are_read_only_where_allowed(tmp_path: Path) -> None:
    folder_with(tmp_path, pair("p1", num_differences=0, differences=[]))
    assert load_examples(tmp_path, "train", allow_no_change=True)[0].target_boxes_px == ()
    with pytest.raises(DataError, match=r"metadata.jsonl, line 1, pair p1: no difference at all.*allow_no_change"):
        load_examples(tmp_path, "train")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (pair("p2", colour="red"), "unknown key colour"),
        (pair("p2", differences=[difference(area=3)]), "unknown key differences.0.area"),
        ({key: value for key, value in pair("p2").items() if key != "width"}, "missing key width"),
        (pair("p2", differences=[{"kind": "add"}]), "missing key differences.0.box, or box_a or box_b"),
        (pair("p2", differences=[{"box_b": [1.0, 2.0, 3.0]}]), "missing key differences.0.box, .*box_b"),
        (pair("p1"), "used before, in line 1"),
        (pair("p2", num_differences=2), "num_differences is 2, but 1 differences are listed"),
        (pair("p2", num_differences="1"), "num_differences: .* integer"),
        (pair("p2", split="dev"), "split: .*'train'"),
        (pair("p2", width=0), "width"),
        (pair("p2", differences=[difference(kind="colour")]), "differences.0.kind"),
        (pair("p2", differences=[difference(box=[0.0, 0.0, 65.0, 4.0])]), r"box .*x_max <= 64"),
        (pair("p2", differences=[difference(box_b=[4.0, 4.0, 4.0, 9.0])]), "box_b .*x_min < x_max"),
        (pair("p2", differences=[difference(box_a=[9.0, 9.0, 12.0, 33.0])]), "box_a .*y_max <= 32"),
        (pair("p2", differences=[difference(box=[-1.0, 0.0, 5.0, 4.0])]), "box"),
        (pair("p2", differences=[difference(box=[0.0, 0.0, 5.0])]), "box"),
        (pair("p2", differences=[difference(visible_fraction_a=1.5)]), "visible_fraction_a"),
        (pair("p2", image_a_file_name="images/absent.png"), "absent.png does not exist"),
        (pair("p2", image_b_file_name="../p2_b.png"), "outside the data folder"),
        (pair("p2", image_b_file_name="/etc/hostname"), "hostname is damaged"),
    ],
)
def test_each_wrong_line_is_named(tmp_path: Path, wrong: dict[str, Any], expected: str) -> None:
    folder_with(tmp_path, pair("p1"), wrong)
    with pytest.raises(DataError, match=rf"metadata.jsonl, line 2, pair p[12]: .*{expected}"):
        load_examples(tmp_path, "train")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda line: line[: len(line) // 2], "pair p2: not one complete JSON object"),
        (lambda line: line[:4], "pair unknown: not one complete JSON object"),
        (lambda line: f"[{line}]", "expected an object, found list"),
        (lambda line: line.replace("10.0", "NaN"), "NaN is not a number"),
        (lambda line: line.replace("10.0", "1e999"), "differences.0"),
        (lambda line: "[" * 200_000, "not one complete|nested too deeply"),
    ],
)
def test_lines_that_are_no_record_are_named(tmp_path: Path, spoil: Callable[[str], str], expected: str) -> None:
    order = ("pair_id", "differences")
    second = pair("p2")
    line = json.dumps({key: second[key] for key in (*order, *(key for key in second if key not in order))})
    write_folder(tmp_path, [json.dumps(pair("p1")), spoil(line)])
    with pytest.raises(DataError, match=rf"metadata.jsonl, line 2, .*({expected})"):
        load_examples(tmp_path, "train")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "damaged"),
        (lambda path: path.write_bytes(b"not a picture"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDXT")), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: Image.new("RGB", (32, 64)).save(path), "is 32x64, the line says 64x32"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_each_wrong_image_is_named(tmp_path: Path, spoil: Callable[[Path], Any], expected: str) -> None:
    folder_with(tmp_path, pair("p1"), pair("p2"))
    spoil(tmp_path / "images/p2_b.png")
    with pytest.raises(DataError, match=rf"metadata.jsonl, line 2, pair p2: image images/p2_b.png .*{expected}"):
        load_examples(tmp_path, "train")
    assert len(load_examples(tmp_path, "train", check_images=False)) == 2


def test_images_of_other_splits_are_not_opened(tmp_path: Path) -> None:
    folder_with(tmp_path, pair("p1"), pair("p2", split="test"))
    (tmp_path / "images/p2_a.png").unlink()
    assert len(load_examples(tmp_path, "train")) == 1


def test_an_empty_split_says_what_the_file_holds(tmp_path: Path) -> None:
    folder_with(tmp_path, pair("p1"), pair("p2", split="test"))
    with pytest.raises(DataError, match=r"no pair of split 'validation' in .*, which holds 1 of 'train', 1 of 'test'"):
        load_examples(tmp_path, "validation")


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make data OUT="):
        load_examples(tmp_path / "absent", "train")
