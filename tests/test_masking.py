"""The budget of completions that plugins may break on, and what is left of a group."""

from __future__ import annotations

import logging

import pytest

from dig_rl.errors import PluginError
from dig_rl.masking import mask_failures, max_failed
from dig_rl.types import Completion, Example, SampledGroup, Score, ScoreFailure

EXAMPLE = Example("pair", "/a.png", "/b.png", (96, 64), ((1.0, 1.0, 9.0, 9.0),), ("color",), "train")
ONE, BROKEN = Score(1.0, {}, "ok"), ScoreFailure("plugin broke on pair 7")


def group(num: int) -> SampledGroup:
    completions = tuple(Completion((1,), (-1.0,), "", "stop", seed) for seed in range(num))
    return SampledGroup(EXAMPLE, (1,), completions, 0, (96, 64), 0)


@pytest.mark.parametrize(
    ("frac", "sizes", "allowed"),
    [(0.0, [8, 8], 0), (0.1, [8, 8], 1), (0.1, [10, 20], 3), (0.5, [3], 1), (0.999, [4, 4], 7)],
)
def test_budget_is_a_fraction_of_the_step_rounded_down(frac: float, sizes: list[int], allowed: int) -> None:
    assert max_failed([group(size) for size in sizes], frac) == allowed


def test_the_budget_is_the_steps_refills_included() -> None:
    # 8 completions allow 4 failures at a half; 3 broke, and 2 more are sampled in place of a dropped group.
    before = mask_failures([group(8)], [(BROKEN,) * 3 + (ONE,) * 5], stage="dual", max_failed=4)
    assert max_failed([group(2)], 0.5, before) == 2  # of ten completions five, less the three
    assert max_failed([group(1)], 0.5, before) == 1
    spent = mask_failures([group(8)], [(BROKEN,) * 4 + (ONE,) * 4], stage="dual", max_failed=4)
    assert max_failed([group(1)], 0.5, spent) == 0
    with pytest.raises(PluginError, match=r"pair 7; reward\.max_failed_frac allows no more in this step"):
        mask_failures([group(1)], [(BROKEN,)], stage="dual", max_failed=0)


def test_failures_within_the_budget_are_masked_and_told(caplog: pytest.LogCaptureFixture) -> None:
    sampled = [group(2), group(3)]
    with caplog.at_level(logging.WARNING):
        first, second = mask_failures(sampled, [(ONE, ONE), (ONE, BROKEN, BROKEN)], stage="dual", max_failed=2)
    assert first.scores == (ONE, ONE)
    assert second.scores == (ONE, None, None)
    assert [first.sampled, second.sampled] == sampled
    assert {first.stage, second.stage} == {"dual"}
    assert caplog.messages == ["2 completions masked, at most 2 may be: plugin broke on pair 7"]


def test_nothing_is_said_when_nothing_failed(caplog: pytest.LogCaptureFixture) -> None:
    assert mask_failures([group(1)], [(ONE,)], stage="dual", max_failed=0)[0].scores == (ONE,)
    assert caplog.messages == []


def test_failures_of_several_services_together_are_over_the_budget() -> None:
    message = r"plugin broke on pair 7; 2 completions of the step failed, reward\.max_failed_frac allows 1"
    with pytest.raises(PluginError, match=message):
        mask_failures([group(1), group(1)], [(BROKEN,), (BROKEN,)], stage="dual", max_failed=1)


def test_a_group_without_masked_completions_is_itself() -> None:
    (whole,) = mask_failures([group(2)], [(ONE, ONE)], stage="dual", max_failed=0)
    assert whole.without_masked() is whole
