"""What a folder of one's own holds: a table of pairs, or two folders of pictures with change masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dig_rl.errors import DataError
from dig_rl.exchange.pair_labels import LabelledBox, LabelledPair, LabelTable
from dig_rl.exchange.pair_tables import is_table, read_table
from dig_rl.exchange.picture_folders import MASKS, PairFolder, PictureFolder
from dig_rl.exchange.published import EntryError


@dataclass(frozen=True)
class OwnPairs:
    """Pairs as they were found, and what was taken for granted about them."""

    folder: PairFolder
    labels: Sequence[LabelledPair]
    table: LabelTable | None
    """None where masks say what changed."""
    source: Path
    """The table, or the folder of masks."""
    num_not_named: int
    """Pictures of `a/` that the table does not name."""
    num_repeated: int
    """Boxes that the table gives twice for a pair, left out."""


def find_pairs(source: Path) -> OwnPairs:
    """What a folder or file holds.

    Raises:
        DataError: there is nothing to import, or it is not clear what.
    """
    try:
        return _find_pairs(source)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or source}: {error.strerror}") from None


def _find_pairs(source: Path) -> OwnPairs:
    if source.is_dir():
        source = _only_source(source)
    if source.is_dir():
        return _from_masks(PairFolder(source.parent), source)
    if not source.exists():
        raise DataError(f"{source} does not exist; FROM= names a folder with a/ and b/, or a table of pairs")
    folder, table = PairFolder(source.parent), read_table(source)
    side = folder.sides[0]
    named = {path for pair in table.pairs if side and pair.file and (path := side.find(pair.file))}
    not_named = len(side.names) - len(named) if side and named else 0
    labels = [replace(pair, boxes=_distinct(pair.boxes)) for pair in table.pairs]
    num_repeated = sum(len(pair.boxes) for pair in table.pairs) - sum(len(pair.boxes) for pair in labels)
    return OwnPairs(folder, labels, table, source, not_named, num_repeated)


def _distinct(boxes: Sequence[LabelledBox]) -> tuple[LabelledBox, ...]:
    """The first of each box; `Added` says the same as `added`."""
    return tuple({(box.values, box.kind, box.side, box.change): box for box in reversed(boxes)}.values())[::-1]


def _only_source(folder: Path) -> Path:
    """The table or the folder of masks in a folder of pairs, or the folder itself if it holds masks."""
    if folder.name.lower() in MASKS and not any(path.is_dir() for path in folder.iterdir()):
        return folder
    pairs = PairFolder(folder)
    masks = [pairs.masks.path] if pairs.masks and pairs.masks.names else []  # `labels/` may hold other files
    found = [path for path in sorted(folder.iterdir()) if is_table(path)] + masks
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(path.name + "/" * path.is_dir() for path in found)
        raise DataError(
            f"{folder} holds several things that may say what changed: {listed}; name one, as FROM={found[0]}"
        )
    there = (
        "a/ and b/, but" if all(pairs.sides) else "one of a/ and b/, and" if any(pairs.sides) else "no a/ and b/, and"
    )
    raise DataError(
        f"{folder} holds {there} nothing that says what changed; expected a table (*.csv, *.tsv, *.jsonl, COCO's "
        "*.json) with boxes, or change masks as PNG in masks/"
    )


def _from_masks(folder: PairFolder, masks: Path) -> OwnPairs:
    """Every picture of `a/` with its namesake in `b/`; a picture without one is a pair with a fault."""
    side_a, side_b = folder.sides
    if side_a is None or side_b is None:
        raise DataError(f"{folder.path} lacks a/ or b/; expected the two folders of pictures beside {masks.name}/")
    folder.masks = PictureFolder(masks)
    partners = {name: side_b.find(name) for name in side_a.names}
    times = Counter(partners.values())
    labels = []
    for name, partner in partners.items():
        where = f"{side_a.path / name}"
        fault = None
        if partner is None or (times[partner] > 1 and partner != side_b.path / name):
            fault = EntryError(where, f"image {name} has no picture of that name in {side_b.path}", "missing_image")
        labels.append(LabelledPair(where, file=name, mask=name, fault=fault))
    taken = set(partners.values())
    for name in side_b.names:
        if side_b.path / name not in taken:
            where = f"{side_b.path / name}"
            fault = EntryError(where, f"image {name} has no picture of that name in {side_a.path}", "missing_image")
            labels.append(LabelledPair(where, file=name, fault=fault))
    if not labels:
        raise DataError(f"{folder.path}: expected pictures in a/ and b/, found none")
    return OwnPairs(folder, labels, None, masks, 0, 0)


def pictures_of(folder: PairFolder, labels: LabelledPair) -> tuple[Path, Path]:
    """The two pictures of a pair; raises EntryError if one is not there."""
    if labels.file is not None:
        return folder.both(labels.file, labels.where)
    name_a, name_b = labels.names
    return folder.one(name_a, 0, labels.where), folder.one(name_b, 1, labels.where)
