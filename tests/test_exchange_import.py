"""Published layouts become data folders of ours, with everything that they tell and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dig_rl.data import PairRecord, load_examples, read_records
from dig_rl.exchange.coco import export_coco
from dig_rl.exchange.importing import LAYOUTS, import_dataset
from dig_rl.inspection.check import check_folder
from tests.published_layouts import (
    SIZE,
    clevr_change,
    coco_inpainted,
    kubric_change,
    mig_bench,
    picture,
    virat_std,
)

MAKERS: dict[str, Callable[[Path], Path]] = {
    "coco-inpainted": coco_inpainted,
    "kubric-change": kubric_change,
    "virat-std": virat_std,
    "clevr-change": clevr_change,
    "mig-bench": mig_bench,
}


def imported(name: str, root: Path, out: Path, **options: Any) -> dict[str, PairRecord]:
    import_dataset(LAYOUTS[name], root, out, **options)
    return {record.pair_id: record for _line, record in read_records(out)}


def boxes(record: PairRecord) -> list[tuple[Any, ...]]:
    return [(item.kind, item.box_a, item.box_b, item.box) for item in record.differences]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_coco_inpainted(tmp_path: Path) -> None:
    pairs = imported("coco-inpainted", coco_inpainted(tmp_path / "in"), tmp_path / "out")
    first, second, third = (1, 2, 9, 12), (20.5, 4, 31.25, 16), (40, 10, 60, 30)
    removed = {box: ("remove", box, None, box) for box in (first, second, third)}
    assert {name: (pair.split, boxes(pair)) for name, pair in pairs.items()} == {
        "coco-inpainted-train-9-1": ("train", [removed[third]]),  # 001
        "coco-inpainted-train-9-6": ("train", [removed[first], removed[second]]),  # 110
        "coco-inpainted-train-10-all": ("validation", [removed[first], removed[second], removed[third]]),
        "coco-inpainted-test-small-9-2": ("test", [removed[second]]),  # 010
    }


def test_coco_inpainted_by_subset_gives_the_same_pairs(tmp_path: Path) -> None:
    root = coco_inpainted(tmp_path / "in")
    assert list(imported("coco-inpainted", root / "test" / "small", tmp_path / "out")) == [
        "coco-inpainted-test-small-9-2"
    ]


def test_an_inpainted_picture_of_another_size_is_resized_as_its_own_reader_does(tmp_path: Path) -> None:
    root = coco_inpainted(tmp_path / "in") / "test" / "small"
    picture(root / "inpainted" / "9_mask2.png", size=(64, 40))
    (pair,) = imported("coco-inpainted", root, tmp_path / "out").values()
    assert (pair.width, pair.height) == SIZE
    assert len(load_examples(tmp_path / "out", "test")) == 1


def test_a_picture_with_more_text_than_pillow_reads(tmp_path: Path) -> None:
    """COCO-Inpainted's own reader raises Pillow's limit for this."""
    root = coco_inpainted(tmp_path / "in") / "test" / "small"
    text = PngImagePlugin.PngInfo()
    text.add_text("annotations", "x" * 2**21, zip=True)
    path = root / "images_and_masks" / "9.png"
    pixels = picture(path, seed=9, pnginfo=text)
    with pytest.raises(ValueError, match="too large"):
        Image.open(path)
    imported("coco-inpainted", root, tmp_path / "out")
    with Image.open(tmp_path / "out/images/coco-inpainted-test-small-9-2_a.png") as stored:
        assert np.array_equal(np.asarray(stored), pixels)
        assert stored.info == {}


def test_kubric_change(tmp_path: Path) -> None:
    pairs = imported("kubric-change", kubric_change(tmp_path / "in"), tmp_path / "out")
    first, moved, alone = (2, 4, 8, 10), (3, 5, 9, 11), (60, 20, 64, 32)
    assert {name: boxes(pair) for name, pair in pairs.items()} == {
        "kubric-change-12": [("unknown", first, moved, (2, 4, 9, 11)), ("unknown", None, alone, alone)],
        "kubric-change-3": [("unknown", first, None, first)],
    }
    assert {pair.split for pair in pairs.values()} == {"test"}


def test_virat_std(tmp_path: Path) -> None:
    pairs = imported("virat-std", virat_std(tmp_path / "in"), tmp_path / "out")
    assert {name: boxes(pair) for name, pair in pairs.items()} == {
        "virat-std-10": [("unknown", None, None, (1, 2, 9, 12)), ("unknown", None, None, (20, 4, 30, 16))],
        "virat-std-11": [("unknown", None, None, (0, 0, 64, 32))],
    }


def test_clevr_change(tmp_path: Path) -> None:
    pairs = imported("clevr-change", clevr_change(tmp_path / "in"), tmp_path / "out")
    before, after, there = (1, 2, 9, 12), (2, 2, 10, 12), (5, 6, 12, 14)
    assert {name: (pair.split, boxes(pair)) for name, pair in pairs.items()} == {
        "clevr-change-000000": ("train", [("color", before, after, (1, 2, 10, 12))]),
        "clevr-change-000001": ("validation", [("add", None, there, there)]),
        "clevr-change-000002": ("test", [("remove", there, None, there)]),
        # a moved object is two boxes
        "clevr-change-000003": (
            "train",
            [("move", before, None, before), ("move", None, (40, 12, 48, 22), (40, 12, 48, 22))],
        ),
        "clevr-change-000004": ("test", [("material", (30, 3, 40, 13), (30, 3, 40, 13), (30, 3, 40, 13))]),
    }


def test_mig_bench(tmp_path: Path) -> None:
    pairs = imported("mig-bench", mig_bench(tmp_path / "in"), tmp_path / "out")
    assert list(pairs) == ["mig-bench-diff-7996_1_source", "mig-bench-view_diff-DSC_1975"]
    (static,), (view,) = map(boxes, pairs.values())
    assert static[:3] == ("unknown", None, None) and static[3] == pytest.approx((16, 16, 32, 31.936))
    assert view == ("unknown", None, (0, 0, 8, 8), (0, 0, 8, 8))


def test_a_view_difference_is_exported_for_the_second_picture_alone(tmp_path: Path) -> None:
    imported("mig-bench", mig_bench(tmp_path / "in"), tmp_path / "data")
    export_coco(tmp_path / "data", tmp_path / "coco")
    coco = json.loads((tmp_path / "coco/annotations/instances_test.json").read_text())
    sides = {image["id"]: (image["pair_id"].split("-")[2], image["side"]) for image in coco["images"]}
    shown = [sides[annotation["image_id"]] for annotation in coco["annotations"]]
    assert shown == [("diff", "a"), ("diff", "b"), ("view_diff", "b")]
    for box_target in ("union", "a", "b"):
        view = load_examples(tmp_path / "data", "test", box_target=box_target)[1]
        assert view.target_boxes_px == ((0, 0, 8, 8),)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_import_loads_and_is_the_same_twice(tmp_path: Path, name: str) -> None:
    root = MAKERS[name](tmp_path / "in")
    pairs = imported(name, root, tmp_path / "one")
    imported(name, root, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for split in {pair.split for pair in pairs.values()}:
        for example in load_examples(tmp_path / "one", split):
            assert example.num_differences == len(pairs[example.pair_id].differences)
    for pair in pairs.values():
        assert pair.seed is None
        for item in pair.differences:
            unknown = item.object_id, item.visible_px_a, item.visible_px_b, item.visible_fraction_a
            assert unknown == (None, None, None, None)
    check = check_folder(tmp_path / "one")
    assert len(check.sound_pairs) == len(pairs)
    # Some of the layouts' pictures are one noise in several places, which the check finds.
    assert all("the same picture as in pair" in error.problem for error in check.errors)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_manifest_tells_the_source_and_hashes_every_file(tmp_path: Path, name: str) -> None:
    import hashlib

    imported(name, MAKERS[name](tmp_path / "in"), tmp_path / "out")
    files = contents(tmp_path / "out")
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["sha256"] == {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    assert manifest["source"]["page"].startswith("https://") and manifest["source"]["licence"]
    assert manifest["num_pairs"] == sum(manifest["pairs_by_split"].values()) == (len(files) - 1) / 2


def test_pixels_are_kept(tmp_path: Path) -> None:
    root = virat_std(tmp_path / "in", {"7": [[1, 2, 9, 12]]})
    pixels = picture(root / "7_2.png", seed=5)
    imported("virat-std", root, tmp_path / "out")
    with Image.open(tmp_path / "out/images/virat-std-7_b.png") as stored:
        assert np.array_equal(np.asarray(stored), pixels)


def test_all_pairs_into_one_split(tmp_path: Path) -> None:
    pairs = imported("clevr-change", clevr_change(tmp_path / "in"), tmp_path / "out", split="validation")
    assert {pair.split for pair in pairs.values()} == {"validation"}
