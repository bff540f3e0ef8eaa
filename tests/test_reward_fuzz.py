"""Whatever a policy writes: no exception, a total in [0, 1], and at most 5 ms of CPU time."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from dig_rl.scoring import Scorer
from dig_rl.types import Score
from tests.test_scoring import CORNERS, EXACT, ROOT, SHIPPED, answer, group_of, random_boxes

LIMIT_S = 0.005
NUM_TRIES = 30
LOOP_S = 0.0008
"""CPU seconds of `loop_seconds` on the machine that the limit was set on."""
TARGET = [EXACT, *CORNERS[:3]]

PIECES = [
    *'[]{},: -.\n"\\',
    "[[1, 2, 3, 4]]",
    "100, ",
    "[100, 200, 300, 400], ",
    '{"bbox_2d":',
    '{"bbox_2d": [1, 2, 3, 4], "label": "a"}, ',
    "NaN",
    "1e400",
    "-0.0",
    "true",
    "</think>",
    "```json\n",
    "{'boxes': ",
    "{boxes: ",
    "１",
    "\ud800",
    "\x00",
]


def damaged(generator: random.Random) -> str:
    text = answer(*random_boxes(generator, generator.randint(0, 5)))
    for _ in range(generator.randrange(4)):
        position = generator.randrange(len(text))
        text = text[:position] + generator.choice(PIECES) + text[position + generator.randrange(3) :]
    return text


def soup(generator: random.Random) -> str:
    return "".join(generator.choices(PIECES, k=generator.randrange(25)))


def long_soup(generator: random.Random) -> str:
    few = generator.sample(PIECES, generator.randint(1, 4))
    length = 2 * SHIPPED.max_answer_characters // max(map(len, few))
    return "".join(generator.choices(few, k=generator.randrange(length)))


def crowded(generator: random.Random) -> str:
    return answer(*random_boxes(generator, generator.randint(20, 33)))


def after_thought(generator: random.Random) -> str:
    return long_soup(generator) + "</think>" + damaged(generator)


def completion(generator: random.Random) -> str:
    kind = generator.choices([damaged, soup, crowded, after_thought, long_soup], weights=[50, 44, 4, 1, 1])[0]
    return kind(generator)


def is_in_time(seconds: float) -> bool:
    """Whether within the limit, of which a slower machine has more."""
    return seconds <= LIMIT_S or seconds <= LIMIT_S * min(loop_seconds() for _ in range(NUM_TRIES)) / LOOP_S


def loop_seconds() -> float:
    """CPU seconds of a piece of plain Python that tells how fast the machine is."""
    started = time.thread_time()
    sum(index & 7 for index in range(20_000))
    return time.thread_time() - started


def score_in_time(scorer: Scorer, text: str) -> tuple[Score, float]:
    """Score, and CPU seconds: the best of many tries where the first took too long, since other work slows a core."""
    group = group_of([text], TARGET)
    seconds = []
    while len(seconds) < NUM_TRIES and min(seconds, default=1.0) > LIMIT_S:
        started = time.thread_time()
        (score,) = scorer.score(group, step=0, stage="")
        seconds.append(time.thread_time() - started)
    return score, min(seconds)


@pytest.mark.parametrize(
    "number",
    [20_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
)
def test_generated_completions_are_scored_in_range_and_in_time(number: int) -> None:
    generator = random.Random(number)
    scorers = [
        Scorer(SHIPPED, root=ROOT, thinking=False, frame="norm1000", prompt=""),
        Scorer(SHIPPED, root=ROOT, thinking=True, frame="absolute_px", prompt=""),
        Scorer(
            SHIPPED.model_copy(update={"count_malformed_boxes": True}),
            root=ROOT,
            thinking=False,
            frame="norm1000",
            prompt="",
        ),
    ]
    statuses: Counter[str] = Counter()
    paid = 0
    for index in range(number):
        text = completion(generator)
        score, seconds = score_in_time(scorers[index % 3], text)
        assert 0.0 <= score.total <= 1.0, text
        assert all(0.0 <= value <= 1.0 for value in score.terms.values()), text
        assert is_in_time(seconds), text
        statuses[score.status] += 1
        paid += score.total > 0
    assert statuses.keys() == {"ok", "empty", "malformed", "too_long", "too_many", "unfinished_thinking"}
    assert paid > number // 10


@pytest.mark.parametrize(
    "piece",
    ["[", "[]", "[[", "[[],", '"', '["', '[\\"', "{", '{"', "[ ", "]", "[1,", "[[1,2,3,4]]", "{a", "{a:}", "[{a:"],
)
@pytest.mark.parametrize("around", ["{}", "[{}]", "[[1, 2, 3, 4]] {}"])
def test_the_longest_answer_of_one_piece_is_read_in_time(piece: str, around: str) -> None:
    scorer = Scorer(SHIPPED, root=ROOT, thinking=False, frame="norm1000", prompt="")
    text = around.format(piece * ((SHIPPED.max_answer_characters - 20) // len(piece)))
    score, seconds = score_in_time(scorer, text)
    assert score.status != "too_long"
    assert is_in_time(seconds)
