"""Pairs of another layout, from a local copy, as a data folder of ours."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dig_rl.data import METADATA_NAME, DifferenceRecord, PairRecord, Split, target_box
from dig_rl.errors import DataError
from dig_rl.exchange.clevr_change import CLEVR_CHANGE
from dig_rl.exchange.cyws import COCO_INPAINTED, KUBRIC_CHANGE, VIRAT_STD
from dig_rl.exchange.mig_bench import MIG_BENCH
from dig_rl.exchange.new_folder import new_folder
from dig_rl.exchange.pictures import picture_size, read_picture
from dig_rl.exchange.published import Entry, EntryError, Layout, SourceDifference, SourcePair, checked_box
from dig_rl.faults import counted

LAYOUTS: dict[str, Layout] = {
    "coco-inpainted": COCO_INPAINTED,
    "kubric-change": KUBRIC_CHANGE,
    "virat-std": VIRAT_STD,
    "clevr-change": CLEVR_CHANGE,
    "mig-bench": MIG_BENCH,
}
"""Published layouts by their name on the command line."""

_KINDS_TOLD = 20
"""Kinds of faults that are told; their number is always told in full."""
_COMPRESSION = 1
"""Level of zlib: three times as fast as the default for files a sixth larger."""

Progress = Callable[[int, int], None]
"""Called with (entries done, entries in all)."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import made."""

    num_pairs: int
    pairs_by_split: dict[str, int]
    skipped: Counter[str]
    """Entries left out, by reason."""
    messages: list[str]
    """What is wrong with them in words, one message a kind of fault."""
    num_unchanged: int
    """Pairs without a change."""
    boxes_by_kind: dict[str, int]

    @property
    def num_boxes(self) -> int:
        """Labelled changes of all pairs."""
        return sum(self.boxes_by_kind.values())


@dataclass
class _Faults:
    """Unusable entries as they are found."""

    errors: list[EntryError] = field(default_factory=list)

    @property
    def by_reason(self) -> Counter[str]:
        return Counter(error.reason for error in self.errors)

    def in_words(self) -> list[str]:
        kinds = counted(self.errors, lambda error: error.problem)
        return [f"{first}" + (f" (and {len(others)} more like it)" if others else "") for first, others in kinds]

    def raise_for(self, where: Path, num_entries: int) -> None:
        """Raise DataError if there is one."""
        kinds = self.in_words()
        if len(kinds) == 1:
            raise DataError(f"{kinds[0]}; SKIP_BAD=1 leaves such entries out and counts them")
        if kinds:
            told = "".join(f"\n  {kind}" for kind in kinds[:_KINDS_TOLD])
            raise DataError(
                f"{where}: {len(self.errors)} of {num_entries} entries are unusable:{told}\n"
                "Mend them; or SKIP_BAD=1 leaves such entries out and counts them"
            )


