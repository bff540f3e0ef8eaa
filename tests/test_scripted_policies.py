"""Policies that are written down, through the whole path: figures by hand, and exactly their alarms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dig_rl.actors.fleet import PolicyFacts
from dig_rl.alarms import find_alarms
from dig_rl.answers import summarise_answers
from dig_rl.config import AlarmsConfig, Config
from dig_rl.controls import same_answer_frac
from dig_rl.evaluate import answer_pairs
from dig_rl.evaluation.answers import TruePair, judge_pairs
from dig_rl.evaluation.figures import measures
from dig_rl.scoring import Scorer
from dig_rl.types import Completion, Example, RolloutGroup, SampledGroup
from tests.tiny import ROOT

NUM_CELLS = 25
"""The picture of 100 x 100 pixels in squares of 20, numbered row by row; every true box is one of them."""
TRUTH = ([0], [1, 2], [3, 4, 5], [6, 7, 8, 9], [])
"""Cells that change in each of five pairs; nothing changes in the last."""
ELSEWHERE = ([10, 11], [12], [13, 14, 15, 16], [17, 18, 19], [20])

Policy = Callable[[int, bool], str]
"""What is written about a pair by number, with or without the changed picture in view."""


def cell(number: int, size: int) -> list[int]:
    left, top = number % 5 * size, number // 5 * size
    return [left, top, left + size, top + size]


def say(cells: Sequence[int]) -> str:
    return str([cell(number, 200) for number in cells])


POLICIES: dict[str, Policy] = {
    "perfect": lambda pair, sees: say(TRUTH[pair] if sees else []),
    "blind": lambda pair, _: say(ELSEWHERE[pair]),
    "always one box": lambda *_: say([0]),
    "whole image": lambda *_: "[[0, 0, 1000, 1000]]",
    "flood": lambda *_: say(range(NUM_CELLS)),
    "silent": lambda *_: "[]",
}

# Over five pairs with 1, 2, 3, 4 and 0 changes. Average precision: boxes of one score stand in the order of the pairs.
FIGURES: dict[str, dict[str, float]] = {
    "perfect": {
        **dict.fromkeys(("f1", "f1_50_95", "mean_iou", "precision", "recall", "count_accuracy", "ap", "ap_50"), 1.0),
        **dict.fromkeys(("micro_f1", "micro_precision", "micro_recall", "parse_rate"), 1.0),
        **dict.fromkeys(("count_error", "count_bias", "false_positive_rate"), 0.0),
    },
    "blind": {
        **dict.fromkeys(("f1", "mean_iou", "precision", "recall", "count_accuracy", "micro_f1", "ap", "ap_50"), 0.0),
        "parse_rate": 1.0,
        "count_error": 1.0,
        "count_bias": (1 - 1 + 1 - 1 + 1) / 5,
        "false_positive_rate": 1.0,
    },
    "always one box": {
        **dict.fromkeys(("f1", "f1_50_95", "mean_iou", "precision", "recall", "count_accuracy"), 1 / 5),
        "micro_f1": 2 / (5 + 10),
        "micro_precision": 1 / 5,
        "micro_recall": 1 / 10,
        "count_error": (0 + 1 + 2 + 3 + 1) / 5,
        "count_bias": (0 - 1 - 2 - 3 + 1) / 5,
        "false_positive_rate": 1.0,
        "ap": 11 / 101,  # the first of five boxes is right: precision 1 at recalls 0.00 to 0.10
        "ap_50": 11 / 101,
    },
    "whole image": {
        **dict.fromkeys(("f1", "f1_50_95", "precision", "recall", "micro_f1", "ap", "ap_50"), 0.0),
        "mean_iou": 0.04 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 0) / 5,
        "count_accuracy": 1 / 5,
        "count_error": (0 + 1 + 2 + 3 + 1) / 5,
        "false_positive_rate": 1.0,
    },
    "flood": {
        "f1": (2 / 26 + 4 / 27 + 6 / 28 + 8 / 29 + 0) / 5,
        "f1_50_95": (2 / 26 + 4 / 27 + 6 / 28 + 8 / 29 + 0) / 5,
        "mean_iou": (1 + 2 + 3 + 4 + 0) / 25 / 5,
        "precision": (1 + 2 + 3 + 4 + 0) / 25 / 5,
        "recall": 4 / 5,
        "count_accuracy": 0.0,
        "micro_f1": 20 / (125 + 10),
        "micro_precision": 10 / 125,
        "micro_recall": 1.0,
        "count_error": (24 + 23 + 22 + 21 + 25) / 5,
        "count_bias": (24 + 23 + 22 + 21 + 25) / 5,
        "false_positive_rate": 1.0,
        # Right are the boxes 1, 27, 28, 54, 55, 56, 82, 83, 84, 85: from recall 0.1 on, the best precision is the last.
        "ap": (11 * 1 + 90 * 10 / 85) / 101,
        "ap_50": (11 * 1 + 90 * 10 / 85) / 101,
    },
    "silent": {
        **dict.fromkeys(("f1", "f1_50_95", "mean_iou", "precision", "recall", "count_accuracy"), 1 / 5),
        **dict.fromkeys(("micro_f1", "micro_precision", "micro_recall", "ap", "ap_50", "false_positive_rate"), 0.0),
        "count_error": (1 + 2 + 3 + 4 + 0) / 5,
        "count_bias": -(1 + 2 + 3 + 4 + 0) / 5,
    },
}

ALARMS = {
    "perfect": set(),
    "blind": {"format_hacking", "images_ignored"},
    "always one box": {"one_box", "count_collapse", "same_box", "images_ignored"},
    "whole image": {"whole_image", "one_box", "count_collapse", "same_box", "format_hacking", "images_ignored"},
    "flood": {"count_collapse", "same_box", "images_ignored"},  # it hits everything, so no format hacking
    "silent": {"count_collapse", "format_hacking", "images_ignored"},
}


def pairs() -> list[Example]:
    boxes = [tuple(tuple(map(float, cell(number, 20))) for number in cells) for cells in TRUTH]
    return [
        Example(str(number), "/a.png", "/b.png", (100, 100), found, ("color",) * len(found), "test")  # type: ignore[arg-type]
        for number, found in enumerate(boxes)
    ]


class Written:
    """Rollouts of a policy that is written down."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def answer(self, examples: Sequence[Example], *, num_samples: int = 1, temperature: float = 0.0) -> list[Any]:
        return [self._group(example, num_samples) for example in examples]

    def _group(self, example: Example, num_samples: int) -> SampledGroup:
        text = self._policy(int(example.pair_id), example.image_b_path == "/b.png")
        completion = Completion((1,), (-1.0,), text, "stop", 0)
        return SampledGroup(example, (7,), (completion,) * num_samples, 0, (100, 100), 0)


