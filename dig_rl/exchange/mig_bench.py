"""MIG-Bench's two subsets of differences, `diff` (static) and `view_diff` (from another view).

Source: Li et al., "Migician" (arXiv 2501.05767); layout of the data set Michael4933/MIG-Bench and of its README.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dig_rl.boxes import unit_to_px
from dig_rl.errors import DataError
from dig_rl.exchange.pictures import picture_size
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

_TASKS = ("diff", "view_diff")
_PREFIX = "MIG-Bench"


def read_mig_bench(root: Path) -> list[Entry]:
    """Entries of the difference tasks in `MIG-Bench/`: one box each, as fractions of the picture's sides.

    A question of `diff` does not say which of the two aligned pictures it is about; one of `view_diff` is about the
    second.

    Raises:
        DataError: the folder is not as published, or holds none of these tasks.
    """
    require(root, ("MIG_data.json", "images"), MIG_BENCH.expected)
    path = root / "MIG_data.json"
    items = list(enumerate(read_json(path, list)))
    chosen = [(number, item) for number, item in items if isinstance(item, dict) and item.get("task") in _TASKS]
    if not chosen:
        raise DataError(f"{path}: expected entries of task {' or '.join(_TASKS)}, found none among {len(items)}")
    return [partial(_pair, root, f"{path}, entry {number}", item) for number, item in chosen]


def _pair(root: Path, where: str, item: dict[str, Any]) -> SourcePair:
    names = item.get("images")
    if not isinstance(names, list) or len(names) != 2:
        raise EntryError(where, f"expected two images, found {short(names)}", "bad_labels")
    first, second = (file_inside(root, _within(name), where) for name in names)
    fractions = np.array([numbers(item.get("answer"), 4, where)])
    about_second = item["task"] == "view_diff"
    box = unit_to_px(fractions, picture_size(second if about_second else first, where))[0].tolist()
    return SourcePair(
        pair_id=safe_id("mig-bench", item["task"], first.stem),
        image_a=first,
        image_b=second,
        split="test",
        differences=[SourceDifference("unknown", **{"box_b" if about_second else "box": box})],
        where=where,
    )


def _within(name: Any) -> Any:
    """Names are given from the folder above: `./MIG-Bench/images/...`."""
    path = PurePosixPath(name) if isinstance(name, str) else None
    return str(path.relative_to(_PREFIX)) if path and path.parts[:1] == (_PREFIX,) else name


MIG_BENCH = Layout(
    title="MIG-Bench, differences (Migician)",
    page="https://huggingface.co/datasets/Michael4933/MIG-Bench",
    licence="apache-2.0 on its page; pictures of other data sets",
    expected="MIG-Bench/ with MIG_data.json and images/ (unpack images.zip)",
    read=read_mig_bench,
)
