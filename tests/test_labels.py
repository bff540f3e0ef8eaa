"""Labels and rejections on masks small enough to count by hand, and published colour differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dig_rl.datagen.color_difference import ciede2000, srgb_to_lab
from dig_rl.datagen.edits import Edit
from dig_rl.datagen.labels import (
    IdPicture,
    box_of_mask,
    label_differences,
    rejection_by_color,
    rejection_by_ids,
    share_explained,
)
from dig_rl.datagen.recipe import LabelRules


def ids_with(**rectangles: tuple[int, int, int, int]) -> np.ndarray:
    """`[12, 16]` ids; `o3=(x0, y0, x1, y1)` fills a half-open rectangle with id 3, later ones in front."""
    ids = np.zeros((12, 16), dtype=np.uint8)
    for name, (x0, y0, x1, y1) in rectangles.items():
        ids[y0:y1, x0:x1] = int(name[1:])
    return ids


def picture(alone: dict[int, int] | None = None, **rectangles: tuple[int, int, int, int]) -> IdPicture:
    return IdPicture(ids_with(**rectangles), alone or {})


RULES = LabelRules(min_visible_px=800)  # 8 pixels of a 16x12 picture


def test_the_box_of_a_mask_is_tight_and_half_open() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    assert box_of_mask(mask) is None
    mask[3, 2] = True
    assert box_of_mask(mask) == (2.0, 3.0, 3.0, 4.0)
    mask[1, 6] = True
    assert box_of_mask(mask) == (2.0, 1.0, 7.0, 4.0)
    assert box_of_mask(np.ones((5, 7), dtype=bool)) == (0.0, 0.0, 7.0, 5.0)


def test_labels_by_hand() -> None:
    a = picture({1: 8, 2: 20}, o1=(0, 0, 4, 2), o2=(8, 2, 12, 6))
    b = picture({1: 32, 3: 12}, o1=(0, 0, 8, 4), o3=(2, 2, 5, 6))
    edits = [Edit("size", 1), Edit("remove", 2), Edit("add", 3)]
    size, removed, added = label_differences(edits, a, b, "union")
    assert (size.box_a, size.box_b, size.box) == ((0, 0, 4, 2), (0, 0, 8, 4), (0, 0, 8, 4))
    assert (size.visible_px_a, size.visible_px_b, size.visible_fraction_b) == (8, 26, 26 / 32)
    assert (removed.box, removed.box_b, removed.visible_px_b, removed.visible_fraction_b) == ((8, 2, 12, 6), None, 0, 0)
    assert removed.visible_fraction_a == 16 / 20
    assert (added.box, added.box_a, added.visible_px_b) == ((2, 2, 5, 6), None, 12)
    assert [item.box for item in label_differences(edits, a, b, "a")] == [size.box_a, removed.box_a, added.box_b]
    assert [item.box for item in label_differences(edits, a, b, "b")] == [size.box_b, removed.box_a, added.box_b]


def test_a_moved_object_is_two_differences() -> None:
    a, b = picture({1: 8}, o1=(0, 0, 4, 2)), picture({1: 20}, o1=(6, 6, 11, 10), o2=(9, 6, 11, 10))
    left, arrived = label_differences([Edit("move", 1)], a, b, "union")
    assert (left.kind, left.object_id, arrived.kind, arrived.object_id) == ("move", 1, "move", 1)
    assert (left.box_a, left.box_b, left.box) == ((0, 0, 4, 2), None, (0, 0, 4, 2))
    assert (left.visible_px_a, left.visible_px_b, left.visible_fraction_a, left.visible_fraction_b) == (8, 0, 1, 0)
    assert (arrived.box_a, arrived.box_b, arrived.box) == (None, (6, 6, 9, 10), (6, 6, 9, 10))
    assert (arrived.visible_px_a, arrived.visible_px_b, arrived.visible_fraction_b) == (0, 12, 12 / 20)
    for target in ("a", "b"):
        assert [item.box for item in label_differences([Edit("move", 1)], a, b, target)] == [left.box, arrived.box]


def test_the_share_explained_by_hand() -> None:
    image_a = np.full((12, 16, 3), 100, dtype=np.uint8)
    image_b = image_a.copy()
    differences = label_differences([Edit("color", 1)], *[picture({1: 8}, o1=(4, 4, 8, 6))] * 2, "union")
    assert share_explained((image_a, image_b), differences) is None
    image_b[4, 4] = (100, 100, 109)  # in the box
    image_b[3, 3] = 91  # in its margin of one pixel
    image_b[6, 8] = 0  # so too
    image_b[7, 8] = 255  # beyond it
    image_b[0, 0] = 108  # 8 levels are no change
    assert share_explained((image_a, image_b), differences) == 3 / 4
    assert share_explained((image_b, image_a), differences) == 3 / 4
    assert share_explained((image_a, image_b), ()) == 0.0
    moved = label_differences(
        [Edit("move", 1)], picture({1: 1}, o1=(0, 0, 1, 1)), picture({1: 1}, o1=(8, 7, 9, 8)), "b"
    )
    image_b[0, 0] = 0
    assert share_explained((image_a, image_b), moved) == 3 / 5  # (0, 0), (8, 7), and (8, 6) in the margin


def test_the_pixel_floor_scales_with_the_area() -> None:
    assert LabelRules().min_visible_px_at(160, 120) == 50
    assert LabelRules().min_visible_px_at(320, 240) == 200
    assert LabelRules().min_visible_px_at(96, 64) == 16


@pytest.mark.parametrize(
    ("edits", "a", "b", "expected"),
    [
        ([Edit("color", 1)], picture({1: 8}, o1=(0, 0, 4, 2)), picture({1: 8}, o1=(0, 0, 4, 2)), None),
        ([Edit("color", 1)], picture({1: 8}, o1=(0, 0, 4, 2)), picture({1: 7}, o1=(0, 0, 7, 1)), "small_change"),
        ([Edit("color", 1)], picture({1: 17}, o1=(0, 0, 4, 2)), picture({1: 8}, o1=(0, 0, 4, 2)), "covered_change"),
        ([Edit("color", 1)], picture({1: 16}, o1=(0, 0, 4, 2)), picture({1: 8}, o1=(0, 0, 4, 2)), None),
        ([Edit("remove", 1)], picture({1: 0}), picture(), "small_change"),
        (
            [Edit("add", 3)],
            picture(o2=(0, 0, 3, 3)),
            picture({3: 9}, o2=(0, 0, 3, 3), o3=(1, 0, 4, 3)),
            "hidden_by_change",
        ),
        ([Edit("remove", 3)], picture({3: 9}, o3=(0, 0, 3, 3)), picture(o2=(0, 0, 3, 3)), "hidden_by_change"),
        (
            [Edit("remove", 3)],
            picture({3: 9}, o3=(0, 0, 3, 3), o2=(5, 5, 6, 6)),
            picture(o2=(5, 5, 6, 6)),
            "hidden_object",
        ),
        (
            [Edit("color", 1), Edit("color", 3)],
            picture({1: 16, 3: 12}, o1=(0, 0, 4, 4), o3=(6, 0, 9, 4)),
            picture({1: 16, 3: 12}, o1=(0, 0, 4, 4), o3=(6, 0, 9, 4)),
            None,
        ),
        ([], picture(o2=(0, 0, 3, 3)), picture(o2=(0, 0, 3, 3)), None),
        ([], picture(o2=(0, 0, 3, 1)), picture(o2=(0, 0, 3, 1)), "hidden_object"),
        (
            [Edit("move", 1)],
            picture({1: 12}, o1=(0, 0, 3, 4)),
            picture({1: 12}, o1=(0, 1, 3, 5)),
            "overlapping_changes",
        ),
        ([Edit("move", 1)], picture({1: 12}, o1=(0, 0, 3, 4)), picture({1: 12}, o1=(0, 2, 3, 6)), None),
        (  # boxes 4x6 and 4x6, 8 of 40 pixels shared in each picture, but their unions 8x6 and 4x6 share half
            [Edit("shape", 1), Edit("shape", 3)],
            picture({1: 24, 3: 24}, o1=(0, 0, 4, 6), o3=(4, 0, 8, 6)),
            picture({1: 24, 3: 24}, o3=(0, 0, 4, 6), o1=(4, 0, 8, 6)),
            "overlapping_changes",
        ),
    ],
)
def test_each_rule_rejects_by_hand_made_ids(
    edits: list[Edit], a: IdPicture, b: IdPicture, expected: str | None
) -> None:
    ids_a = {2} | {edit.object_id for edit in edits if edit.kind != "add"}
    ids_b = {2} | {edit.object_id for edit in edits if edit.kind != "remove"}
    if 2 not in a.ids and 2 not in b.ids:
        ids_a, ids_b = ids_a - {2}, ids_b - {2}
    assert rejection_by_ids(edits, (ids_a, ids_b), a, b, RULES) == expected


@pytest.mark.parametrize(
    ("kind", "color_b", "expected"),
    [
        ("color", (87, 87, 87), "faint_picture"),
        ("color", (95, 95, 95), "faint_picture"),
        ("color", (173, 35, 35), None),
        ("material", (95, 95, 95), "faint_picture"),
        ("shape", (87, 87, 87), None),
    ],
)
def test_faint_colours_in_the_pictures_are_rejected(kind: Any, color_b: tuple[int, ...], expected: str | None) -> None:
    look = picture({1: 8}, o1=(0, 0, 4, 2))
    image_a = np.full((12, 16, 3), 87, dtype=np.uint8)
    image_b = np.zeros_like(image_a)  # black elsewhere, which must not count
    image_b[look.ids == 1] = color_b
    assert rejection_by_color([Edit(kind, 1)], (image_a, image_b), look, look, LabelRules()) == expected


@pytest.mark.parametrize(
    ("lab_1", "lab_2", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (61, -5, 29), 22.8977),
        ((50, 2.5, 0), (56, -27, -3), 31.9030),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000_equals_the_published_test_data(lab_1: Any, lab_2: Any, expected: float) -> None:
    """Source: table 1 of Sharma, Wu and Dalal (2005)."""
    assert float(ciede2000(np.array(lab_1), np.array(lab_2))) == pytest.approx(expected, abs=5e-5)
    assert float(ciede2000(np.array(lab_2), np.array(lab_1))) == pytest.approx(expected, abs=5e-5)


def test_lab_of_known_colours() -> None:
    known = {(255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20)}
    for srgb, lab in known.items():
        assert srgb_to_lab(np.array(srgb)) == pytest.approx(np.array(lab), abs=0.02)
