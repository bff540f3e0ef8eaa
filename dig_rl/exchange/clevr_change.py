"""CLEVR-Change, the data set of Robust Change Captioning.

Source: Park, Darrell and Rohrbach, ICCV 2019 (arXiv 1901.02527); layout of Seth-Park/RobustChangeCaptioning
(README.md, datasets/rcc_dataset.py, evaluate_pointing_by_IOU.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from dig_rl.data import Kind, Split
from dig_rl.errors import DataError
from dig_rl.exchange.published import (
    Entry,
    EntryError,
    Layout,
    SourceDifference,
    SourcePair,
    file_inside,
    numbers,
    read_json,
    require,
    safe_id,
    short,
)

_BOXES = "change_captions_with_bbox.json"
_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_KINDS: dict[str, Kind] = {"color": "color", "material": "material", "add": "add", "drop": "remove", "move": "move"}


def read_clevr_change(root: Path) -> list[Entry]:
    """Entries of CLEVR-Change's `data/`: each default picture with the picture after the change.

    A moved object is two boxes: where it was, and where it is. The pairs of default picture and distractor, in which
    only camera and light change, are not read.

    Raises:
        DataError: the folder is not as published, or has captions but no boxes.
    """
    if (root / "change_captions.json").exists() and not (root / _BOXES).exists():
        raise DataError(
            f"{root} has no boxes: change_captions.json holds sentences only; {_BOXES}, which the published pointing "
            "evaluation reads, is needed beside it"
        )
    require(root, ("images", "sc_images", "splits.json", "type_mapping.json", _BOXES), CLEVR_CHANGE.expected)
    splits = read_json(root / "splits.json", dict)
    labels = read_json(root / _BOXES, dict)
    kinds = _kinds(root / "type_mapping.json")
    entries: list[Entry] = []
    for name, split in _SPLITS.items():
        for index in splits.get(name, ()):
            if type(index) is not int or not 0 <= index < 1_000_000:
                raise DataError(f"{root / 'splits.json'}, {name}: expected picture numbers, found {short(index)}")
            entries.append(partial(_pair, root, index, split, labels.get(str(index)), kinds.get(index, "unknown")))
    return entries


def _kinds(path: Path) -> dict[int, Kind]:
    kinds: dict[int, Kind] = {}
    for name, pictures in read_json(path, dict).items():
        for picture in pictures if name in _KINDS else ():
            number = str(picture).split(".")[0].split("_")[-1]
            if not number.isdecimal():
                raise DataError(f"{path}, {name}: expected names like 000123.png, found {short(picture)}")
            kinds[int(number)] = _KINDS[name]
    return kinds


def _pair(root: Path, index: int, split: Split, label: Any, kind: Kind) -> SourcePair:
    where = f"{root / _BOXES}, entry {index}"
    if not isinstance(label, dict):
        raise EntryError(where, f"expected bbox_before and bbox_after, found {short(label)}", "missing_labels")
    before, after = (_xyxy(label.get(name), where) for name in ("bbox_before", "bbox_after"))
    if kind == "move":
        one = [SourceDifference(kind, box_a=before)] if before else []
        differences = [*one, *([SourceDifference(kind, box_b=after)] if after else [])]
    else:
        differences = [SourceDifference(kind, box_a=before, box_b=after)] if before or after else []
    return SourcePair(
        pair_id=safe_id("clevr-change", f"{index:06d}"),
        image_a=file_inside(root, f"images/CLEVR_default_{index:06d}.png", where),
        image_b=file_inside(root, f"sc_images/CLEVR_semantic_{index:06d}.png", where),
        split=split,
        differences=differences,
        where=where,
    )


def _xyxy(box_xywh: Any, where: str) -> list[float] | None:
    if not box_xywh:  # null where the object is not in the picture
        return None
    x, y, width, height = numbers(box_xywh, 4, where)
    return [x, y, x + width, y + height]


CLEVR_CHANGE = Layout(
    title="CLEVR-Change (Robust Change Captioning)",
    page="https://github.com/Seth-Park/RobustChangeCaptioning",
    licence="none stated in its repository",
    expected=f"data/ with images/, sc_images/, splits.json, type_mapping.json and {_BOXES}",
    read=read_clevr_change,
)