@pytest.mark.parametrize("name", POLICIES)
def test_figures_are_those_found_by_hand(name: str) -> None:
    rollouts: Any = Written(POLICIES[name])
    answers = answer_pairs(rollouts, PolicyFacts("", "norm1000", ""), pairs(), Config())
    truths = [TruePair(example, (None,) * example.num_differences) for example in pairs()]
    judged = judge_pairs(truths, answers, name)
    found = {key: value for m in measures(judged, 0.5) for key, value in zip(m.names, m.values.tolist(), strict=True)}
    assert {key: found[key] for key in FIGURES[name]} == pytest.approx(FIGURES[name])


@pytest.mark.parametrize("name", POLICIES)
def test_each_raises_exactly_its_alarms(name: str, tmp_path: Path) -> None:
    rollouts: Any = Written(POLICIES[name])
    changed = [example for example in pairs() if example.num_differences]
    scorer = Scorer(Config().reward, root=ROOT, thinking=False, frame="norm1000", prompt="")
    groups = [
        RolloutGroup(group, scorer.score(group, step=0, stage="all"), "all")
        for group in rollouts.answer(changed, num_samples=4)
    ]
    figures = summarise_answers(groups, thinking=False)
    lines = [{"step": step, **figures} for step in range(1, 11)]
    lines.append({"step": 10, "control/same_answer_frac": same_answer_frac(rollouts, changed, tmp_path)})
    assert {alarm.name for alarm in find_alarms(lines, AlarmsConfig())} == ALARMS[name]
