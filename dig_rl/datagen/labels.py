"""Labels and rejections, both read from object-id pictures: exact visible pixels instead of projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dig_rl.boxes import iou_matrix
from dig_rl.data import Box, BoxTarget, DifferenceRecord, target_box
from dig_rl.datagen.color_difference import ciede2000, srgb_to_lab
from dig_rl.datagen.edits import Edit
from dig_rl.datagen.foresight import foreseen_color_difference
from dig_rl.datagen.recipe import LabelRules
from dig_rl.datagen.scene import Scene

SURFACE_KINDS = ("color", "material")
"""Kinds of change that keep the outline, so that only the colours tell."""

CHANGED_LEVELS = 8
"""A pixel has changed when a channel differs by more than this many of 255 levels."""

Rejection = Literal[
    "no_room",
    "hidden_object",
    "small_change",
    "covered_change",
    "hidden_by_change",
    "overlapping_changes",
    "faint_change",
    "faint_picture",
]
"""Why a sampled pair was thrown away; docs/data.md says what each means."""


@dataclass(frozen=True)
class IdPicture:
    """What a renderer's id pass saw of one scene."""

    ids: np.ndarray
    """`[H, W]` uint8: id of the object seen through each pixel's centre, 0 for none."""
    alone_px: Mapping[int, int]
    """Pixels that each changed object of this scene covers when it is drawn alone."""

    def visible_px(self, object_id: int) -> int:
        """Pixels that show the object."""
        return int(np.count_nonzero(self.ids == object_id))

    def visible_fraction(self, object_id: int) -> float:
        """Visible part of a changed object, in [0, 1]; 0 when it lies outside the picture."""
        alone = self.alone_px[object_id]
        return self.visible_px(object_id) / alone if alone else 0.0

    def visible_ids(self, min_px: float) -> set[int]:
        """Ids of the objects that show at least `min_px` pixels."""
        found, counts = np.unique(self.ids[self.ids > 0], return_counts=True)
        return {int(object_id) for object_id, count in zip(found, counts, strict=True) if count >= min_px}


