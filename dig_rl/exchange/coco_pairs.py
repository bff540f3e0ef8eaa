"""One's own pairs from a COCO file: each image names a picture that lies in a/ and b/, or both pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_masks

from dig_rl.errors import DataError
from dig_rl.exchange.pair_labels import (
    FILE_COLUMNS,
    SIDES,
    LabelledBox,
    LabelledPair,
    LabelTable,
    column_name,
    first_present,
    four_numbers,
    split_named,
)
from dig_rl.exchange.published import MAX_BOXES, EntryError, short


def read_coco_pairs(path: Path, contents: Mapping[str, Any]) -> LabelTable:
    """Pairs of a COCO file; an image without annotations is a pair without a change.

    An image whose `file_name` begins with a side's folder, as `a/` or `Before/`, or which has `pair_id` and `side` as
    in our own export, is one picture of a pair: its boxes belong to that side. `difference_id` joins the boxes of one
    change in both.

    Raises:
        DataError: it is not COCO's layout.
    """
    images, annotations = contents["images"], contents["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(item, dict) for item in [*images, *annotations]):
        raise DataError(f"{path}: expected lists of objects as images and annotations")
    categories = contents.get("categories")
    labels = {
        _id(item["id"]): str(item.get("name", ""))
        for item in (categories if isinstance(categories, list) else ())
        if isinstance(item, dict) and "id" in item
    }
    of_image: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, annotation in enumerate(annotations):
        of_image[_id(annotation.get("image_id"))].append((number, annotation))
    pairs: dict[str, list[LabelledPair]] = {}
    known: set[Any] = set()
    for number, image in enumerate(images):
        where = f"{path}, image {number}"
        identity = _id(image.get("id"))
        if identity in known:
            raise DataError(f"{where}: the id {short(identity)} was there before")
        known.add(identity)
        key, pair = _pair_of(path, where, image, of_image.get(identity, []), labels)
        pairs.setdefault(key, []).append(pair)
    strangers = [number for identity, items in of_image.items() if identity not in known for number, _ in items]
    if strangers:
        more = f" (and {len(strangers) - 1} more like it)" if len(strangers) > 1 else ""
        raise DataError(f"{path}, annotation {strangers[0]}: its image_id is none of the images'{more}")
    return LabelTable([_merged(same) for same in pairs.values()], "xywh", "COCO's bbox", is_coco=True)


def _id(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else repr(value)


def _pair_of(
    path: Path, where: str, image: Mapping[str, Any], items: list[tuple[int, dict[str, Any]]], labels: Mapping[Any, str]
) -> tuple[str, LabelledPair]:
    """What images of the same pair have in common, and the pair as this image tells it."""
    values = {column_name(key): value for key, value in image.items()}
    name_a, name_b, name = (first_present(values, FILE_COLUMNS[what]) for what in ("a", "b", "file"))
    size = (image.get("width"), image.get("height"))
    size_px = size if all(type(edge) is int for edge in size) else None
    common: dict[str, Any] = {"sizes_px": (size_px, size_px)}
    side = _side(values, name)
    try:
        named = [name_a, name_b] if name_a and name_b else [name]
        if not all(isinstance(one, str) and one for one in named):
            raise EntryError(where, f"expected a file_name, found {short(image.get('file_name'))}", "bad_names")
        common["split"] = split_named(values.get("split"), where)
        if len(items) > MAX_BOXES:
            raise EntryError(where, f"expected at most {MAX_BOXES} annotations, found {len(items)}", "bad_labels")
        common["boxes"] = tuple(_box(path, number, item, image, labels, side) for number, item in items)
    except EntryError as error:
        common["fault"] = error
    if name_a and name_b:
        return f"{name_a}\0{name_b}", LabelledPair(where, image_a=str(name_a), image_b=str(name_b), **common)
    if side is None:
        return str(name), LabelledPair(where, file=str(name or ""), **common)
    pictures: dict[str, Any] = {f"image_{side}": str(name)}
    return str(values.get("pair_id") or str(name).partition("/")[2]), LabelledPair(where, **pictures, **common)


def _side(values: Mapping[str, Any], name: Any) -> Literal["a", "b"] | None:
    first, _, within = str(name).partition("/")
    said = str(values.get("side") if values.get("pair_id") else within and first).lower()
    return "a" if said in SIDES[0] else "b" if said in SIDES[1] else None


def _box(
    path: Path,
    number: int,
    item: Mapping[str, Any],
    image: Mapping[str, Any],
    labels: Mapping[Any, str],
    side: Literal["a", "b"] | None,
) -> LabelledBox:
    where = f"{path}, annotation {number}"
    values = item.get("bbox")
    if not values:
        values = _extent(item.get("segmentation"), image, where)
    change = item.get("difference_id") if type(item.get("difference_id")) is int else None
    return LabelledBox(four_numbers(values, where), labels.get(_id(item.get("category_id")), ""), side, change)


def _extent(outline: Any, image: Mapping[str, Any], where: str) -> list[float]:
    """Box around polygons or a run-length mask, x, y, width, height."""
    try:
        if isinstance(outline, dict):
            height, width = outline["size"]
            if int(height) < 1 or int(width) < 1:  # pycocotools divides by it, and the process ends
                raise ValueError
            runs = outline
            if isinstance(outline["counts"], list):
                runs = coco_masks.frPyObjects(outline, int(height), int(width))
            return [float(value) for value in coco_masks.toBbox(runs)]
        points = np.concatenate([np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in outline])
        return [*points.min(axis=0).tolist(), *(points.max(axis=0) - points.min(axis=0)).tolist()]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
        found = short(outline)
        raise EntryError(
            where, f"expected a bbox, or a segmentation to take it from, found {found}", "bad_box"
        ) from None


def _merged(pairs: list[LabelledPair]) -> LabelledPair:
    """The two pictures of a pair as one, with the boxes of both sides; a picture named twice is a fault."""
    first = pairs[0]
    if len(pairs) == 1 and (first.file is not None or (first.image_a and first.image_b)):
        return first
    if len(pairs) == 1 and _side({}, name := first.image_a or first.image_b or ""):
        return replace(first, file=name.partition("/")[2], image_a=None, image_b=None)
    sides = {side: [pair for pair in pairs if getattr(pair, f"image_{side}")] for side in ("a", "b")}
    fault = next((pair.fault for pair in pairs if pair.fault), None)
    if len(pairs) != 2 or len(sides["a"]) != 1 or len(sides["b"]) != 1:
        found = f"expected one image of each side, or one of both, found {len(pairs)} images for {first.names[0]!r}"
        fault = fault or EntryError(first.where, found, "duplicate" if len(pairs) > 1 else "missing_image")
        return LabelledPair(first.where, first.file, first.image_a, first.image_b, fault=fault)
    (side_a,), (side_b,) = sides["a"], sides["b"]
    return LabelledPair(
        first.where,
        image_a=side_a.image_a,
        image_b=side_b.image_b,
        boxes=side_a.boxes + side_b.boxes,
        split=first.split,
        sizes_px=(side_a.sizes_px[0], side_b.sizes_px[1]),
        fault=fault,
    )
