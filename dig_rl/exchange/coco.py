"""A data folder as COCO JSON, for pycocotools and the tools that read its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from dig_rl.data import Box, DifferenceRecord, Kind, PairRecord, read_records
from dig_rl.errors import DataError
from dig_rl.exchange.new_folder import new_folder
from dig_rl.image_files import DAMAGE, has_tag, untagged_png

CATEGORIES = {kind: number for number, kind in enumerate(get_args(Kind), start=1)}
"""Category id of each kind of change."""


def export_coco(
    data_dir: Path, out: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, int]:
    """Write `annotations/instances_<split>.json` into a new folder.

    Every picture is an image entry of its own, whose `file_name` is relative to the data folder; pictures are not
    copied. Only where one has a tag that other tools would turn it by, all of them come along in `images/`, without
    tags, and names are relative to the new folder. A change is annotated in each picture that shows it, with its box
    there; where a data set does not say which picture its box belongs to, in both. `difference_id` joins the
    annotations of one change, `pair_id` and `side` (`a` or `b`) say what a picture is.

    Returns:
        Pairs by split.

    Raises:
        DataError: the data folder is wrong, or `out` exists or cannot be written.
    """
    records = [record for _line, record in read_records(data_dir, allow_no_change=True)]
    by_split: dict[str, list[PairRecord]] = {}
    for record in records:
        by_split.setdefault(record.split, []).append(record)
    with new_folder(out) as folder:
        (folder / "annotations").mkdir()
        names = _copy_pictures(data_dir, records, folder)
        done = 0
        for split, chosen in by_split.items():
            path = folder / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(_instances(chosen, names)), encoding="utf-8")
            done += len(chosen)
            on_progress(done, len(records))
    return {split: len(chosen) for split, chosen in by_split.items()}


def _copy_pictures(data_dir: Path, records: list[PairRecord], folder: Path) -> dict[str, str]:
    """Copy all pictures if any has a turning tag, those as their stored pixels; gives the new names by the old ones."""
    named = {name: record for record in records for name in (record.image_a_file_name, record.image_b_file_name)}
    tagged = {name for name, record in named.items() if _has_tag(data_dir / name, record)}
    copies: dict[str, str] = {}
    for number, name in enumerate(named if tagged else ()):
        source = data_dir / name
        contents, suffix = (untagged_png(source), ".png") if name in tagged else (source.read_bytes(), source.suffix)
        copies[name] = f"images/{number:06d}{suffix}"
        (folder / "images").mkdir(exist_ok=True)
        (folder / copies[name]).write_bytes(contents)
    return copies


def _has_tag(path: Path, record: PairRecord) -> bool:
    try:
        return has_tag(path)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"pair {record.pair_id}: image {path} cannot be read ({error})") from None


def _instances(records: list[PairRecord], copies: dict[str, str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for pair, record in enumerate(records):
        for side, name in (("a", record.image_a_file_name), ("b", record.image_b_file_name)):
            image_id = 2 * pair + (1 if side == "a" else 2)  # COCO counts from 1
            size = {"width": record.width, "height": record.height, "pair_id": record.pair_id, "side": side}
            images.append({"id": image_id, "file_name": copies.get(name, name), **size})
            for index, difference, (x_min, y_min, x_max, y_max) in _boxes(record, side):
                width, height = x_max - x_min, y_max - y_min
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORIES[difference.kind],
                        "bbox": [x_min, y_min, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "difference_id": index,
                    }
                )
    categories = [{"id": number, "name": kind, "supercategory": "change"} for kind, number in CATEGORIES.items()]
    where = "this folder" if copies else "the data folder"
    info = {"description": f"Image pairs with boxed changes; file names are relative to {where}"}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _boxes(record: PairRecord, side: str) -> Iterator[tuple[int, DifferenceRecord, Box]]:
    for index, difference in enumerate(record.differences):
        either_known = difference.box_a is not None or difference.box_b is not None
        box = (difference.box_a if side == "a" else difference.box_b) if either_known else difference.box
        if box is not None:
            yield index, difference, box
