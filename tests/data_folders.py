"""Small data folders for tests: sound ones, to be spoiled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (64, 48)
"""(width, height) in pixels."""
BOX = (10, 8, 22, 20)
"""Where the object of every pair stands."""


def line_of(pair_id: str, **changes: Any) -> dict[str, Any]:
    """A pair whose one object, at `BOX`, changes its color."""
    box = [float(edge) for edge in BOX]
    difference = {"kind": "color", "object_id": 1, "box": box, "box_a": box, "box_b": box}
    difference |= {f"visible_px_{side}": 144 for side in "ab"} | {f"visible_fraction_{side}": 1.0 for side in "ab"}
    known = {
        "image_a_file_name": f"images/{pair_id}_a.png",
        "image_b_file_name": f"images/{pair_id}_b.png",
        "pair_id": pair_id,
        "width": SIZE[0],
        "height": SIZE[1],
        "num_differences": 1,
        "split": "train",
        "seed": None,
        "differences": [difference],
    }
    return known | changes


def pictures(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A pair of pictures, `[48, 64, 3]`: dull noise, in the second one a white square at `BOX`."""
    picture_a = np.random.default_rng(seed).integers(0, 120, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    picture_b = picture_a.copy()
    x_min, y_min, x_max, y_max = BOX
    picture_b[y_min:y_max, x_min:x_max] = 255
    return picture_a, picture_b


def write_folder(folder: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    """Write the lines, records or raw text, and the pictures of pairs `p0`, `p1`, ... one for each line."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(len(lines)):
        for side, picture in zip("ab", pictures(index), strict=True):
            Image.fromarray(picture).save(folder / f"images/p{index}_{side}.png")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("".join(text + "\n" for text in texts))
    return folder


def write_manifest(folder: Path) -> None:
    """List every file of the folder with its sha256."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
