"""Data folders of the controls: the same pairs with labels of others, or with nothing to see in the second image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dig_rl.data import METADATA_NAME, PairRecord, read_records
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import DataError
from dig_rl.image_files import gray_image, image_problem

ORIGIN_NAME = "derived_from.json"
_GRAY_FOLDER = "images/gray"


def shuffle_labels(source: Path, out: Path, *, split: str, seed: int, allow_no_change: bool = False) -> Path:
    """Copy a data folder, with the labels of one split dealt to other pairs of it.

    A pair gets the labels of another with as many changes and pictures of the same size, so that numbers of boxes and
    where boxes tend to lie stay what they were, and only what they have to do with the pictures is gone. A pair that
    has no such other keeps its own.

    Args:
        source: data folder.
        out: folder to make; left alone if it is there and was made from the same pairs.
        split: whose labels are dealt, as `train`; the others stay right.
        seed: of the deal.
        allow_no_change: accept pairs without any difference.

    Returns:
        `out`.

    Raises:
        DataError: `source` is wrong, or `out` was made from something else.
    """
    records = _records(source, allow_no_change)
    groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.split == split:
            groups[record.num_differences, record.width, record.height].append(index)
    rng = np.random.default_rng(seed)
    dealt = list(records)
    for key in sorted(groups):
        order = [groups[key][place] for place in rng.permutation(len(groups[key]))]
        for receiver, donor in zip(order, [*order[1:], order[0]], strict=True):  # a ring: nobody gets their own
            dealt[receiver] = records[receiver].model_copy(update={"differences": records[donor].differences})
    return _write(source, out, dealt, {"labels_of": split, "seed": seed})


def blank_second_images(source: Path, out: Path, *, allow_no_change: bool = False) -> Path:
    """Copy a data folder, every second image of every split replaced by an even gray; labels stay.

    Args, Returns and Raises are those of `shuffle_labels`.
    """
    records = _records(source, allow_no_change)
    blank = [record.model_copy(update={"image_b_file_name": _gray_name(record)}) for record in records]
    return _write(source, out, blank, {"blank": "image_b"})


def _records(source: Path, allow_no_change: bool) -> list[PairRecord]:
    return [record for _, record in read_records(source, allow_no_change=allow_no_change)]


def _gray_name(record: PairRecord) -> str:
    return f"{_GRAY_FOLDER}/gray_{record.width}x{record.height}.png"


def _write(source: Path, out: Path, records: Sequence[PairRecord], how: dict[str, str | int]) -> Path:
    """Write everything beside `out` and move it there when it is whole."""
    origin = {**how, "metadata_sha256": hashlib.sha256((source / METADATA_NAME).read_bytes()).hexdigest()}
    if out.exists():
        found = read_json_object(out / ORIGIN_NAME, remedy=f"remove {out}; it is made again")
        if found != origin:
            raise DataError(f"{out} was made from other pairs ({found}, expected {origin}); remove it and run again")
        return out
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for record in records:
        for name in (record.image_a_file_name, record.image_b_file_name):
            if name == _gray_name(record):
                gray_image(partial / _GRAY_FOLDER, (record.width, record.height))
            else:
                _link(source.resolve(), name, record, partial / name)
    (partial / METADATA_NAME).write_text("".join(record.model_dump_json() + "\n" for record in records), "utf-8")
    write_durably(partial / ORIGIN_NAME, json.dumps(origin, indent=1) + "\n")
    return partial.rename(out)


def _link(source: Path, name: str, record: PairRecord, copy: Path) -> None:
    """One file under both names where the disk allows it."""
    if problem := image_problem(source, name, (record.width, record.height)):
        raise DataError(f"{source / METADATA_NAME}, pair {record.pair_id}: image {name} {problem}")
    copy.parent.mkdir(parents=True, exist_ok=True)
    if copy.exists():  # several pairs may share an image
        return
    try:
        os.link((source / name).resolve(), copy)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source / name, copy)
