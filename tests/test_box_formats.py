"""Which way of writing boxes the changed pixels speak for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.boxes import BoxFormat, to_px
from dig_rl.inspection.box_formats import FORMATS, agreements, best_format, better_format, shares_in_words
from dig_rl.inspection.check import check_folder
from tests.data_folders import line_of, write_folder

SIZE = (200, 100)
"""(width, height)."""


@pytest.mark.parametrize(
    ("box_format", "written"),
    [
        ("xyxy_px", [20, 10, 60, 50]),
        ("xywh_px", [20, 10, 40, 40]),
        ("xyxy_unit", [0.1, 0.1, 0.3, 0.5]),
        ("xywh_unit", [0.1, 0.1, 0.2, 0.4]),
        ("xyxy_norm1000", [100, 100, 300, 500]),
        ("xywh_norm1000", [100, 100, 200, 400]),
    ],
)
def test_one_box_in_every_format(box_format: BoxFormat, written: list[float]) -> None:
    assert to_px(np.array([written]), box_format, SIZE)[0] == pytest.approx([20, 10, 60, 50])


def changed(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    clear = np.zeros(SIZE[::-1], dtype=bool)
    for x_min, y_min, x_max, y_max in boxes:
        clear[y_min:y_max, x_min:x_max] = True
    return clear


def test_shares_by_hand() -> None:
    """40x40 pixels changed; x, y, width, height read as corners hold the 20x30 of them at the top left."""
    found = agreements(changed((20, 10, 60, 50)), np.array([[20, 10, 40, 40]]))
    assert (found["xywh_px"].explained, found["xywh_px"].density) == (1.0, 1.0)
    assert found["xyxy_px"].explained == pytest.approx(600 / 1600) and found["xyxy_px"].density == 1.0
    assert found["xyxy_px"].area == 600 / 20_000
    assert not found["xyxy_unit"].fits and found["xyxy_unit"].explained == 0
    assert better_format([found], "xyxy_px") == "xywh_px" == best_format([found])
    assert better_format([found], "xywh_px") is None
    words = shares_in_words([found], ["xyxy_px", "xywh_px", "xywh_unit"])
    assert words.endswith("boxes hold 100% as xywh_px, 38% as xyxy_px, not all fit the pictures as xywh_unit")


def test_every_format_is_found_in_boxes_of_many_places() -> None:
    rng = np.random.default_rng(0)
    scale = {"px": np.ones(4), "unit": 1 / np.tile(SIZE, 2), "norm1000": 1000 / np.tile(SIZE, 2)}
    for name in FORMATS:
        pairs = []
        for _ in range(12):
            x, y = rng.integers(0, 120), rng.integers(0, 60)
            width, height = rng.integers(10, 70), rng.integers(10, 35)
            form, _, frame = name.partition("_")
            box = np.array([x, y, x + width, y + height] if form == "xyxy" else [x, y, width, height])
            clear = changed((x, y, x + width, y + height)) | (rng.random(SIZE[::-1]) < 0.002)  # some noise
            pairs.append(agreements(clear, (box * scale[frame])[None]))
        assert best_format(pairs) == name and better_format(pairs, name) is None
        for other in FORMATS:
            assert better_format(pairs, other) in (None, name)


def test_pictures_that_changed_everywhere_decide_nothing() -> None:
    found = agreements(np.ones(SIZE[::-1], dtype=bool), np.array([[20, 10, 120, 80]]))
    assert better_format([found], "xyxy_px") is None is best_format([found])
    assert best_format([]) is None is better_format([], "xyxy_px")


@pytest.mark.parametrize("frame", ["xywh_px", "xyxy_unit"])
def test_the_check_of_a_folder_suspects_boxes_that_happen_to_fit(tmp_path: Path, frame: str) -> None:
    """A square of 40x30 at (8, 6) of 64x48, written in the wrong way, lies in the picture all the same."""
    lines: list[dict[str, Any]] = []
    written = {"xywh_px": [8, 6, 40, 30], "xyxy_unit": [0.125, 0.125, 0.75, 0.75]}[frame]
    for index in range(3):
        lines.append(line_of(f"p{index}", differences=[{"box": written}]))
    folder = write_folder(tmp_path, lines)
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 120, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"images/p{index}_a.png")
        picture[6:36, 8:48] = 255
        Image.fromarray(picture).save(folder / f"images/p{index}_b.png")
    suspicions = [item.problem for item in check_folder(folder).warnings if "look like" in item.problem]
    if frame == "xywh_px":
        share = 32 * 24 / (40 * 30)
        assert suspicions == [
            "the boxes look like xywh_px, expected xyxy_px: of the clearly changed pixels of 3 pairs the boxes hold "
            f"100% as xywh_px, {share:.0%} as xyxy_px"
        ]
    else:
        assert len(suspicions) == 1 and suspicions[0].startswith("the boxes look like xyxy_unit")
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps(line_of(f"p{index}", differences=[{"box": [8, 6, 48, 36]}])) + "\n" for index in range(3))
    )
    assert not [item for item in check_folder(folder).warnings if "look like" in item.problem]
