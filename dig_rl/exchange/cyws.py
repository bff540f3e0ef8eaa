"""The three data sets of "The Change You Want to See": COCO-Inpainted, Kubric-Change and VIRAT-STD.

Source: Sachdeva and Zisserman, WACV 2023 (arXiv 2209.14341); layouts of ragavsachdeva/The-Change-You-Want-to-See
(README.md, data/inpainted_coco_dataset.py, data/kubric_change.py, data/std.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from dig_rl.boxes import assign
from dig_rl.data import Split
from dig_rl.errors import DataError
from dig_rl.exchange.pickles import read_npy, read_pickle
from dig_rl.exchange.pictures import read_mask
from dig_rl.exchange.published import (
    MAX_BOXES,
    Entry,
    EntryError,
    Layout,
    SourceDifference,
    SourcePair,
    file_inside,
    numbers,
    require,
    safe_id,
    short,
)

_PAGE = "https://github.com/ragavsachdeva/The-Change-You-Want-to-See"
_INPAINTED = re.compile(r"(\d+)_mask(\d*)\.png")
_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_SUBSETS = ("train", "test/small", "test/medium", "test/large")


def read_coco_inpainted(root: Path) -> list[Entry]:
    """Entries of `coco_inpainted/` or of one of its subsets: each original with each of its inpainted pictures.

    The objects that an inpainted picture lacks are changes of kind `remove`, boxed by the extent of their published
    outline in the original.

    Raises:
        DataError: the folder, or a subset's list of splits, is not as published.
    """
    if (root / "images_and_masks").is_dir():
        return _read_subset(root)
    subsets = [root / name for name in _SUBSETS if (root / name).is_dir()]
    if not subsets:
        raise DataError(f"{root}: expected {COCO_INPAINTED.expected}")
    return [entry for subset in subsets for entry in _read_subset(subset)]


def _read_subset(folder: Path) -> list[Entry]:
    require(folder, ("images_and_masks", "inpainted", "metadata", "data_split.pkl"), COCO_INPAINTED.expected)
    whole = folder.resolve()
    subset = f"test-{whole.name}" if whole.parent.name == "test" else whole.name
    inpainted: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted((folder / "inpainted").iterdir()):
        if found := _INPAINTED.fullmatch(path.name):
            inpainted[int(found[1])].append((path.name, found[2]))
    splits = read_pickle(folder / "data_split.pkl")
    if not isinstance(splits, dict) or not splits.keys() <= _SPLITS.keys():
        raise DataError(f"{folder / 'data_split.pkl'}: expected a dict with keys of {', '.join(_SPLITS)}")
    return [
        partial(_inpainted_pair, folder, subset, _SPLITS[split], index, name, bits)
        for split, indices in splits.items()
        for index in _indices(indices, folder / "data_split.pkl")
        for name, bits in inpainted[index]
    ]


def _indices(values: Any, path: Path) -> list[int]:
    try:
        return [int(value) for value in values]
    except (TypeError, ValueError):
        raise DataError(f"{path}: expected a list of picture numbers, found {short(values)}") from None


def _inpainted_pair(folder: Path, subset: str, split: Split, index: int, name: str, bits: str) -> SourcePair:
    where = f"{folder / 'metadata'}/{index}.npy, inpainted/{name}"
    original = file_inside(folder, f"images_and_masks/{index}.png", where)
    path = folder / "metadata" / f"{index}.npy"
    if not path.is_file():
        raise EntryError(where, "the file of annotations does not exist", "missing_labels")
    annotations = read_npy(path)
    if not isinstance(annotations, list) or not 0 < len(annotations) <= MAX_BOXES:
        raise EntryError(where, f"expected an array of annotations, found {short(annotations)}", "bad_labels")
    # The number in the name says, bit by bit from the first annotation on, what is gone; without a number, all is.
    gone = f"{int(bits):b}".zfill(len(annotations)) if bits else "1" * len(annotations)
    if len(gone) > len(annotations):
        raise EntryError(where, f"mask {bits} names more objects than the {len(annotations)} annotated", "bad_labels")
    removed = [annotation for annotation, bit in zip(annotations, gone, strict=True) if bit == "1"]
    return SourcePair(
        pair_id=safe_id("coco-inpainted", subset, index, bits or "all"),
        image_a=original,
        image_b=folder / "inpainted" / name,
        split=split,
        differences=[SourceDifference("remove", box_a=_extent(annotation, where)) for annotation in removed],
        where=where,
        resize_b=True,
    )


def _extent(annotation: Any, where: str) -> list[float]:
    """Box around the polygons, xyxy, which is what the published reader makes of an annotation."""
    outline = annotation.get("segmentation") if isinstance(annotation, dict) else None
    if not isinstance(outline, (list, np.ndarray)) or not len(outline):
        raise EntryError(where, f"expected polygons as `segmentation`, found {short(outline)}", "bad_labels")
    points = [
        numbers(point, 2, where)
        for polygon in outline
        if isinstance(polygon, (list, np.ndarray))
        for point in zip(polygon[0::2], polygon[1::2], strict=False)
    ]
    if not points:
        raise EntryError(where, f"expected polygons as `segmentation`, found {short(outline)}", "bad_labels")
    return [*np.min(points, axis=0), *np.max(points, axis=0)]


def read_kubric_change(root: Path) -> list[Entry]:
    """Entries of `kubric_change/`: pictures with a mask of the changes each, whose connected parts are the changes.

    `metadata.npy` only lists the files, by the paths of the machine it was made on, and is not needed.

    Raises:
        DataError: there is no pair in the folder.
    """
    names = sorted(path.name for path in root.glob("*_0.png"))
    if not names:
        raise DataError(f"{root}: expected {KUBRIC_CHANGE.expected}")
    return [partial(_kubric_pair, root, name.removesuffix("_0.png")) for name in names]


def _kubric_pair(root: Path, index: str) -> SourcePair:
    where = f"{root}, pair {index}"
    images = [file_inside(root, f"{index}_{side}.png", where) for side in (0, 1)]
    masks = [read_mask(file_inside(root, f"mask_{index}_0000{side}.png", where), where) for side in (0, 1)]
    parts = [_parts(mask) for mask in masks]
    if not any(parts) or max(map(len, parts)) > MAX_BOXES:
        raise EntryError(
            where, f"expected 1 to {MAX_BOXES} parts of the masks, found {list(map(len, parts))}", "bad_labels"
        )
    return SourcePair(
        pair_id=safe_id("kubric-change", index),
        image_a=images[0],
        image_b=images[1],
        split="test",
        differences=_paired(parts[0], parts[1]),
        where=where,
    )


def _parts(mask: np.ndarray) -> list[list[float]]:
    """Boxes, xyxy, half-open, of the connected parts; neighbours share an edge, as in the published reader."""
    labelled, _count = ndimage.label(mask)
    return [
        [float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)]
        for rows, columns in ndimage.find_objects(labelled)
    ]


def _paired(boxes_a: list[list[float]], boxes_b: list[list[float]]) -> list[SourceDifference]:
    """One change for each part of one mask and the part of the other that it overlaps.

    The camera moves a little between the pictures; which part belongs to which is not published.
    """
    scale = max([1.0, *(value for box in boxes_a + boxes_b for value in box)])
    assigned = assign(_unit(boxes_a, scale), _unit(boxes_b, scale), cost_l1=5.0, cost_giou=2.0)
    partner = {a: b for a, b, iou in assigned if iou > 0}
    alone = [b for b in range(len(boxes_b)) if b not in partner.values()]
    return [
        *(
            SourceDifference("unknown", box_a=box, box_b=boxes_b[partner[a]] if a in partner else None)
            for a, box in enumerate(boxes_a)
        ),
        *(SourceDifference("unknown", box_b=boxes_b[b]) for b in alone),
    ]


def _unit(boxes: list[list[float]], scale: float) -> np.ndarray:
    return np.array(boxes, dtype=np.float64).reshape(len(boxes), 4) / scale


def read_virat_std(root: Path) -> list[Entry]:
    """Entries of `std/`: surveillance pictures with boxes that hold for both.

    Raises:
        DataError: `annotations.npy` is missing or not as published.
    """
    require(root, ("annotations.npy",), VIRAT_STD.expected)
    path = root / "annotations.npy"
    annotations = read_npy(path)
    if not isinstance(annotations, dict) or not annotations:
        raise DataError(f"{path}: expected a dict of picture numbers and boxes, found {short(annotations)}")
    return [partial(_virat_pair, root, index, boxes) for index, boxes in annotations.items()]


def _virat_pair(root: Path, index: Any, boxes: Any) -> SourcePair:
    where = f"{root / 'annotations.npy'}, entry {short(index)}"
    if not isinstance(boxes, (list, np.ndarray)) or len(boxes) > MAX_BOXES:
        raise EntryError(where, f"expected a list of at most {MAX_BOXES} boxes, found {short(boxes)}", "bad_labels")
    return SourcePair(
        pair_id=safe_id("virat-std", index),
        image_a=file_inside(root, f"{index}.png", where),
        image_b=file_inside(root, f"{index}_2.png", where),
        split="test",
        differences=[SourceDifference("unknown", box=box) for box in boxes],
        where=where,
    )


COCO_INPAINTED = Layout(
    title="COCO-Inpainted (The Change You Want to See)",
    page=_PAGE,
    licence="none stated in its repository; pictures of COCO",
    expected="coco_inpainted/ with train/ and test/{small,medium,large}/, each with images_and_masks/, inpainted/, "
    "metadata/ and data_split.pkl",
    read=read_coco_inpainted,
)
KUBRIC_CHANGE = Layout(
    title="Kubric-Change (The Change You Want to See)",
    page=_PAGE,
    licence="none stated in its repository",
    expected="kubric_change/ with <index>_0.png, <index>_1.png, mask_<index>_00000.png and mask_<index>_00001.png",
    read=read_kubric_change,
)
VIRAT_STD = Layout(
    title="VIRAT-STD (The Change You Want to See)",
    page=_PAGE,
    licence="none stated in its repository; pictures of Spot-the-Diff",
    expected="std/ with annotations.npy (unpack virat-annotations.npy.gz), and Spot-the-Diff's <index>.png and "
    "<index>_2.png",
    read=read_virat_std,
)
