"""Boxes against the pixels that show each object, for pairs whose scenes are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dig_rl.data import Box, PairRecord
from dig_rl.datagen.labels import box_of_mask
from dig_rl.datagen.numpy_renderer import NumpyRenderer
from dig_rl.datagen.renderer import BlenderRenderer
from dig_rl.datagen.scene import scene_from_json

BOX_TOLERANCE_PX = 1.0
"""A box edge may differ by so much: another renderer may see a pixel's centre just beside an outline."""

DrawIds = Callable[[dict[str, Any]], np.ndarray]
"""From a scene as stored in `scenes/*.json` to `[H, W]` object ids, 0 for none."""

IdRendererFactory = Callable[[int, int], DrawIds]
"""From (width, height) in pixels to a drawer of such pictures; called once a process and size, and must pickle."""


def numpy_ids(width: int, height: int) -> DrawIds:
    """Rays cast in this process: quick, and independent of Blender."""
    renderer = NumpyRenderer(width, height, samples=1)
    return lambda scene: renderer.render_ids(scene_from_json(scene))


def blender_ids(width: int, height: int) -> DrawIds:
    """Blender's id pass; its process starts with the first picture and ends with this one."""
    renderer = BlenderRenderer(width, height, samples=1)
    return lambda scene: renderer.render_ids(scene_from_json(scene))


def mask_problems(record: PairRecord, ids_a: np.ndarray, ids_b: np.ndarray) -> Iterator[str]:
    """Where a pair's boxes are not the extent of the object they name.

    Args:
        record: the labels.
        ids_a: `[H, W]` object ids of the reference picture.
        ids_b: `[H, W]` object ids of the changed picture.
    """
    for index, difference in enumerate(record.differences):
        if difference.object_id is None:
            continue
        for side, ids, box in (("a", ids_a, difference.box_a), ("b", ids_b, difference.box_b)):
            drawn = box_of_mask(ids == difference.object_id)
            # A moved object is two differences, each with the box of one picture only.
            if box is None and difference.kind == "move":
                continue
            if not _alike(box, drawn):
                expected = list(drawn) if drawn else "no visible pixel"
                found = list(box) if box else "null"
                where = f"differences.{index}.box_{side}"
                yield f"{where} is {found}, but object {difference.object_id} drawn from the scene has {expected}"


def _alike(box: Box | None, drawn: Box | None) -> bool:
    if box is None or drawn is None:
        return box is drawn
    return all(abs(ours - theirs) <= BOX_TOLERANCE_PX for ours, theirs in zip(box, drawn, strict=True))
