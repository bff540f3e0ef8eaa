"""Tables and folders of one's own that are wrong: one message a kind of fault, and nothing half-done is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.errors import DataError
from dig_rl.exchange.own_pairs import import_own_pairs
from tests.own_pairs import TRUTH, write_coco, write_csv, write_masks, write_pictures

FEW = TRUTH[:4]
NAME = FEW[0].name


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "own", FEW)


def csv_of(*rows: str, header: str = "file,x1,y1,x2,y2") -> Callable[[Path], Any]:
    return lambda own: (own / "t.csv").write_text("\n".join([header, *rows]) + "\n")


def jsonl_of(*items: Any) -> Callable[[Path], Any]:
    return lambda own: (own / "t.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def text_of(name: str, contents: bytes) -> Callable[[Path], Any]:
    return lambda own: (own / name).write_bytes(contents)


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("nothing that says", lambda own: None, "holds a/ and b/, but nothing that says what changed; expected a"),
    (
        "no columns",
        csv_of(header="picture_name,left_edge"),
        "no column names the pictures and no columns hold",
    ),
    ("no box", csv_of(f"{NAME},1", header="file,label"), r"no columns hold a box; found file, label; expected .*x1,y1"),
    (
        "half a pair",
        csv_of(f"{NAME},1,2,3,4", header="image_a,x1,y1,x2,y2"),
        "names the pictures; found image_a",
    ),
    ("a column twice", csv_of(f"{NAME},1,2,3,4,5", header="file,x1,x1,y1,x2,y2"), "x1 is there twice"),
    ("empty", text_of("t.csv", b""), "no column names the pictures .*found nothing"),
    ("no rows", csv_of(), "expected at least one pair, found none"),
    (
        "latin-1",
        text_of("t.csv", "file,x1,y1,x2,y2\nKüche 00.JPG,1,2,3,4\n".encode("latin-1")),
        "in UTF-8 .*save it",
    ),
    ("utf-16", text_of("t.csv", "file,x1,y1,x2,y2\n".encode("utf-16")), r"looks like UTF-16\); save it again as UTF-8"),
    ("no json", text_of("t.jsonl", b'{"file": "x"'), "t.jsonl: line 1 is not valid JSON"),
    ("deep json", text_of("t.json", b"[" * 100_000), "the file is not valid JSON"),
    ("no list", text_of("t.json", b"3"), "COCO's images and annotations, or a list of pairs, found 3"),
    ("no object", jsonl_of([1, 2]), "line 1: expected an object, one pair a line"),
    ("no names", jsonl_of({"picture_name": "x", "boxes": []}), "line 1: no key names the pictures; found picture_name"),
    (
        "two forms",
        jsonl_of({"file": NAME, "boxes": [[1, 2, 3, 4]]}, {"file": FEW[1].name, "x": 1, "y": 2, "w": 3, "h": 4}),
        "some boxes are lists or have keys of another form than others",
    ),
    ("coco without images", text_of("t.json", b'{"images": [], "annotations": []}'), "at least one pair"),
    (
        "coco of a stranger",
        text_of("t.json", b'{"images": [], "annotations": [{"image_id": 7}, {"image_id": 8}]}'),
        r"annotation 0: its image_id is none of the images' \(and 1 more like it\)",
    ),
    ("coco ids twice", text_of("t.json", b'{"images": [{"id": 1}, {"id": 1}], "annotations": []}'), "id 1 was there"),
    ("no b", lambda own: (write_masks(own), (own / "b").rename(own / "c")), r"own lacks a/ or b/; expected"),
    ("two folders", lambda own: (own / "before").mkdir(), "several folders for the same pictures: a, before"),
]


@pytest.mark.parametrize(("spoil", "expected"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_folder_or_table_that_cannot_be_read_is_told(
    own: Path, tmp_path: Path, spoil: Callable[[Path], Any], expected: str
) -> None:
    spoil(own)
    with pytest.raises(DataError, match=expected):
        import_own_pairs(own, tmp_path / "out", skip_bad=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def row(box: str = "9,5,20,20", name: str = NAME) -> str:
    return f"{name},{box}"


GOOD = row(name=FEW[3].name)
LABELLED = "file,x1,y1,x2,y2,label"
UNCHANGED = {"file": FEW[3].name, "boxes": []}
BAD_ROWS: list[tuple[str, Callable[[Path], Any], str, str]] = [
    (
        "text",
        csv_of(GOOD, row("9,5,twenty,20")),
        "line 3: expected a box of .*twenty",
        "bad_box",
    ),
    ("NaN", csv_of(GOOD, row("9,5,nan,20")), "found .*nan", "bad_box"),
    ("infinite", csv_of(GOOD, row("9,5,1e999,20")), "four finite numbers", "bad_box"),
    ("thousands", csv_of(GOOD, row('"1,234",5,20,20')), "found .*1,234", "bad_box"),
    ("one missing", csv_of(GOOD, row("9,5,,20")), "four finite numbers", "bad_box"),
    ("cut off", csv_of(GOOD, f"{NAME},9,5"), "four finite numbers", "bad_box"),
    ("negative", csv_of(GOOD, row("-9,5,20,20")), r"box \[-9.0, 5.0.*expected 0 <= x_min", "bad_box"),
    ("outside", csv_of(GOOD, row("9,5,120,20")), "x_max <= 96", "bad_box"),
    ("no area", csv_of(GOOD, row("9,5,9,20")), "x_min < x_max", "bad_box"),
    ("commas", csv_of(GOOD, row("9,5,5,5,20,5,20,5")), "line 3: expected 5 cells, found 9; quote a cell", "bad_row"),
    ("comma in a label", csv_of(f"{GOOD},,", f"{row()},red, big", header=LABELLED), "6 cells, found 7", "bad_row"),
    (
        "one picture",
        csv_of(f"a/{FEW[3].name},b/{FEW[3].name},9,5,20,20", f"a/{NAME},a/{NAME},9,5,20,20", header="a,b,x1,y1,x2,y2"),
        "line 3: expected two pictures, found .*a/Küche 00.JPG as both",
        "one_picture",
    ),
    ("no name", csv_of(GOOD, row(name="")), "line 3: expected the names of two pictures", "bad_names"),
    ("absent", csv_of(GOOD, row(name="x.jpg")), "image x.jpg does not exist in .*a", "missing_image"),
    (
        "only in a",
        lambda own: (csv_of(GOOD, row())(own), (own / "b" / NAME).unlink()),
        "in .*/b;",
        "missing_image",
    ),
    ("endless name", csv_of(GOOD, row(name="x" * 5000)), "does not exist in", "missing_image"),
    ("climbing", csv_of(GOOD, row(name="../own/a/x.jpg")), r"without `\.\.`", "unsafe_path"),
    (
        "sizes",
        lambda own: (csv_of(GOOD, row())(own), Image.new("RGB", (9, 9)).save(own / "b" / NAME)),
        "differ in size, 96x64 and 9x9",
        "sizes_differ",
    ),
    (
        "split",
        csv_of(f"{GOOD},", f"{row()},dav", header="file,x1,y1,x2,y2,split"),
        "found 'dav'",
        "bad_split",
    ),
    (
        "two splits",
        csv_of(f"{GOOD},", f"{row()},dev", f"{row()},test", header="file,x1,y1,x2,y2,split"),
        "several values as split: test, validation",
        "bad_split",
    ),
    (
        "twice",
        jsonl_of(UNCHANGED, *[{"file": NAME, "boxes": []}] * 2),
        "line 3: the pair Küche 00.JPG was there before, in .*line 2",
        "duplicate",
    ),
    (
        "rows and a list",
        jsonl_of(UNCHANGED, {"file": NAME, "box": [9, 5, 20, 20]}, {"file": NAME, "boxes": []}),
        "line 3: the pair Küche 00.JPG was there before",
        "duplicate",
    ),
    (
        "endless integer",
        jsonl_of(UNCHANGED, {"file": NAME, "boxes": [[1, 2, 3, 10**400]]}),
        "line 2: expected a box of four finite numbers",
        "bad_box",
    ),
    (
        "boxes of text",
        jsonl_of(UNCHANGED, {"file": NAME, "boxes": "9 5"}),
        "expected a list of at most",
        "bad_labels",
    ),
    (
        "true",
        jsonl_of(UNCHANGED, {"file": NAME, "boxes": [[True, 2, 3, 4]]}),
        "finite",
        "bad_box",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "expected", "reason"), [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS]
)
def test_an_unusable_pair_stops_the_import_or_is_counted(
    own: Path, tmp_path: Path, spoil: Callable[[Path], Any], expected: str, reason: str
) -> None:
    spoil(own)
    options: dict[str, Any] = {"box_format": "xyxy_px"}
    with pytest.raises(DataError, match=f"{expected}.*SKIP_BAD=1"):
        import_own_pairs(own, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    summary, _notes = import_own_pairs(own, tmp_path / "out", skip_bad=True, **options)
    assert set(summary.skipped) == {reason} and summary.num_pairs >= 1


@pytest.mark.parametrize("size", [[-9, 10**30], [0, 96], [64, 10**400]])
def test_run_lengths_of_no_possible_size(own: Path, tmp_path: Path, size: list[int]) -> None:
    images = [{"id": index, "file_name": pair.name} for index, pair in enumerate(FEW)]
    shape = {"segmentation": {"size": size, "counts": [5, 3]}}
    contents = {"images": images, "annotations": [{"id": 1, "image_id": 1, **shape}], "categories": [{"id": [1]}]}
    (own / "t.json").write_text(json.dumps(contents))
    with pytest.raises(DataError, match=r"t.json, annotation 0: expected a bbox, or a segmentation"):
        import_own_pairs(own, tmp_path / "out")


def test_columns_of_a_box_in_each_picture_are_not_pictures(own: Path, tmp_path: Path) -> None:
    csv_of(f'{NAME},{NAME},"9,5,20,20","9,5,20,20"', header="image_a,image_b,box_a,bbox_b")(own)
    with pytest.raises(DataError, match="no columns hold a box; found image_a, image_b, box_a, bbox_b"):
        import_own_pairs(own, tmp_path / "out")


def test_many_faults_of_one_kind_are_one_message(tmp_path: Path) -> None:
    own = write_pictures(tmp_path / "own")
    write_csv(own)
    for pair in TRUTH[2:]:
        (own / "b" / pair.name).write_bytes(b"")
    (own / "a" / TRUTH[0].name).unlink()
    with pytest.raises(DataError) as told:
        import_own_pairs(own, tmp_path / "out")
    first, missing, empty, last = str(told.value).splitlines()
    assert first.endswith("9 of 10 entries are unusable:") and "SKIP_BAD=1" in last
    assert "Küche 00.JPG does not exist" in missing and "more like it" not in missing
    assert "cannot open it" in empty and empty.endswith("(and 7 more like it)")
    with pytest.raises(DataError, match=r"cannot open it .*\(and 9 more like it\); SKIP_BAD=1"):
        (own / "b" / TRUTH[1].name).write_bytes(b"")
        write_pictures(own, TRUTH[:1])
        (own / "b" / TRUTH[0].name).write_bytes(b"")
        import_own_pairs(own, tmp_path / "out")


def test_boxes_that_do_not_fit_as_they_are_said_to_be_written_come_with_a_doubt(own: Path, tmp_path: Path) -> None:
    write_csv(own, truth=FEW)
    with pytest.raises(
        DataError, match=r"x_max <= 80(.|\n)*suspected: the boxes look like xyxy_px, read as xywh_px: of"
    ):
        import_own_pairs(own, tmp_path / "out", box_format="xywh_px")


def test_pictures_that_only_decoding_finds_damaged_are_counted(own: Path, tmp_path: Path) -> None:
    write_csv(own, truth=FEW)
    for pair in FEW[1:]:
        path = own / "a" / pair.name
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"street_01.jpg is damaged .*\(and 2 more like it\); SKIP_BAD=1"):
        import_own_pairs(own, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    summary, _notes = import_own_pairs(own, tmp_path / "out", skip_bad=True)
    assert (summary.num_pairs, dict(summary.skipped)) == (1, {"bad_image": 3})
    assert len(list((tmp_path / "out/images").iterdir())) == 2


DOTS = np.zeros((64, 96), dtype=np.uint8)
DOTS[::2, ::2] = 255


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda masks: (masks / "Küche 00.png").unlink(), "mask Küche 00.JPG does not exist in .*masks"),
        (
            lambda masks: Image.new("L", (9, 9)).save(masks / "Küche 00.png"),
            "is 9x9, its picture 96x64",
        ),
        (lambda masks: Image.new("RGBA", (96, 64)).save(masks / "Küche 00.png"), "mask Küche 00.png is transparent"),
        (lambda masks: (masks / "Küche 00.png").rename(masks / "Küche 00.jpg"), "expected a PNG, a lossy file"),
        (
            lambda masks: Image.fromarray(DOTS).save(masks / "Küche 00.png"),
            "1536 separate parts, .* at most 1000",
        ),
    ],
)
def test_a_mask_that_is_none(tmp_path: Path, spoil: Callable[[Path], Any], expected: str) -> None:
    own = write_pictures(tmp_path / "own")
    spoil(write_masks(own))
    with pytest.raises(DataError, match=expected):
        import_own_pairs(own, tmp_path / "out")


def test_a_picture_without_a_partner_is_told_from_both_sides(tmp_path: Path) -> None:
    own = write_pictures(tmp_path / "own")
    write_masks(own)
    (own / "a" / TRUTH[0].name).unlink()
    (own / "b" / TRUTH[1].name).unlink()
    with pytest.raises(DataError, match="2 of 10 entries are unusable") as told:
        import_own_pairs(own, tmp_path / "out")
    _first, only_a, only_b, _last = str(told.value).splitlines()
    assert f"image {TRUTH[1].name} has no picture of that name in {own / 'b'}" in only_a
    assert f"image {TRUTH[0].name} has no picture of that name in {own / 'a'}" in only_b
    assert import_own_pairs(own, tmp_path / "out", skip_bad=True)[0].num_pairs == 8


def test_several_things_that_say_what_changed_are_listed(own: Path, tmp_path: Path) -> None:
    write_csv(own, truth=FEW)
    write_coco(own)
    with pytest.raises(DataError, match=r"boxes.csv, coco.json; name one, as FROM=.*own/boxes.csv"):
        import_own_pairs(own, tmp_path / "out")
    with pytest.raises(DataError, match=r"nowhere does not exist; FROM= names a folder with a/ and b/, or a table"):
        import_own_pairs(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"expected a file named \*.csv, \*.tsv, \*.jsonl, \*.json, or a folder"):
        import_own_pairs(own / "a" / NAME, tmp_path / "out")