def box_of_mask(mask: np.ndarray) -> Box | None:
    """Tightest box around the true pixels of `[H, W]`: pixels, xyxy, half-open; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def label_differences(
    edits: Sequence[Edit], picture_a: IdPicture, picture_b: IdPicture, box_target: BoxTarget
) -> tuple[DifferenceRecord, ...]:
    """Boxes and visibility of each edit, in the order of `edits`; every edited object must be visible where it is.

    A moved object gives two differences: where it was, absent in the changed picture, and where it is, absent in the
    reference.
    """
    differences: list[DifferenceRecord] = []
    for edit in edits:
        sides = ((picture_a, None), (None, picture_b)) if edit.kind == "move" else ((picture_a, picture_b),)
        differences += [_label(edit, seen_a, seen_b, box_target) for seen_a, seen_b in sides]
    return tuple(differences)


def rejection_by_ids(
    edits: Sequence[Edit],
    object_ids: tuple[set[int], set[int]],
    picture_a: IdPicture,
    picture_b: IdPicture,
    rules: LabelRules,
) -> Rejection | None:
    """Decide from both id pictures whether a pair must be sampled again.

    Args:
        edits: the changes between the scenes.
        object_ids: ids of all objects of the reference and of the changed scene.
        picture_a: id picture of the reference scene.
        picture_b: id picture of the changed scene.
        rules: the thresholds.

    Returns:
        The first rule broken, or None for a good pair.
    """
    height, width = picture_a.ids.shape
    min_px = rules.min_visible_px_at(width, height)
    shown_a, shown_b = picture_a.visible_ids(min_px), picture_b.visible_ids(min_px)
    changed = {edit.object_id for edit in edits}
    ids_a, ids_b = object_ids
    if changed & ids_a - shown_a or changed & ids_b - shown_b:
        return "small_change"
    fractions = [picture.visible_fraction(item) for picture in (picture_a, picture_b) for item in picture.alone_px]
    if any(fraction < rules.min_visible_fraction for fraction in fractions):
        return "covered_change"
    unchanged = ids_a - changed
    if unchanged & (shown_a ^ shown_b):
        return "hidden_by_change"
    if unchanged - shown_a:
        return "hidden_object"
    boxes = np.array([item.box for item in label_differences(edits, picture_a, picture_b, "union")]).reshape(-1, 4)
    overlap = np.triu(iou_matrix(boxes, boxes), k=1)
    return "overlapping_changes" if (overlap >= rules.max_box_iou).any() else None


def rejection_by_foresight(
    edits: Sequence[Edit], scenes: tuple[Scene, Scene], image_size_px: tuple[int, int], rules: LabelRules
) -> Rejection | None:
    """Decide before any picture whether every recoloured or resurfaced object will look different enough.

    The margin covers what the foresight leaves out; `rejection_by_color` has the last word.
    """
    for edit in edits:
        if edit.kind in SURFACE_KINDS:
            difference = foreseen_color_difference(scenes, edit.object_id, image_size_px)
            if difference < rules.foresight_margin * rules.min_color_difference:
                return "faint_change"
    return None


def rejection_by_color(
    edits: Sequence[Edit],
    images: tuple[np.ndarray, np.ndarray],
    picture_a: IdPicture,
    picture_b: IdPicture,
    rules: LabelRules,
) -> Rejection | None:
    """Make sure in the finished pictures that every recoloured or resurfaced object looks different enough.

    The difference is the mean CIEDE2000 over the pixels that show the object in both pictures.

    Args:
        edits: the changes between the scenes.
        images: both pictures, `[H, W, 3]` uint8 sRGB.
        picture_a: id picture of the reference scene.
        picture_b: id picture of the changed scene.
        rules: the thresholds.
    """
    for edit in edits:
        if edit.kind in SURFACE_KINDS:
            mask = (picture_a.ids == edit.object_id) & (picture_b.ids == edit.object_id)
            seen = [srgb_to_lab(image[mask]) for image in images]
            if mask.any() and ciede2000(*seen).mean() < rules.min_color_difference:
                return "faint_picture"
    return None


def share_explained(images: tuple[np.ndarray, np.ndarray], differences: Sequence[DifferenceRecord]) -> float | None:
    """Share of the changed pixels that lie in a label's box in either picture, grown by one pixel.

    The rest is light that the changes move: shadows, reflections, bounced colour.

    Args:
        images: both pictures, `[H, W, 3]` uint8 sRGB.
        differences: the labels.

    Returns:
        A share in [0, 1], or None when no pixel has changed.
    """
    image_a, image_b = (image.astype(np.int16) for image in images)
    changed = np.abs(image_a - image_b).max(axis=2) > CHANGED_LEVELS
    if not changed.any():
        return None
    labelled = np.zeros(changed.shape, dtype=bool)
    for difference in differences:
        for box in (difference.box_a, difference.box_b):
            if box is not None:
                x0, y0, x1, y1 = (int(edge) for edge in box)
                labelled[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = True
    return float((changed & labelled).sum() / changed.sum())


def _label(
    edit: Edit, picture_a: IdPicture | None, picture_b: IdPicture | None, box_target: BoxTarget
) -> DifferenceRecord:
    box_a, visible_px_a, fraction_a = _seen(picture_a, edit.object_id)
    box_b, visible_px_b, fraction_b = _seen(picture_b, edit.object_id)
    return DifferenceRecord(
        kind=edit.kind,
        object_id=edit.object_id,
        box=target_box(box_a, box_b, box_target),
        box_a=box_a,
        box_b=box_b,
        visible_px_a=visible_px_a,
        visible_px_b=visible_px_b,
        visible_fraction_a=fraction_a,
        visible_fraction_b=fraction_b,
    )


def _seen(picture: IdPicture | None, object_id: int) -> tuple[Box | None, int, float]:
    """Box, visible pixels and visible fraction of an object; nothing where it is absent."""
    box = None if picture is None else box_of_mask(picture.ids == object_id)
    if picture is None or box is None:
        return None, 0, 0.0
    return box, picture.visible_px(object_id), picture.visible_fraction(object_id)
