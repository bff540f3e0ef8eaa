"""The control with a blank second image, against policies that look and policies that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dig_rl.controls import NUM_PAIRS, same_answer_frac
from dig_rl.types import Completion, Example, SampledGroup


class Answers:
    """Rollouts whose answer is a function of the changed image's path."""

    def __init__(self, policy: Callable[[str], str]) -> None:
        self._policy = policy
        self.asked: list[Example] = []

    def answer(self, examples: Sequence[Example]) -> list[SampledGroup]:
        self.asked += examples
        return [
            SampledGroup(
                example, (), (Completion((), (), self._policy(example.image_b_path), "stop", 0),), 0, (8, 8), 0
            )
            for example in examples
        ]


def pairs(count: int, num_differences: int = 1) -> list[Example]:
    boxes = ((0.0, 0.0, 4.0, 4.0),) * num_differences
    return [
        Example(f"p{index}", "/a.png", f"/b{index}.png", (8, 6), boxes, ("color",) * num_differences, "test")
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (lambda path: "[]", 1.0),
        (lambda path: path, 0.0),
        (lambda path: "gray" if path in ("/b0.png", "/b1.png", "/b2.png") else "other", 0.25),
    ],
)
def test_share_of_answers_that_stay_the_same(tmp_path: Path, policy: Callable[[str], str], expected: float) -> None:
    rollouts: Any = Answers(policy)
    assert same_answer_frac(rollouts, pairs(4), tmp_path / "controls") == expected
    blank = rollouts.asked[4]
    assert blank.image_a_path == "/a.png"
    with Image.open(blank.image_b_path) as image:
        assert image.size == (8, 6)
        assert image.getcolors() == [(48, (128, 128, 128))]


def test_pairs_without_changes_are_not_asked_about_and_others_only_up_to_a_number(tmp_path: Path) -> None:
    rollouts: Any = Answers(lambda path: "[]")
    same_answer_frac(rollouts, pairs(3, num_differences=0) + pairs(NUM_PAIRS + 5), tmp_path)
    assert len(rollouts.asked) == 2 * NUM_PAIRS
    assert {example.num_differences for example in rollouts.asked} == {1}
