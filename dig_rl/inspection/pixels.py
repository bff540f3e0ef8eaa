"""How the two pictures of a pair differ, and how much of that lies in the labelled boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dig_rl.data import Box, PairRecord

CHANGED_ABOVE = 16
"""A pixel has changed clearly where a channel differs by more than this many of 255 levels: less is mostly soft light
that a change sends over the floor, or the noise of a lossy format."""
GROWN_PX = 1
"""Boxes are grown by this before they explain a pixel: a renderer's pixel filter reaches over an outline."""
THUMBNAIL_SIZE = (16, 12)
"""(width, height) of the pictures that near duplicates are found with."""


@dataclass(frozen=True)
class PixelFigures:
    """Agreement of labels and pixels; shares in [0, 1]."""

    changed: float
    """Clearly changed pixels over all pixels."""
    explained: float | None
    """Clearly changed pixels that lie in a grown box over all clearly changed pixels; None where none has changed."""
    explained_any: float | None
    """The same counting every pixel that differs at all."""
    changed_in_box: tuple[float, ...]
    """Of each difference: clearly changed pixels of its boxes over their pixels."""


def compare_pictures(
    picture_a: np.ndarray, picture_b: np.ndarray, record: PairRecord
) -> tuple[PixelFigures, tuple[int, ...]]:
    """Compare two pictures under the labels.

    Args:
        picture_a: `[H, W, 3]` uint8, reference.
        picture_b: `[H, W, 3]` uint8, changed.
        record: labels whose boxes lie within the pictures.

    Returns:
        The figures, and for each difference the largest change of any channel within its boxes, 0-255.
    """
    change_HW = change_levels(picture_a, picture_b)
    clear = change_HW > CHANGED_ABOVE
    explained = np.zeros(change_HW.shape, dtype=bool)
    shares, largest = [], []
    for difference in record.differences:
        inside = np.zeros(change_HW.shape, dtype=bool)
        for box in (difference.box, difference.box_a, difference.box_b):
            if box is not None:
                inside[pixels_of(box)] = True
                explained[pixels_of(box, GROWN_PX)] = True
        shares.append(float(clear[inside].mean()))
        largest.append(int(change_HW[inside].max()))
    figures = PixelFigures(
        changed=float(clear.mean()),
        explained=_share(clear, explained),
        explained_any=_share(change_HW > 0, explained),
        changed_in_box=tuple(shares),
    )
    return figures, tuple(largest)


def change_levels(picture_a: np.ndarray, picture_b: np.ndarray) -> np.ndarray:
    """`[H, W]` uint8: the largest change of any channel, 0-255, of two `[H, W, 3]` uint8 pictures."""
    return (np.maximum(picture_a, picture_b) - np.minimum(picture_a, picture_b)).max(axis=2)


def pixels_of(box: Box, grown_px: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a box touches, at least one of each."""
    x_min, y_min, x_max, y_max = box
    rows = slice(max(0, int(np.floor(y_min)) - grown_px), int(np.ceil(y_max)) + grown_px)
    columns = slice(max(0, int(np.floor(x_min)) - grown_px), int(np.ceil(x_max)) + grown_px)
    return rows, columns


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """`[12, 16, 3]` uint8 mean colours of `[H, W, 3]`."""
    return np.asarray(Image.fromarray(picture).resize(THUMBNAIL_SIZE, Image.Resampling.BOX))


def _share(changed: np.ndarray, explained: np.ndarray) -> float | None:
    total = int(np.count_nonzero(changed))
    return float(np.count_nonzero(changed & explained) / total) if total else None
