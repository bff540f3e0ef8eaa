"""Answers to try reward plugins on: ordinary, random, and extreme ones that the reader lets through."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from dig_rl.boxes import assign
from dig_rl.types import RewardInput

Boxes = list[tuple[float, float, float, float]]

_WHOLE = (0.0, 0.0, 1.0, 1.0)
_CORNER = (0.1, 0.2, 0.3, 0.4)
_FOUR: Boxes = [(0.0, 0.0, 0.2, 0.2), (0.8, 0.0, 1.0, 0.2), (0.0, 0.8, 0.2, 1.0), (0.8, 0.8, 1.0, 1.0)]


def input_of(predicted: Boxes, target: Boxes, **fields: Any) -> RewardInput:
    """What a plugin is shown for these boxes, fractions of the sides; other fields as in an everyday run."""
    predicted_unit, target_unit = (np.array(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (predicted, target))
    for boxes in (predicted_unit, target_unit):
        boxes.setflags(write=False)
    everyday: dict[str, Any] = {
        "pair_id": "train-000001",
        "prompt": "Compare the two images and box every change.",
        "completion": str([[round(1000 * side) for side in box] for box in predicted]),
        "status": "ok",
        "predicted_boxes_unit": predicted_unit,
        "target_boxes_unit": target_unit,
        "assignment": assign(predicted_unit, target_unit, 5.0, 2.0),
        "image_size_px": (160, 120),
        "model_image_size_px": (160, 128),
        "finish_reason": "stop",
        "num_tokens": 12 * len(predicted) + 1,
        "metadata": {"kinds": ("color",) * len(target)},
        "step": 1,
        "stage": "single",
    }
    return RewardInput(**everyday | fields)


def ordinary_input() -> RewardInput:
    """Four boxes, each a little off one of four true ones."""
    return input_of([(a + 0.01, b + 0.01, c - 0.02, d - 0.02) for a, b, c, d in _FOUR], _FOUR)


def random_inputs(number: int) -> Iterator[RewardInput]:
    """Always the same answers: 1 to 8 boxes for 1 to 6 changes, half of them near a true box."""
    generator = random.Random(0)
    for index in range(number):
        target = [_random_box(generator) for _ in range(generator.randint(1, 6))]
        predicted = [
            generator.choice(target) if generator.random() < 0.25 else _random_box(generator)
            for _ in range(generator.randint(1, 8))
        ]
        if generator.random() < 0.5:
            predicted[0] = _nudged(generator, target[0])
        yield input_of(predicted, target, pair_id=f"train-{index:06d}", step=index)


def hostile_inputs() -> Iterator[tuple[str, RewardInput]]:
    """Name and answer: the ends of what the reader accepts."""
    sliver = (0.0, 0.0, 1e-160, 1e-160)
    flood: Boxes = [(i / 32, 0.0, (i + 1) / 32, 1.0) for i in range(32)]
    yield "32 copies of one box", input_of([_CORNER] * 32, [_CORNER])
    yield "32 boxes for 32 changes", input_of(flood, flood)
    yield "one box for 100 changes", input_of([_CORNER], _FOUR * 25)
    yield "the whole image", input_of([_WHOLE], [_CORNER])
    yield "a sliver whose area is 1e-320", input_of([sliver], [_CORNER])
    yield "a sliver that is the truth", input_of([sliver], [sliver])
    yield "boxes that only touch", input_of([(0.0, 0.0, 0.5, 1.0)], [(0.5, 0.0, 1.0, 1.0)])
    yield "a malformed box that counts as wrong", input_of([(0.0, 0.0, 0.0, 0.0), _CORNER], [_CORNER, _WHOLE])
    yield "16 KB of text", input_of([_CORNER], [_CORNER], completion="[" * 16_000 + "]" * 384)
    yield "a million characters of thinking", input_of([_CORNER], [_CORNER], completion="x" * 10**6 + "</think>")
    yield "text that is no UTF-8", input_of([_CORNER], [_CORNER], completion="\ud800\x00[[１]]\u202e")
    yield "no text at all", input_of([_CORNER], [_CORNER], completion="", prompt="", num_tokens=0)
    yield "an answer cut at its budget", input_of([_CORNER], [_CORNER], finish_reason="length", num_tokens=4096)
    yield "an image of one pixel", input_of([_WHOLE], [_WHOLE], image_size_px=(1, 1), model_image_size_px=(28, 28))
    yield "no metadata, step 0, no stage", input_of([_CORNER], [_CORNER], metadata={}, step=0, stage="")


def _random_box(generator: random.Random) -> tuple[float, float, float, float]:
    (left, right), (top, bottom) = (sorted(generator.sample(range(1001), 2)) for _ in range(2))
    return left / 1000, top / 1000, right / 1000, bottom / 1000


def _nudged(generator: random.Random, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    shift = generator.uniform(-0.05, 0.05)
    left, right = (min(max(side + shift, 0.0), 1.0) for side in (box[0], box[2]))
    return (left, box[1], right, box[3]) if left < right else box
