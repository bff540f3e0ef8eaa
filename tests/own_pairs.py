"""Pairs as a user may have them, with their truth: pictures in a/ and b/, and a table in any of many ways."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dig_rl.boxes import BoxFormat

SIZES = ((96, 64), (80, 60))
"""(width, height) of pairs with even and odd numbers."""
NAMES = ("Küche {}.JPG", "street_{}.jpg", "Desk {}.jpeg")
Box = tuple[int, int, int, int]


class Pair(NamedTuple):
    """A pair and what is true of it."""

    name: str
    size: tuple[int, int]
    boxes: tuple[Box, ...]
    """xyxy in pixels, no two of them touching."""


TRUTH: tuple[Pair, ...] = tuple(
    Pair(
        NAMES[index % 3].format(f"{index:02d}"),
        SIZES[index % 2],
        ((8 + index % 4, 5, 30, 25 + index % 5), (44, 30 + index % 3, 70, 55), (40, 2, 75, 20))[: 1 + index % 3],
    )
    for index in range(10)
)
"""1, 2, 3, 1, 2, 3, ... boxes: 19 in all, some of which fit their picture in other formats, too."""


def write_pictures(folder: Path, truth: Sequence[Pair] = TRUTH, **options: Any) -> Path:
    """Pictures in `a/` and `b/`, in which all pixels of the boxes are changed and no others."""
    for index, pair in enumerate(truth):
        width, height = pair.size
        shade = np.linspace(60, 120, width, dtype=np.uint8)[None, :, None]
        before = np.broadcast_to(shade + np.uint8(index % 60), (height, width, 3)).copy()
        after = before.copy()
        for x_min, y_min, x_max, y_max in pair.boxes:
            after[y_min:y_max, x_min:x_max] = (220, (30 + 10 * index) % 200, 240)
        for side, pixels in (("a", before), ("b", after)):
            path = folder / side / pair.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, **({"quality": 95} | options))
    return folder


def written(box: Box, size: tuple[int, int], box_format: BoxFormat) -> list[float]:
    """A true box in another format, by hand rather than by the code under test."""
    x_min, y_min, x_max, y_max = box
    form, _, frame = box_format.partition("_")
    values = [x_min, y_min, x_max, y_max] if form == "xyxy" else [x_min, y_min, x_max - x_min, y_max - y_min]
    scale = {"px": (1, 1), "unit": size, "norm1000": (size[0] / 1000, size[1] / 1000)}[frame]
    return [value if frame == "px" else value / scale[place % 2] for place, value in enumerate(values)]


COLUMNS = {"xyxy": ("x1", "y1", "x2", "y2"), "xywh": ("x", "y", "w", "h")}


def write_csv(
    folder: Path,
    box_format: BoxFormat = "xyxy_px",
    *,
    name: str = "boxes.csv",
    delimiter: str = ",",
    encoding: str = "utf-8-sig",
    number: Callable[[float], str] = repr,
    rename: Callable[[str], str] = str,
    header: Sequence[str] = (),
    truth: Sequence[Pair] = TRUTH,
) -> Path:
    """As Excel writes it: a byte order mark, carriage returns."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(header or ["file", *COLUMNS[box_format[:4]], "label"])
    for pair in truth:
        for box in pair.boxes:
            writer.writerow([rename(pair.name), *map(number, written(box, pair.size, box_format)), "added"])
    path = folder / name
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def write_jsonl(
    folder: Path, box_format: BoxFormat = "xyxy_px", *, absolute: bool = False, truth: Sequence[Pair] = TRUTH
) -> Path:
    """One pair a line; boxes are lists, which do not say how they are written."""
    lines = []
    for pair in truth:
        named = {side: str(folder / side / pair.name) if absolute else f"{side}/{pair.name}" for side in "ab"}
        boxes = [written(box, pair.size, box_format) for box in pair.boxes]
        lines.append(json.dumps({"before": named["a"], "After": named["b"], "boxes": boxes, "label": "Added"}))
    path = folder / "boxes.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def write_coco(
    folder: Path, *, category: str = "added", segmentation: Callable[[Pair, Box], Any] | None = None
) -> Path:
    """COCO's layout; with `segmentation`, without bbox."""
    images, annotations = [], []
    for index, pair in enumerate(TRUTH):
        images.append({"id": index + 1, "file_name": pair.name, "width": pair.size[0], "height": pair.size[1]})
        for box in pair.boxes:
            shape = {"segmentation": segmentation(pair, box)} if segmentation else {}
            shape = shape or {"bbox": written(box, pair.size, "xywh_px")}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 7, "iscrowd": 0, **shape}
            )
    path = folder / "coco.json"
    categories = [{"id": 7, "name": category}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_masks(folder: Path, *, corner: bool = False) -> Path:
    """A PNG for each pair; with `corner`, the first box is two halves that touch at one corner alone."""
    (folder / "masks").mkdir()
    for pair in TRUTH:
        mask = np.zeros(pair.size[::-1], dtype=np.uint8)
        for x_min, y_min, x_max, y_max in pair.boxes:
            mask[y_min:y_max, x_min:x_max] = 255
        if corner:
            x_min, y_min, x_max, y_max = pair.boxes[0]
            mask[y_min:y_max, x_min:x_max] = 0
            mask[y_min : y_min + 3, x_min : x_min + 4] = 9
            mask[y_min + 3 : y_max, x_min + 4 : x_max] = 7
        Image.fromarray(mask).save(folder / "masks" / Path(pair.name).with_suffix(".png"))
    return folder / "masks"
