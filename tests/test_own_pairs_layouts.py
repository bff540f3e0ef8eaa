"""One's own pairs as other tools store them: masks, rows and names that could be taken for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.data import PairRecord, read_records
from dig_rl.exchange.own_pairs import import_own_pairs
from tests.own_pairs import Pair, write_pictures

SIZE, BOX = (48, 32), (8, 5, 20, 16)
XYWH = [8, 5, 12, 11]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "own", [Pair(f"{index}.png", SIZE, (BOX,)) for index in range(2)])


def imported(source: Path, **options: Any) -> list[PairRecord]:
    out = source.with_name(f"{source.name} imported")
    import_own_pairs(source, out, **options)
    return [record for _line, record in read_records(out, allow_no_change=True)]


def coco(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    """Images and annotations get ids as they stand; one category."""
    numbered = [{"id": number, **image} for number, image in enumerate(images)]
    labelled = [{"id": number, "category_id": 1, **item} for number, item in enumerate(annotations)]
    contents = {"images": numbered, "annotations": labelled, "categories": [{"id": 1, "name": "color"}]}
    (folder / "t.json").write_text(json.dumps(contents))
    return folder / "t.json"


def mask_of(kind: str) -> Image.Image:
    """What is set is white; in the first palette the ground has number 1, in the second all colours have numbers."""
    pixels = np.zeros(SIZE[::-1], np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    if kind in ("1", "I;16"):
        return Image.fromarray(pixels.astype(bool) if kind == "1" else pixels.astype(np.uint16) * 256)
    if kind != "P":
        return Image.fromarray(pixels * 255).convert(kind.replace("quantized", "RGB"))
    image = Image.fromarray(1 - pixels, "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


@pytest.mark.parametrize("kind", ["1", "L", "I;16", "P", "RGB", "RGBA", "LA", "quantized"])
def test_a_mask_is_read_by_its_colours(own: Path, kind: str) -> None:
    (own / "masks").mkdir()
    for index in range(2):
        mask = mask_of(kind)
        (mask.quantize(2) if kind == "quantized" else mask).save(own / f"masks/{index}.png")
    assert [[item.box for item in record.differences] for record in imported(own)] == [[BOX]] * 2


def test_files_beside_the_folders_are_not_what_bare_names_mean(own: Path) -> None:
    (own / "masks").mkdir()
    for index in range(2):
        mask_of("L").save(own / f"masks/{index}.png")
        Image.new("L", SIZE, 200).save(own / f"{index}.png")
    assert [[item.box for item in record.differences] for record in imported(own)] == [[BOX]] * 2
    (own / "t.csv").write_text("a,b,mask\n0.png,0.png,0.png\n1.png,1.png,masks/1.png\n")
    named = imported(own / "t.csv")
    assert [[item.box for item in record.differences] for record in named] == [[BOX]] * 2
    manifest = json.loads((own / "t.csv imported/manifest.json").read_text())
    assert {name["from"] for name in manifest["pictures"].values()} == {"a/0.png", "b/0.png", "a/1.png", "b/1.png"}


def test_one_picture_is_named_twice_only_without_a_change(own: Path) -> None:
    (own / "t.csv").write_text("a,b,x1,y1,x2,y2\na/0.png,a/0.png,,,,\na/1.png,b/1.png,8,5,20,16\n")
    assert [len(record.differences) for record in imported(own / "t.csv")] == [0, 1]


@pytest.mark.parametrize("side", ["a", "b"])
def test_each_coco_picture_is_turned_by_its_own_tag(own: Path, side: str) -> None:
    """One side is stored turned, and its image declares the stored size: only its own boxes are turned."""
    path = own / side / "0.png"
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    stored = [5, SIZE[0] - 20, 11, 12]
    images = [
        {"file_name": f"{name}/0.png", "width": SIZE[name == side], "height": SIZE[name != side]} for name in "ab"
    ]
    boxes = [{"image_id": number, "bbox": stored if name == side else XYWH} for number, name in enumerate("ab")]
    source = coco(own, images, [item | {"difference_id": 0} for item in boxes])
    (record,) = imported(source)
    (change,) = record.differences
    assert (change.box_a, change.box_b) == (BOX, BOX)


def test_boxes_of_one_difference_on_one_side_are_all_kept(own: Path) -> None:
    halves = [[8, 5, 6, 11], [14, 5, 6, 11]]
    items = [{"image_id": 1, "bbox": half, "difference_id": 0} for half in halves]
    (record,) = imported(coco(own, [{"file_name": "a/0.png"}, {"file_name": "b/0.png"}], items))
    assert [item.box_b for item in record.differences] == [(8, 5, 14, 16), (14, 5, 20, 16)]


@pytest.mark.parametrize("names", [("before", "after"), ("A", "B"), ("Before", "AFTER")])
def test_coco_names_may_begin_with_any_name_of_a_side(own: Path, names: tuple[str, str]) -> None:
    for side, name in zip("ab", names, strict=True):
        (own / side).rename(own / name)
    pictures = [
        {"file_name": f"{names[0]}/0.png"},
        {"file_name": f"{names[1]}/0.png"},
        {"file_name": f"{names[1]}/1.png"},
    ]
    items = [{"image_id": 1, "bbox": XYWH}, {"image_id": 2, "bbox": XYWH}]
    records = imported(coco(own, pictures, items))
    assert [[(item.box_a, item.box_b) for item in record.differences] for record in records] == [[(None, BOX)]] * 2


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_objects_with_a_box_each_are_rows_of_a_table(own: Path, suffix: str) -> None:
    """As pandas writes a table: one object a row, null for an empty cell."""
    corners = dict(zip(("x1", "y1", "x2", "y2"), BOX, strict=True))
    rows = [
        {"file": "0.png", **corners},
        {"file": "0.png", **corners, "x2": 19},
        {"file": "1.png"} | dict.fromkeys(corners),
    ]
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    (own / f"t{suffix}").write_text(text)
    two, none = imported(own / f"t{suffix}")
    assert [item.box for item in two.differences] == [BOX, (8, 5, 19, 16)] and none.differences == ()


def test_a_box_of_null_is_none(own: Path) -> None:
    (own / "t.jsonl").write_text('{"file": "0.png", "box": null}\n{"file": "1.png", "box": [8, 5, 20, 16]}\n')
    assert [len(record.differences) for record in imported(own / "t.jsonl", box_format="xyxy_px")] == [0, 1]


def test_a_name_beside_an_image_is_a_class_and_cells_after_the_last_may_be_empty(own: Path) -> None:
    (own / "t.csv").write_text("image,name,x1,y1,x2,y2\n0.png,cup,8,5,20,16,,\n1.png,cup,8,5,20,16\n")
    assert [record.differences[0].box for record in imported(own / "t.csv")] == [BOX] * 2


def test_a_box_whose_label_is_written_in_two_ways_is_one(own: Path) -> None:
    rows = [f"0.png,8,5,20,16,{label}" for label in ("added", "Added", "removed")]
    (own / "t.csv").write_text("\n".join(["file,x1,y1,x2,y2,box_label", *rows]))
    (record,) = imported(own / "t.csv")
    assert [item.kind for item in record.differences] == ["add", "remove"]
