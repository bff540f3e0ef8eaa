"""Are boxes written as they are said to be? Each way to read them is held against the pixels that changed.

Boxes of one format often fit the pictures when they are read as another: x, y, width and height as two corners, as long
as the objects are large and near the top left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from dig_rl.boxes import BoxFormat, to_px
from dig_rl.inspection.pixels import pixels_of

FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
CLIPPED_PX = 1.0
"""A box may leave its picture by this much."""
_ENOUGH, _BETTER_BY = 0.6, 0.2
"""Share of the changed pixels that another format must explain, and by how much more than the one that was said."""
_LEAST_DENSITY_RATIO = 0.5
"""Larger boxes explain more whatever they are: the changed share of their area may fall by half at most."""
_LEAST_LIFT = 2.0
"""Where everything changed, large boxes explain much: they must hold twice what their area would by chance."""


@dataclass(frozen=True)
class Agreement:
    """How well the boxes of one pair, read in one format, agree with its pixels; shares in [0, 1]."""

    explained: float = 0.0
    """Clearly changed pixels within boxes over all clearly changed pixels; 0 where the boxes do not fit the picture."""
    density: float = 0.0
    """Clearly changed pixels within boxes over the pixels of the boxes."""
    area: float = 0.0
    """Pixels of the boxes over all pixels."""
    fits: bool = False
    """Every box has an area and lies in the picture."""


def agreements(clear_HW: np.ndarray, values: np.ndarray) -> dict[BoxFormat, Agreement]:
    """Agreement of one pair in every format.

    Args:
        clear_HW: `[H, W]` bool, clearly changed pixels, at least one.
        values: `[N, 4]` boxes as they are written, N at least 1.
    """
    return {name: _agreement(clear_HW, to_px(values, name, clear_HW.shape[::-1])) for name in FORMATS}


def _agreement(clear_HW: np.ndarray, boxes_px: np.ndarray) -> Agreement:
    height, width = clear_HW.shape
    inside = (
        boxes_px[:, :2].min() >= -CLIPPED_PX and (boxes_px[:, 2:] <= (width + CLIPPED_PX, height + CLIPPED_PX)).all()
    )
    clipped = np.clip(boxes_px, 0, (width, height, width, height))
    if not inside or not (clipped[:, 2:] > clipped[:, :2]).all():
        return Agreement()
    covered = np.zeros(clear_HW.shape, dtype=bool)
    for x_min, y_min, x_max, y_max in clipped.tolist():
        covered[pixels_of((x_min, y_min, x_max, y_max))] = True
    hits, pixels = np.count_nonzero(clear_HW & covered), np.count_nonzero(covered)
    return Agreement(hits / np.count_nonzero(clear_HW), hits / pixels, pixels / covered.size, True)


def means(pairs: Sequence[Mapping[BoxFormat, Agreement]]) -> dict[BoxFormat, Agreement]:
    """The agreement of a whole folder; it fits where every pair does."""
    return {
        name: Agreement(
            float(np.mean([pair[name].explained for pair in pairs])),
            float(np.mean([pair[name].density for pair in pairs])),
            float(np.mean([pair[name].area for pair in pairs])),
            all(pair[name].fits for pair in pairs),
        )
        for name in FORMATS
    }


def better_format(pairs: Sequence[Mapping[BoxFormat, Agreement]], said: BoxFormat) -> BoxFormat | None:
    """Another format that the pixels speak for, None where there is none."""
    if not pairs:
        return None
    mean = means(pairs)
    rivals = [name for name in FORMATS if name != said and _beats(mean[name], mean[said])]
    return max(rivals, key=lambda name: _score(mean[name]), default=None)


def best_format(pairs: Sequence[Mapping[BoxFormat, Agreement]]) -> BoxFormat | None:
    """The format to suggest where nothing is said, None where the pixels do not decide."""
    if not pairs:
        return None
    mean = means(pairs)
    first, second = sorted(FORMATS, key=lambda name: -_score(mean[name]))[:2]
    clear = _score(mean[first]) > 1.1 * _score(mean[second]) and mean[first].explained >= mean[first].area * _LEAST_LIFT
    return first if mean[first].fits and clear else None


def shares_in_words(pairs: Sequence[Mapping[BoxFormat, Agreement]], names: Sequence[BoxFormat] = FORMATS) -> str:
    """What share of the changed pixels the boxes hold in each format, for a message."""
    mean = means(pairs)
    shown = sorted((name for name in names if mean[name].fits), key=lambda name: -mean[name].explained)
    parts = [f"{mean[name].explained:.0%} as {name}" for name in shown]
    rest = [name for name in names if name not in shown]
    parts += [f"not all fit the pictures as {', '.join(rest)}"] if rest else []
    return f"of the clearly changed pixels of {len(pairs)} pairs the boxes hold {', '.join(parts)}"


def _beats(rival: Agreement, said: Agreement) -> bool:
    return (
        rival.fits
        and rival.explained >= max(_ENOUGH, said.explained + _BETTER_BY)
        and rival.density >= said.density * _LEAST_DENSITY_RATIO
        and rival.explained >= rival.area * _LEAST_LIFT
    )


def _score(agreement: Agreement) -> float:
    """Harmonic mean of the two shares: boxes hold the changes, and little else."""
    total = agreement.explained + agreement.density
    return 2 * agreement.explained * agreement.density / total if total and agreement.fits else 0.0