def import_dataset(
    layout: Layout,
    root: Path,
    out: Path,
    *,
    split: Split | None = None,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportSummary:
    """Write a new data folder from a local copy; it appears when it is complete.

    Pictures are decoded and written again as PNG. What the source does not say is null, a kind it does not say is
    `unknown`. Pair ids are made of the source's own names.

    Args:
        layout: one of `LAYOUTS`.
        root: folder in the published layout.
        out: folder to make; must not exist.
        split: put every pair into this one; None keeps the published splits (`test` where there are none).
        skip_bad: leave unusable entries out and count them, instead of stopping at the first.
        on_progress: called with entries done and entries in all.

    Raises:
        DataError: the layout is not as published, an entry is unusable and `skip_bad` is false, no entry is usable, or
            `out` exists or cannot be written.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; FROM= names a local copy of {layout.title}, {layout.expected}")
    return write_pairs(
        layout.read(root),
        {"title": layout.title, "page": layout.page, "licence": layout.licence},
        root,
        out,
        split=split,
        skip_bad=skip_bad,
        on_progress=on_progress,
    )


def write_pairs(
    entries: Sequence[Entry],
    source: Mapping[str, Any],
    root: Path,
    out: Path,
    *,
    split: Split | None = None,
    skip_bad: bool = False,
    unchanged: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> ImportSummary:
    """Write entries as a new data folder.

    All labels and the headers of all pictures are looked at first, so that most faults are told within seconds and
    counted. After a fault that only decoding finds, the other pictures are decoded, to count, and nothing is written.

    Args:
        entries: readers of the pairs.
        source: where they come from, for the manifest.
        root: what they were read from, for messages.
        out: folder to make; must not exist.
        split: put every pair into this one.
        skip_bad: leave unusable entries out and count them.
        unchanged: take pairs without a change, too.
        on_progress: called with entries done and entries in all.

    Raises:
        DataError: an entry is unusable and `skip_bad` is false, none is usable, or `out` exists or cannot be written.
    """
    faults, records, files = _Faults(), list[PairRecord](), dict[str, dict[str, str]]()
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        usable = _usable(entries, faults, unchanged)
        if not skip_bad:
            faults.raise_for(root, len(entries))
        for done, read in enumerate(usable):
            on_progress(done, len(usable))
            try:
                pair = read()
                pictures = _read_pictures(pair)
                if skip_bad or not faults.errors:
                    records.append(_write_pair(pair, pictures, split or pair.split, folder, files, root))
            except EntryError as error:
                faults.errors.append(error)
        on_progress(len(usable), len(usable))
        if not skip_bad:
            faults.raise_for(root, len(entries))
        if not records:
            first = "".join(f", the first: {message}" for message in faults.in_words()[:1])
            raise DataError(f"{root}: none of its {len(entries)} entries is usable {dict(faults.by_reason)}{first}")
        _write_tables(folder, source, records, faults.by_reason, files)
    return ImportSummary(
        num_pairs=len(records),
        pairs_by_split={str(name): count for name, count in _by_split(records).items()},
        skipped=faults.by_reason,
        messages=faults.in_words()[:_KINDS_TOLD],
        num_unchanged=sum(not record.differences for record in records),
        boxes_by_kind=_by_kind(records),
    )


def _usable(entries: Sequence[Entry], faults: _Faults, unchanged: bool) -> list[Entry]:
    """Those whose labels and picture headers are sound; what is wrong with the others is noted."""
    usable: list[Entry] = []
    seen: set[str] = set()
    for read in entries:
        try:
            pair = read()
            if not pair.differences and not unchanged:
                raise EntryError(pair.where, "expected at least one change, found none", "no_difference")
            size, size_b = (picture_size(path, pair.where) for path in (pair.image_a, pair.image_b))
            if size != size_b and not pair.resize_b:
                sizes = f"{size[0]}x{size[1]} and {size_b[0]}x{size_b[1]}"
                raise EntryError(pair.where, f"the two pictures differ in size, {sizes}", "sizes_differ")
            for difference in pair.differences:
                _difference(difference, size, pair.where)
            if pair.pair_id in seen:
                raise EntryError(pair.where, f"pair {pair.pair_id} is there twice", "duplicate")
            seen.add(pair.pair_id)
            usable.append(read)
        except EntryError as error:
            faults.errors.append(error)
    return usable


def _read_pictures(pair: SourcePair) -> tuple[Image.Image, Image.Image]:
    image_a, image_b = (read_picture(path, pair.where) for path in (pair.image_a, pair.image_b))
    if image_b.size != image_a.size:
        image_b = image_b.resize(image_a.size, Image.Resampling.BILINEAR)
    return image_a, image_b


def _write_pair(
    pair: SourcePair,
    pictures: tuple[Image.Image, Image.Image],
    split: Split,
    folder: Path,
    files: dict[str, dict[str, str]],
    root: Path,
) -> PairRecord:
    width, height = pictures[0].size
    record = PairRecord(
        image_a_file_name=f"images/{pair.pair_id}_a.png",
        image_b_file_name=f"images/{pair.pair_id}_b.png",
        pair_id=pair.pair_id,
        width=width,
        height=height,
        num_differences=len(pair.differences),
        split=split,
        differences=tuple(_difference(difference, (width, height), pair.where) for difference in pair.differences),
    )
    names, paths = (record.image_a_file_name, record.image_b_file_name), (pair.image_a, pair.image_b)
    for name, image, path in zip(names, pictures, paths, strict=True):
        image.save(folder / name, format="PNG", compress_level=_COMPRESSION)
        given = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        files[name] = {"sha256": _sha256(folder / name), "from": given, "from_sha256": _sha256(path)}
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(source: SourceDifference, size: tuple[int, int], where: str) -> DifferenceRecord:
    box_a, box_b = (None if box is None else checked_box(box, size, where) for box in (source.box_a, source.box_b))
    box = target_box(box_a, box_b, "union") if box_a or box_b else checked_box(source.box, size, where)
    return DifferenceRecord(kind=source.kind, box=box, box_a=box_a, box_b=box_b)


def _by_split(records: Sequence[PairRecord]) -> dict[Split, int]:
    return dict(sorted(Counter(record.split for record in records).items()))


def _by_kind(records: Sequence[PairRecord]) -> dict[str, int]:
    return dict(sorted(Counter(str(item.kind) for record in records for item in record.differences).items()))


def _write_tables(
    folder: Path,
    source: Mapping[str, Any],
    records: Sequence[PairRecord],
    skipped: Counter[str],
    files: Mapping[str, Mapping[str, str]],
) -> None:
    metadata = "".join(record.model_dump_json() + "\n" for record in records).encode()
    hashes = {name: file["sha256"] for name, file in files.items()}
    manifest = {
        "source": source,
        "num_pairs": len(records),
        "pairs_by_split": _by_split(records),
        "differences_by_kind": _by_kind(records),
        "skipped": dict(sorted(skipped.items())),
        "sha256": dict(sorted({**hashes, METADATA_NAME: hashlib.sha256(metadata).hexdigest()}.items())),
        "pictures": {
            name: {"from": file["from"], "sha256": file["from_sha256"]} for name, file in sorted(files.items())
        },
    }
    (folder / METADATA_NAME).write_bytes(metadata)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
