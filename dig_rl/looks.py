"""Looks of a pair: its images swapped, mirrored, or with their colour channels reordered; the labels stay true.

A policy that sees a few hundred pairs many times remembers them; a pair with another look has to be looked at again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Literal

import numpy as np

from dig_rl.types import Example, Look

LookKind = Literal["swap", "mirror", "recolor"]

_SEED_WORD = 0x100C5
"""Sets these draws apart from others that start from the same run seed."""
_CHANNEL_ORDERS = tuple(permutations(range(3)))
_SWAPPED_KINDS = {"add": "remove", "remove": "add"}


def draw_look(rng: np.random.Generator, kinds: Collection[LookKind]) -> Look:
    """Each kind with probability 1/2, channels then in any of their six orders."""
    swap, mirror, recolor = rng.random(3) < 0.5
    order = _CHANNEL_ORDERS[int(rng.integers(len(_CHANNEL_ORDERS)))]
    return Look(
        swap=bool(swap) and "swap" in kinds,
        mirror=bool(mirror) and "mirror" in kinds,
        channels=order if recolor and "recolor" in kinds else Look().channels,
    )


def with_looks(examples: Sequence[Example], kinds: Collection[LookKind], *, seed: int, step: int) -> list[Example]:
    """Give every pair of a step a random look, which (seed, step, pair) fixes.

    Args:
        examples: pairs whose answers name the union of both images (`box_target`), as swapping asks for.
        kinds: what may be done to them; nothing leaves them as they are.
        seed: of the run.
        step: finished steps before this one.
    """
    if not kinds:
        return list(examples)
    return [with_look(example, draw_look(_generator(seed, step, example.pair_id), kinds)) for example in examples]


def with_look(example: Example, look: Look) -> Example:
    """The pair with its labels as they are under a look; whoever opens its images applies the look to them."""
    boxes, width = example.target_boxes_px, example.image_size_px[0]
    if look.mirror:
        boxes = tuple((width - x_max, y_min, width - x_min, y_max) for x_min, y_min, x_max, y_max in boxes)
    kinds = tuple(_SWAPPED_KINDS.get(kind, kind) for kind in example.kinds) if look.swap else example.kinds
    return replace(example, target_boxes_px=boxes, kinds=kinds, look=look)


def apply_look(images: np.ndarray, look: Look) -> np.ndarray:
    """Both images of a pair `[2, H, W, 3]` under a look; a view where possible."""
    if look.swap:
        images = images[::-1]
    if look.mirror:
        images = images[:, :, ::-1]
    return images[..., look.channels] if look.channels != Look().channels else images


def _generator(seed: int, step: int, pair_id: str) -> np.random.Generator:
    return np.random.default_rng([_SEED_WORD, seed, step, *pair_id.encode()])
