"""Scripted policies on made-up scenes: what a reward pays to those who look, and to those who do not.

Scenes and policies follow from fixed seeds, so the same reward gives the same table.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

Box = tuple[int, int, int, int]
"""xyxy in thousandths of each side."""

Kind = Literal["right", "near", "partial", "padded", "blind"]
"""Whether a policy answers well, sits a little off, leaves out, adds, or does not look at the images."""

MAX_CHANGES = 4
_SIDE = 1000
_SHORTEST, _LONGEST = 80, 300
_FLOOD = 32


class Scene(NamedTuple):
    """One pair's true boxes, none of which overlap."""

    boxes: tuple[Box, ...]
    seed: int
    """For what a policy draws on this scene."""


class Policy(NamedTuple):
    """A way of answering."""

    name: str
    kind: Kind
    answer: Callable[[Scene, random.Random], list[Box]]


def scenes(per_count: int) -> list[Scene]:
    """`per_count` scenes with 1 change, as many with 2, and so on up to `MAX_CHANGES`."""
    generator = random.Random(0)
    made: list[Scene] = []
    for count in range(1, MAX_CHANGES + 1):
        for _ in range(per_count):
            made.append(Scene(_apart(generator, count), len(made)))
    return made


def answer(policy: Policy, scene: Scene) -> str:
    """What the policy writes."""
    return str([list(box) for box in policy.answer(scene, random.Random(scene.seed))])


def _apart(generator: random.Random, count: int) -> tuple[Box, ...]:
    boxes: list[Box] = []
    while len(boxes) < count:
        box = _random_box(generator)
        if not any(_overlap(box, other) for other in boxes):
            boxes.append(box)
    return tuple(boxes)


def _random_box(generator: random.Random) -> Box:
    width, height = (generator.randint(_SHORTEST, _LONGEST) for _ in range(2))
    left, top = generator.randint(0, _SIDE - width), generator.randint(0, _SIDE - height)
    return left, top, left + width, top + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _jittered(percent: int) -> Callable[[Scene, random.Random], list[Box]]:
    """Every edge moved by up to so many percent of the image side."""
    reach = _SIDE * percent // 100

    def moved(edge: int, generator: random.Random) -> int:
        return min(max(edge + generator.randint(-reach, reach), 0), _SIDE)

    def draw(box: Box, generator: random.Random) -> Box:
        left, top, right, bottom = (moved(edge, generator) for edge in box)
        return (left, top, right, bottom) if left < right and top < bottom else draw(box, generator)

    return lambda scene, generator: [draw(box, generator) for box in scene.boxes]


def _random_boxes(scene: Scene, generator: random.Random) -> list[Box]:
    return [_random_box(generator) for _ in scene.boxes]


def _grid(_scene: Scene, _generator: random.Random) -> list[Box]:
    columns = math.isqrt(_FLOOD // 2) * 2
    rows = _FLOOD // columns
    x_edges = [_SIDE * column // columns for column in range(columns + 1)]
    y_edges = [_SIDE * row // rows for row in range(rows + 1)]
    return [
        (x_edges[column], y_edges[row], x_edges[column + 1], y_edges[row + 1])
        for row in range(rows)
        for column in range(columns)
    ]


POLICIES = (
    Policy("all exact", "right", lambda scene, _: list(scene.boxes)),
    Policy("all, edges off by up to 1 %", "near", _jittered(1)),
    Policy("all, edges off by up to 2 %", "near", _jittered(2)),
    Policy("all, edges off by up to 5 %", "near", _jittered(5)),
    Policy("one exact box, then stop", "partial", lambda scene, _: [scene.boxes[0]]),
    Policy("all exact, and one box more", "padded", lambda scene, draw: [*scene.boxes, _random_box(draw)]),
    Policy("all exact, each written twice", "padded", lambda scene, _: [*scene.boxes, *scene.boxes]),
    Policy("one exact box, four times", "padded", lambda scene, _: [scene.boxes[0]] * 4),
    Policy("random boxes, as many as changes", "blind", _random_boxes),
    Policy("always the same box in the middle", "blind", lambda *_: [(400, 400, 600, 600)]),
    Policy("the whole image as one box", "blind", lambda *_: [(0, 0, _SIDE, _SIDE)]),
    Policy("32 boxes, a grid over the image", "blind", _grid),
    Policy("an empty list", "blind", lambda *_: []),
)
