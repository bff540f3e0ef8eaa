"""Made-up pairs, stages and rewards that tests of the curriculum share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dig_rl.curriculum import Curriculum, Stage
from dig_rl.types import Example, RolloutGroup, SampledGroup, Score

BOX = (1.0, 1.0, 9.0, 9.0)

Rewards = Callable[[str, int], tuple[float, ...]]
"""Rewards of a pair's group in a step, by pair id and step."""


def pairs(**count_by_differences: int) -> list[Example]:
    """`pairs(d1=3, d2=2)`: three pairs with one change, two with two."""
    return [
        Example(
            f"{key}-{index}", "/a.png", "/b.png", (96, 64), (BOX,) * int(key[1:]), ("color",) * int(key[1:]), "train"
        )
        for key, count in count_by_differences.items()
        for index in range(count)
    ]


def stage(name: str, fewest: int, most: int, **more: Any) -> Stage:
    return Stage.model_validate({"name": name, "differences": [fewest, most], **more})


STAGES = (stage("single", 1, 1, steps=5), stage("dual", 2, 2, epochs=2), stage("mixed", 1, 4, steps=7))
PAIRS = pairs(d1=7, d2=6, d3=5, d4=4)


def curriculum(prompts_per_step: int = 4, seed: int = 0, examples: list[Example] = PAIRS) -> Curriculum:
    return Curriculum(STAGES, examples, seed=seed, prompts_per_step=prompts_per_step)


def draw(source: Curriculum, num_steps: int | None = None) -> list[tuple[str, list[str]]]:
    """(stage, pair ids) of each step, to the end unless told how many."""
    steps = []
    while not source.finished and (num_steps is None or len(steps) < num_steps):
        name = source.stage.name
        steps.append((name, [example.pair_id for example in source.next_examples()]))
    return steps


def group(example: Example, stage_name: str, *rewards: float | None, f1: float = 0.0) -> RolloutGroup:
    sampled = SampledGroup(example, (1,), (), 0, (96, 64), 0)
    scores = tuple(None if reward is None else Score(reward, {"f1": f1}, "ok") for reward in rewards)
    return RolloutGroup(sampled, scores, stage_name)


def train(source: Curriculum, rewards: Rewards) -> list[tuple[str, list[str]]]:
    """Draw and observe to the end; (stage, pair ids) of each step."""
    steps = []
    while not source.finished:
        steps.append(train_one_step(source, rewards, len(steps)))
    return steps


def train_one_step(source: Curriculum, rewards: Rewards, step: int) -> tuple[str, list[str]]:
    name = source.stage.name
    examples = source.next_examples()
    groups = []
    for example in examples:
        values = rewards(example.pair_id, step)
        groups.append(group(example, name, *values, f1=float(np.mean(values))))
    source.observe(groups)
    return name, [example.pair_id for example in examples]
