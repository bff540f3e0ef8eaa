"""A published data set, from a local copy, as a data folder of ours."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dig_rl.data import METADATA_NAME, DifferenceRecord, PairRecord, Split, target_box
from dig_rl.errors import DataError
from dig_rl.exchange.clevr_change import CLEVR_CHANGE
from dig_rl.exchange.cyws import COCO_INPAINTED, KUBRIC_CHANGE, VIRAT_STD
from dig_rl.exchange.mig_bench import MIG_BENCH
from dig_rl.exchange.new_folder import new_folder
from dig_rl.exchange.pictures import read_picture
from dig_rl.exchange.published import EntryError, Layout, SourceDifference, SourcePair, checked_box

LAYOUTS: dict[str, Layout] = {
    "coco-inpainted": COCO_INPAINTED,
    "kubric-change": KUBRIC_CHANGE,
    "virat-std": VIRAT_STD,
    "clevr-change": CLEVR_CHANGE,
    "mig-bench": MIG_BENCH,
}
"""Published layouts by their name on the command line."""

_MESSAGES_KEPT = 20
_COMPRESSION = 1
"""Level of zlib: three times as fast as the default for files a sixth larger."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import made."""

    num_pairs: int
    pairs_by_split: dict[str, int]
    skipped: Counter[str]
    """Entries left out, by reason."""
    messages: list[str]
    """The first entries left out, in words."""


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
    entries = layout.read(root)
    records: list[PairRecord] = []
    sha256: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    messages: list[str] = []
    seen: set[str] = set()
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        for done, read in enumerate(entries):
            on_progress(done, len(entries))
            try:
                pair = read()
                if pair.pair_id in seen:
                    raise EntryError(pair.where, f"pair {pair.pair_id} is there twice", "duplicate")
                records.append(_write_pair(pair, split or pair.split, folder, sha256))
                seen.add(pair.pair_id)
            except EntryError as error:
                if not skip_bad:
                    raise DataError(f"{error}; SKIP_BAD=1 leaves such entries out and counts them") from None
                skipped[error.reason] += 1
                messages += [str(error)] if len(messages) < _MESSAGES_KEPT else []
        on_progress(len(entries), len(entries))
        if not records:
            first = f", the first: {messages[0]}" if messages else ""
            raise DataError(f"{root}: none of its {len(entries)} entries is usable {dict(skipped)}{first}")
        by_split = dict(sorted(Counter(record.split for record in records).items()))
        _write_tables(folder, layout, records, by_split, skipped, sha256)
    return ImportSummary(len(records), {str(name): count for name, count in by_split.items()}, skipped, messages)


def _write_pair(pair: SourcePair, split: Split, folder: Path, sha256: dict[str, str]) -> PairRecord:
    if not pair.differences:
        raise EntryError(pair.where, "expected at least one change, found none", "no_difference")
    image_a = read_picture(pair.image_a, pair.where)
    image_b = read_picture(pair.image_b, pair.where)
    if image_b.size != image_a.size:
        if not pair.resize_b:
            sizes = f"{image_a.width}x{image_a.height} and {image_b.width}x{image_b.height}"
            raise EntryError(pair.where, f"the two pictures differ in size, {sizes}", "sizes_differ")
        image_b = image_b.resize(image_a.size, Image.Resampling.BILINEAR)
    record = PairRecord(
        image_a_file_name=f"images/{pair.pair_id}_a.png",
        image_b_file_name=f"images/{pair.pair_id}_b.png",
        pair_id=pair.pair_id,
        width=image_a.width,
        height=image_a.height,
        num_differences=len(pair.differences),
        split=split,
        seed=None,
        differences=tuple(_difference(difference, image_a.size, pair.where) for difference in pair.differences),
    )
    for name, image in ((record.image_a_file_name, image_a), (record.image_b_file_name, image_b)):
        image.save(folder / name, format="PNG", compress_level=_COMPRESSION)
        sha256[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return record


def _difference(source: SourceDifference, size: tuple[int, int], where: str) -> DifferenceRecord:
    box_a, box_b = (None if box is None else checked_box(box, size, where) for box in (source.box_a, source.box_b))
    box = target_box(box_a, box_b, "union") if box_a or box_b else checked_box(source.box, size, where)
    return DifferenceRecord(
        kind=source.kind,
        object_id=None,
        box=box,
        box_a=box_a,
        box_b=box_b,
        visible_px_a=None,
        visible_px_b=None,
        visible_fraction_a=None,
        visible_fraction_b=None,
    )


def _write_tables(
    folder: Path,
    layout: Layout,
    records: list[PairRecord],
    by_split: dict[Split, int],
    skipped: Counter[str],
    sha256: dict[str, str],
) -> None:
    metadata = "".join(record.model_dump_json() + "\n" for record in records).encode()
    kinds = Counter(difference.kind for record in records for difference in record.differences)
    manifest = {
        "source": {"title": layout.title, "page": layout.page, "licence": layout.licence},
        "num_pairs": len(records),
        "pairs_by_split": by_split,
        "differences_by_kind": dict(sorted(kinds.items())),
        "skipped": dict(sorted(skipped.items())),
        "sha256": dict(sorted({**sha256, METADATA_NAME: hashlib.sha256(metadata).hexdigest()}.items())),
    }
    (folder / METADATA_NAME).write_bytes(metadata)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
