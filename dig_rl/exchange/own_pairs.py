"""One's own pairs as a data folder: two folders of pictures with a table of boxes, or with change masks."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from dig_rl.boxes import BoxFormat, to_px, turn_px
from dig_rl.data import Split
from dig_rl.errors import DataError
from dig_rl.exchange.importing import ImportSummary, Progress, write_pairs
from dig_rl.exchange.pair_box_format import choose_format
from dig_rl.exchange.pair_labels import LabelledBox, LabelledPair
from dig_rl.exchange.pair_sources import OwnPairs, find_pairs, pictures_of
from dig_rl.exchange.picture_folders import PairFolder
from dig_rl.exchange.pictures import PictureFrame, picture_frame, read_change_mask
from dig_rl.exchange.published import MAX_BOXES, EntryError, SourceDifference, SourcePair
from dig_rl.image_files import folders_outside

DEFAULT_SHARES = (0.8, 0.1, 0.1)
"""Of train, validation and test."""
_DIGITS = 3
"""Of a box in pixels: what is lost is far below what anybody can see, and fractions come out even."""
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def import_own_pairs(
    source: Path,
    out: Path,
    *,
    box_format: BoxFormat | None = None,
    shares: Sequence[float] = DEFAULT_SHARES,
    split: Split | None = None,
    skip_bad: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> tuple[ImportSummary, list[str]]:
    """Write a new data folder from one's own pairs.

    Args:
        source: a folder with `a/`, `b/` and one table or `masks/`; or the table, or the folder of masks.
        out: folder to make; must not exist.
        box_format: how the boxes are written; None where the table says it.
        shares: of train, validation and test.
        split: put every pair into this one.
        skip_bad: leave unusable entries out and count them.
        on_progress: called with pairs done and pairs in all.

    Returns:
        What was made, and one line for each thing that was not said, or is suspected.

    Raises:
        DataError: nothing or several things to import were found, a table cannot be read, how boxes are written must be
            said, an entry is unusable and `skip_bad` is false, or `out` exists or cannot be written.
    """
    found = find_pairs(source)
    ids = _pair_ids(found.labels)
    chosen, suspicion = None, list[str]()
    if found.table is not None and any(pair.boxes for pair in found.labels):
        chosen, suspicion = choose_format(found, found.table, box_format)
    entries: list[Callable[[], SourcePair]] = [
        partial(_source_pair, found.folder, labels, pair_id, chosen, shares)
        for labels, pair_id in zip(found.labels, ids, strict=True)
    ]
    rules = _rules(found, chosen, box_format, shares, split)
    try:
        summary = write_pairs(
            entries,
            {"title": "own pairs", **_provenance(found), "rules": rules},
            found.folder.path,
            out,
            split=split,
            skip_bad=skip_bad,
            unchanged=True,
            on_progress=on_progress,
        )
    except DataError as error:
        raise DataError("\n".join([str(error), *suspicion])) from None
    return summary, [*rules, *suspicion]


def read_shares(text: str) -> tuple[float, float, float]:
    """Shares of train, validation and test, as `0.8,0.1,0.1`.

    Raises:
        DataError: not three numbers from 0 to 1 with a sum of 1.
    """
    try:
        train, validation, test = (float(part) for part in text.replace(",", " ").split())
        if min(train, validation, test) >= 0 and abs(train + validation + test - 1) < 1e-6:
            return train, validation, test
    except ValueError:
        pass  # told below
    raise DataError(
        f"SPLITS= expects the shares of train, validation and test, with a sum of 1, as 0.8,0.1,0.1; found {text!r}"
    )


def _source_pair(
    folder: PairFolder, labels: LabelledPair, pair_id: str, box_format: BoxFormat | None, shares: Sequence[float]
) -> SourcePair:
    if labels.fault:
        raise labels.fault
    if labels.mask is not None and labels.boxes:
        raise EntryError(labels.where, "expected boxes or a mask, found both", "bad_labels")
    image_a, image_b = pictures_of(folder, labels)
    frame = picture_frame(image_a, labels.where)
    if labels.mask is not None:
        boxes = [LabelledBox(box) for box in _mask_boxes(folder.mask(labels.mask, labels.where), frame, labels.where)]
    else:
        has_b = any(box.side == "b" for box in labels.boxes)
        frames = (frame, picture_frame(image_b, labels.where) if has_b else frame)
        boxes = [_in_px(box, box_format, frames, labels) for box in labels.boxes]
    if boxes and image_a.samefile(image_b):
        raise EntryError(labels.where, f"expected two pictures, found {image_a} as both, and a change", "one_picture")
    split = labels.split or split_by_name(labels.names_within_sides[0], shares)
    return SourcePair(pair_id, image_a, image_b, split, _differences(boxes), labels.where)


def _in_px(
    box: LabelledBox, box_format: BoxFormat | None, frames: Sequence[PictureFrame], labels: LabelledPair
) -> LabelledBox:
    """Boxes are in the picture as it is seen; only a file that declares the stored size means the stored pixels."""
    assert box_format is not None
    side = 1 if box.side == "b" else 0
    frame = frames[side]
    is_stored = labels.sizes_px[side] == frame.stored_size_px != frame.size_px
    size = frame.stored_size_px if is_stored else frame.size_px
    box_px = to_px(np.array([box.values]), box_format, size)
    if is_stored:
        box_px = turn_px(box_px, frame.tag, frame.stored_size_px)
    x_min, y_min, x_max, y_max = box_px[0].round(_DIGITS).tolist()
    return LabelledBox((x_min, y_min, x_max, y_max), box.label, box.side, box.change)


def _mask_boxes(path: Path, frame: PictureFrame, where: str) -> list[tuple[float, float, float, float]]:
    """Boxes, xyxy in pixels, of what is set and touches, corners included."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise EntryError(where, f"mask {path.name}: expected a PNG, a lossy file has stray values", "bad_mask")
    mask = read_change_mask(path, where)
    if mask.shape[::-1] != frame.size_px:
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, its picture {frame.size_px[0]}x{frame.size_px[1]}"
        raise EntryError(where, f"mask {path.name} is {sizes}", "sizes_differ")
    labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count > MAX_BOXES:
        problem = f"mask {path.name} has {count} separate parts, expected at most {MAX_BOXES}"
        raise EntryError(where, problem, "bad_mask")
    return [
        (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        for rows, columns in ndimage.find_objects(labelled)
    ]


def _differences(boxes: Sequence[LabelledBox]) -> list[SourceDifference]:
    """One change a box, or the box in each picture that say they are one."""
    changes: dict[Any, list[LabelledBox]] = defaultdict(list)
    for place, box in enumerate(boxes):
        changes[("joined", box.change) if box.change is not None and box.side else place].append(box)
    groups = [
        [same] if len(same) == len({box.side for box in same}) else [[box] for box in same] for same in changes.values()
    ]
    return [_difference(group) for same in groups for group in same]


def _difference(boxes: Sequence[LabelledBox]) -> SourceDifference:
    kind = boxes[0].kind
    by_side = {box.side: box.values for box in boxes if box.side}
    if by_side:
        sides = (by_side.get("a"), by_side.get("b"))
        if kind == "add" and sides[1]:
            return SourceDifference(kind, box_b=sides[1])
        return SourceDifference(kind, box_a=sides[0], box_b=None if kind == "remove" and sides[0] else sides[1])
    # What was added is in the second picture alone, what was removed in the first; of other kinds a box says no side.
    side = {"add": "box_b", "remove": "box_a"}.get(kind, "box")
    return SourceDifference(kind, **{side: boxes[0].values})


def split_by_name(name: str, shares: Sequence[float]) -> Split:
    """The split of a name by its hash: adding names moves none.

    Args:
        name: of the first picture, so that pairs that share one are in one split.
        shares: of train, validation and test, with a sum of 1.
    """
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    for split, end in zip(_SPLITS, np.cumsum(shares), strict=True):
        if place < end:
            return split
    return next(split for split, share in zip(reversed(_SPLITS), reversed(shares), strict=True) if share > 0)


def _pair_ids(labels: Sequence[LabelledPair]) -> list[str]:
    """A file name of plain letters for each pair; names that become alike get a piece of their hash."""
    plain = [_plain(pair.names_within_sides) for pair in labels]
    times = Counter(name.lower() for name in plain)
    digests = (hashlib.sha256(repr(pair.names).encode()).hexdigest()[:8] for pair in labels)
    return [
        name if times[name.lower()] == 1 else f"{name}-{digest}" for name, digest in zip(plain, digests, strict=True)
    ]


def _plain(names: tuple[str, str]) -> str:
    text = unicodedata.normalize("NFKD", "-".join(dict.fromkeys(names)).strip("/"))
    letters = text.encode("ascii", "ignore").decode().replace("/", "-")
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", letters).strip(".")[-100:] or "pair"


def _provenance(found: OwnPairs) -> dict[str, Any]:
    """Where pairs came from, for the manifest."""
    real = found.folder.path.resolve()
    sides = [side.path for side in (*found.folder.sides, found.folder.masks) if side is not None]
    names = [f"{path.relative_to(found.folder.path)}/x" for path in sides]
    origin: dict[str, Any] = {"from": found.source.name, "folders_outside": folders_outside(real, names)}
    if found.source.is_file():
        origin["sha256"] = hashlib.sha256(found.source.read_bytes()).hexdigest()
    return origin


def _rules(
    found: OwnPairs,
    chosen: BoxFormat | None,
    said: BoxFormat | None,
    shares: Sequence[float],
    split: Split | None,
) -> list[str]:
    """What was left unsaid and how it was taken, one line each."""
    rules = []
    if any(pair.mask is not None for pair in found.labels):
        rules.append("changes: pixels that are set in a mask and touch, corners included; kind unknown")
    if chosen is None or found.table is None:
        pass
    elif said is None:
        why = "COCO's rule" if found.table.is_coco else f"{found.table.said}; the unit is not said, so pixels"
        rules.append(f"boxes: {chosen} ({why}), half-open")
    else:
        rules.append(f"boxes: {chosen}, half-open")
    if chosen is not None and not any(box.label for pair in found.labels for box in pair.boxes):
        rules.append("kinds: no label is given, so unknown")
    labels = Counter(box.label for pair in found.labels for box in pair.boxes if box.kind == "unknown" and box.label)
    if labels:
        told = ", ".join(f"{label!r} {count}" for label, count in labels.most_common(5))
        rules.append(f"labels that say no kind of change are unknown: {told}")
    if split is not None:
        rules.append(f"splits: all in {split}")
    else:
        named = sum(pair.split is not None for pair in found.labels)
        how = f"train, validation, test {', '.join(f'{share:g}' for share in shares)} by a hash of the name"
        rules.append(f"splits: {how}" if not named else f"splits: as the table says for {named} pairs; else {how}")
    if found.num_repeated:
        rules.append(f"left out: {found.num_repeated} boxes that are there twice")
    if found.num_not_named:
        rules.append(f"left out: {found.num_not_named} pictures of a/ that {found.source.name} does not name")
    return rules
