"""One's own pairs become a data folder, however their boxes and names are written."""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from dig_rl.data import PairRecord, read_records
from dig_rl.errors import DataError
from dig_rl.exchange.coco import export_coco
from dig_rl.exchange.own_pairs import import_own_pairs, read_shares, split_by_name
from dig_rl.inspection.box_formats import FORMATS
from dig_rl.inspection.check import check_folder
from tests.own_pairs import TRUTH, Pair, write_coco, write_csv, write_jsonl, write_masks, write_pictures, written


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "my own")


def imported(source: Path, out: Path, **options: Any) -> list[PairRecord]:
    import_own_pairs(source, out, **options)
    return [record for _line, record in read_records(out, allow_no_change=True)]


def boxes_of(records: list[PairRecord]) -> dict[str, list[tuple[float, ...]]]:
    return {record.pair_id: [item.box for item in record.differences] for record in records}


def ids_and_boxes() -> dict[str, list[tuple[float, ...]]]:
    plain = {pair.name: pair.name.partition(".")[0].replace("ü", "u").replace(" ", "_") for pair in TRUTH}
    return {plain[pair.name]: [tuple(map(float, box)) for box in pair.boxes] for pair in TRUTH}


def made(out: Path) -> dict[str, bytes]:
    """Everything but the manifest, which tells where pairs came from."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_table_as_excel_writes_it(own: Path, tmp_path: Path) -> None:
    write_csv(own)
    (own / "labels").mkdir()  # of another tool
    (own / "labels/street_01.txt").write_text("0 0.5 0.5 0.1 0.1")
    summary, notes = import_own_pairs(own, tmp_path / "out")
    assert (summary.num_pairs, summary.boxes_by_kind, summary.skipped.total()) == (10, {"add": 19}, 0)
    records = [record for _line, record in read_records(tmp_path / "out")]
    assert boxes_of(records) == ids_and_boxes()
    assert all(item.box_a is None and item.box_b == item.box for record in records for item in record.differences)
    assert notes[0] == "boxes: xyxy_px (columns x1, y1, x2, y2; the unit is not said, so pixels), half-open"
    check = check_folder(tmp_path / "out")
    assert check.errors == () and len(check.sound_pairs) == 10
    assert not [item for item in check.warnings if "look like" in item.problem]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["source"]["from"] == "boxes.csv" and len(manifest["source"]["sha256"]) == 64
    assert manifest["pictures"]["images/Kuche_00_b.png"]["from"] == "b/Küche 00.JPG"


def test_every_way_to_write_boxes_gives_the_same_folder(own: Path, tmp_path: Path) -> None:
    few = TRUTH[:3]
    first = made_by(own, tmp_path / "truth", write_csv(own, truth=few))
    for box_format in FORMATS:
        for source in (
            write_csv(own, box_format, truth=few),
            write_csv(own, box_format, name="B.TSV", delimiter="\t", truth=few),
            write_jsonl(own, box_format, truth=few),
        ):
            out = tmp_path / f"{box_format}-{source.suffix}"
            assert made_by(own, out, source, box_format=box_format) == first, source


def made_by(own: Path, out: Path, source: Path, **options: Any) -> dict[str, bytes]:
    import_own_pairs(source, out, **options)
    source.unlink()
    return made(out)


def test_the_table_of_a_european_spreadsheet(own: Path, tmp_path: Path) -> None:
    """Semicolons, decimal commas, other headers, no byte order mark, names with two signs a letter."""
    write_csv(
        own,
        delimiter=";",
        encoding="utf-8",
        number=lambda value: f"{value:.1f}".replace(".", ","),
        rename=lambda name: unicodedata.normalize("NFD", name),
        header=["File Name", "X-Min", "bbox_y_min", "x max", "Y_MAX", "Label"],
    )
    assert boxes_of(imported(own, tmp_path / "out")) == ids_and_boxes()
    (own / "boxes.csv").write_bytes(b"sep=;\r\n" + (own / "boxes.csv").read_bytes())
    assert boxes_of(imported(own, tmp_path / "again")) == ids_and_boxes()


@pytest.mark.parametrize("absolute", [False, True])
def test_json_lines_that_name_both_pictures(own: Path, tmp_path: Path, absolute: bool) -> None:
    path = write_jsonl(own, "xywh_px", absolute=absolute)
    if absolute:  # the pictures may lie anywhere
        path = path.rename(tmp_path / "boxes.jsonl")
    records = imported(path, tmp_path / "out", box_format="xywh_px")
    assert boxes_of(records) == ids_and_boxes()
    assert {item.kind for record in records for item in record.differences} == {"add"}


def test_json_lines_whose_boxes_have_names(own: Path, tmp_path: Path) -> None:
    lines = [
        {"file": TRUTH[0].name, "boxes": [{"x": 8, "y": 5, "width": 22, "height": 20, "label": "removed"}]},
        {"file": TRUTH[1].name, "boxes": []},
        {"file": TRUTH[3].name, "x": 11, "y": 5, "w": 19, "h": 23, "note": "not ours"},
    ]
    (own / "boxes.jsonl").write_bytes(codecs.BOM_UTF8 + "\r\n".join(map(json.dumps, lines)).encode())
    removed, unchanged, plain = imported(own, tmp_path / "out")
    (change,) = removed.differences
    assert (change.kind, change.box_a, change.box_b) == ("remove", (8, 5, 30, 25), None)
    assert unchanged.differences == () and plain.differences[0].kind == "unknown"
    assert plain.differences[0].box == (11, 5, 30, 28) and plain.differences[0].box_a is None


def test_coco_with_boxes_run_lengths_or_polygons(own: Path, tmp_path: Path) -> None:
    def run_lengths(pair: Pair, box: tuple[int, ...]) -> dict[str, Any]:
        mask = np.zeros(pair.size[::-1], dtype=np.uint8, order="F")
        mask[box[1] : box[3], box[0] : box[2]] = 1
        coded = coco_masks.encode(mask)
        return {"size": coded["size"], "counts": coded["counts"].decode()}

    def polygon(_pair: Pair, box: tuple[int, ...]) -> list[list[int]]:
        return [[box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]]

    for number, segmentation in enumerate((None, run_lengths, polygon)):
        source = write_coco(own, segmentation=segmentation)
        assert boxes_of(imported(source, tmp_path / f"out{number}")) == ids_and_boxes()
    summary, notes = import_own_pairs(write_coco(own, category="thing"), tmp_path / "unknown")
    assert summary.boxes_by_kind == {"unknown": 19}
    assert "labels that say no kind of change are unknown: 'thing' 19" in notes
    contents = json.loads(source.read_text())
    for annotation in contents["annotations"]:  # not COCO's rule, as some tools write it
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    source.write_text(json.dumps(contents))
    with pytest.raises(DataError, match=r"COCO's bbox\) would be read as xywh_px.*suggested: BOXES=xyxy_px$"):
        import_own_pairs(source, tmp_path / "refused")


def test_our_own_coco_export_comes_back(own: Path, tmp_path: Path) -> None:
    """It names each picture apart, with its side, and joins the boxes of one change."""
    imported(write_csv(own), tmp_path / "data", split="train")
    path = tmp_path / "data/metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["differences"][0] |= {"kind": "color", "box_a": [8.0, 5.0, 30.0, 26.0], "box": [8.0, 5.0, 30.0, 26.0]}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "data/manifest.json").unlink()
    export_coco(tmp_path / "data", tmp_path / "coco")
    table = (tmp_path / "coco/annotations/instances_train.json").rename(tmp_path / "data/coco.json")
    back = imported(table, tmp_path / "back", split="train")
    expected = [record.differences for _line, record in read_records(tmp_path / "data")]
    assert [record.differences for record in back] == expected


def test_boxes_of_one_side_of_a_coco_file(own: Path, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": f"b/{TRUTH[0].name}"}, {"id": 2, "file_name": f"b/{TRUTH[1].name}"}]
    images.append({"id": 3, "file_name": f"a/{TRUTH[1].name}"})
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [n, 2, 10, 10]} for n in (1, 2, 3)]
    (own / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    one, two = imported(own, tmp_path / "out")
    assert [(item.box_a, item.box_b) for item in one.differences] == [(None, (1, 2, 11, 12))]
    assert [(item.box_a, item.box_b) for item in two.differences] == [
        ((3, 2, 13, 12), None),
        (None, (2, 2, 12, 12)),
    ]


def test_masks_whose_touching_pixels_are_one_change(own: Path, tmp_path: Path) -> None:
    write_masks(own, corner=True)
    records = imported(own, tmp_path / "out")
    sorted_truth = {name: sorted(boxes) for name, boxes in ids_and_boxes().items()}
    assert {name: sorted(boxes) for name, boxes in boxes_of(records).items()} == sorted_truth
    assert check_folder(tmp_path / "out").errors == ()
    again = imported(own / "masks", tmp_path / "again")
    assert boxes_of(again) == boxes_of(records)
    (own / "t.csv").write_text("file,mask\n" + "".join(f"{pair.name},{pair.name}\n" for pair in TRUTH[:2]))
    named = boxes_of(imported(own / "t.csv", tmp_path / "named"))
    assert len(named) == 2 and named.items() <= boxes_of(records).items()


def test_folders_that_are_links_or_named_by_absolute_paths(own: Path, tmp_path: Path) -> None:
    write_csv(own)
    plain = imported(own, tmp_path / "plain")
    for side in "ab":
        (own / side).rename(tmp_path / f"disk {side}")
        (own / side.upper()).symlink_to(tmp_path / f"disk {side}")
    (tmp_path / "link").symlink_to(own)
    assert imported(tmp_path / "link", tmp_path / "out") == plain
    source = json.loads((tmp_path / "out/manifest.json").read_text())["source"]
    assert source["folders_outside"] == {"A": str(tmp_path / "disk a"), "B": str(tmp_path / "disk b")}
    assert made(tmp_path / "out") == made(tmp_path / "plain")


def test_names_that_differ_in_how_they_are_written_find_each_other(own: Path, tmp_path: Path) -> None:
    """b/ was copied over from a system that decomposes letters and writes extensions small."""
    for pair in TRUTH:
        path = own / "b" / pair.name
        path.rename(path.with_name(unicodedata.normalize("NFD", path.stem) + path.suffix.lower()))
    (own / "a/._street_01.jpg").write_bytes(b"a companion that macOS leaves")
    (own / "a/Thumbs.db").write_bytes(b"")
    write_masks(own)
    assert len(imported(own, tmp_path / "out")) == 10


def test_names_that_become_alike_keep_apart(tmp_path: Path) -> None:
    names = ("größe 1.png", "große 1.png", "日本 1.png", "中国 1.png", "x.JPG", "x.jpg", "sub/x.png")
    truth = [Pair(name, (40, 40), ((2, 2, 20, 21),)) for name in names]
    own = write_pictures(tmp_path / "own", truth)
    write_csv(own, truth=truth)
    records = imported(own, tmp_path / "out")
    ids = [record.pair_id for record in records]
    assert len(set(ids)) == len({name.lower() for name in ids}) == 7 and all(name.isascii() for name in ids)
    assert ids[-1] == "sub-x" and ids[4].startswith("x-")


def test_splits_stay_when_pairs_are_added(own: Path, tmp_path: Path) -> None:
    first = imported(write_csv(own, truth=TRUTH[::2]), tmp_path / "first")
    then = {record.pair_id: record.split for record in imported(write_csv(own), tmp_path / "then")}
    assert all(then[record.pair_id] == record.split for record in first) and len(first) == 5


def test_splits_have_their_shares() -> None:
    """Of 2,000 names, within four standard deviations."""
    splits = Counter(split_by_name(f"street_{index}", (0.7, 0.2, 0.1)) for index in range(2000))
    for split, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
        assert abs(splits[split] - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5
    assert {split_by_name(str(index), (0.0, 0.0, 1.0)) for index in range(50)} == {"test"}


def test_pairs_of_one_first_picture_share_a_split_and_a_table_may_say_it(own: Path, tmp_path: Path) -> None:
    rows = [f"a/{TRUTH[0].name},b/{pair.name},1,2,30,40," for pair in TRUTH[::2]]
    rows.append(f"a/{TRUTH[1].name},b/{TRUTH[1].name},1,2,30,40,Val")
    (own / "t.csv").write_text("image_a,image_b,left,top,right,bottom,split\n" + "\n".join(rows))
    *same, said = imported(own, tmp_path / "out")
    assert len({record.split for record in same}) == 1 and said.split == "validation"


def test_a_picture_that_is_stored_turned(tmp_path: Path) -> None:
    """Tag 6: the stored picture is turned a quarter clockwise to be seen; boxes are as it is seen, unless declared."""
    for side, x_max in (("a", 0), ("b", 20)):
        (tmp_path / f"own/{side}").mkdir(parents=True)
        stored = np.full((40, 60, 3), 90, np.uint8)
        stored[4:14, 10:x_max] = 250  # as seen, 40 wide: x from 40-14 to 40-4, y from 10 to 20
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(stored).save(tmp_path / f"own/{side}/p.png", exif=exif)
    seen = [26, 10, 36, 20]
    (tmp_path / "own/t.csv").write_text("file,x1,y1,x2,y2\np.png," + ",".join(map(str, seen)))
    (record,) = imported(tmp_path / "own/t.csv", tmp_path / "out")
    assert (record.width, record.height, record.differences[0].box) == (40, 60, tuple(seen))
    assert check_folder(tmp_path / "out").sound_pairs[0].figures.explained == 1.0  # type: ignore[union-attr]
    image = {"id": 1, "file_name": "p.png", "width": 60, "height": 40}
    annotation = {"id": 1, "image_id": 1, "bbox": [10, 4, 10, 10]}
    (tmp_path / "own/coco.json").write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    (turned,) = imported(tmp_path / "own/coco.json", tmp_path / "coco")
    assert turned.differences[0].box == tuple(seen)


@pytest.mark.parametrize("box_format", FORMATS)
def test_a_table_that_does_not_say_how_boxes_are_written_gets_a_suggestion(
    own: Path, tmp_path: Path, box_format: Any
) -> None:
    write_jsonl(own, box_format)
    with pytest.raises(DataError, match=rf"say it with BOXES=.*% as {box_format}.*suggested: BOXES={box_format}$"):
        import_own_pairs(own, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "meant"), [("xyxy", "xyxy_unit"), ("xywh", "xywh_norm1000"), ("xyxy", "xywh_px"), ("xywh", "xywh_unit")]
)
def test_columns_that_say_another_form_than_the_pixels_get_a_suggestion(
    tmp_path: Path, columns: str, meant: Any
) -> None:
    truth = [Pair(f"{n}.png", (300, 250) if "1000" in meant else (96, 64), ((8, 6, 40, 44),)) for n in range(4)]
    own = write_pictures(tmp_path / "own", truth, compress_level=1)
    names = {"xyxy": ["x1", "y1", "x2", "y2"], "xywh": ["x", "y", "w", "h"]}[columns]
    write_csv(own, meant, header=["file", *names, "label"], truth=truth)
    with pytest.raises(DataError, match=rf"suggested: BOXES={meant}$"):
        import_own_pairs(own, tmp_path / "out")
    # Said all the same, it is done as said, with a line of doubt.
    wrong = f"{columns}_px"
    _summary, notes = import_own_pairs(own, tmp_path / "out", box_format=wrong)
    assert [note for note in notes if note.startswith(f"suspected: the boxes look like {meant}, read as {wrong}: ")]
    assert any("look like" in item.problem for item in check_folder(tmp_path / "out").warnings)


def test_pairs_without_a_change_and_pictures_that_no_row_names(own: Path, tmp_path: Path) -> None:
    (own / "t.csv").write_text(f"file,x1,y1,x2,y2\n{TRUTH[0].name},,,,\n" + f"{TRUTH[1].name},9,5,30,26\n" * 3)
    summary, notes = import_own_pairs(own, tmp_path / "out")
    assert (summary.num_pairs, summary.num_unchanged) == (2, 1)
    assert "left out: 8 pictures of a/ that t.csv does not name" in notes
    assert "left out: 2 boxes that are there twice" in notes and summary.num_boxes == 1
    assert "kinds: no label is given, so unknown" in notes


@pytest.mark.parametrize("text", ["80,10,10", "0.8,0.2", "0.8,0.1,0.2", "a,b,c", "-0.5,1,0.5", "nan,0,1", ""])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match=r"SPLITS= expects .* as 0.8,0.1,0.1; found"):
        read_shares(text)
    assert read_shares("0.7, 0.2 0.1") == (0.7, 0.2, 0.1)


def test_the_world_of_these_tests() -> None:
    assert written((8, 5, 30, 25), (96, 64), "xywh_norm1000") == pytest.approx([83.33, 78.125, 229.17, 312.5], abs=0.01)
    assert sum(len(pair.boxes) for pair in TRUTH) == 19
