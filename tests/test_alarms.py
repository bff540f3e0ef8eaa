"""Alarms: each scripted policy raises exactly its own, and each rule at hand-computed steps."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dig_rl.alarms import RULES, Alarm, AlarmWatch, find_alarms
from dig_rl.answers import summarise_answers
from dig_rl.config import AlarmsConfig, load_config
from dig_rl.errors import AlarmError, ConfigError, NotFiniteError
from dig_rl.metrics import undocumented
from dig_rl.reporting.scripted_policies import POLICIES, Policy, scenes
from tests.test_answers import Box, group_of

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

EXPECTED = {
    "all exact": set(),
    "all, edges off by up to 1 %": set(),
    "all, edges off by up to 2 %": set(),
    "all, edges off by up to 5 %": set(),
    "one exact box, then stop": {"one_box", "count_collapse"},
    "all exact, and one box more": set(),
    "all exact, each written twice": {"duplicates"},
    "one exact box, four times": {"duplicates", "count_collapse"},
    "random boxes, as many as changes": {"format_hacking"},
    "always the same box in the middle": {"one_box", "count_collapse", "same_box", "format_hacking"},
    "the whole image as one box": {"whole_image", "one_box", "count_collapse", "same_box", "format_hacking"},
    "32 boxes, a grid over the image": {"count_collapse", "same_box", "format_hacking"},
    "an empty list": {"count_collapse", "format_hacking"},
}


def _unit(boxes: Sequence[Sequence[int]]) -> list[Box]:
    return [(left / 1000, top / 1000, right / 1000, bottom / 1000) for left, top, right, bottom in boxes]


def lines_of(metric: str, values: list[float | None]) -> list[dict[str, Any]]:
    """One line a value; None: the step cannot show the metric."""
    lines = [{"step": step, "stage": None, metric: value} for step, value in enumerate(values, start=1)]
    return [{key: value for key, value in line.items() if key != metric or value is not None} for line in lines]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_scripted_policies_raise_exactly_their_alarms(policy: Policy) -> None:
    groups = []
    for scene in scenes(10):
        answer = _unit(policy.answer(scene, random.Random(scene.seed)))
        groups.append(group_of(_unit(scene.boxes), answer, answer))
    line = summarise_answers(groups, thinking=False)
    lines = [{"step": step, **line} for step in range(1, 11)]
    assert {alarm.name for alarm in find_alarms(lines, AlarmsConfig())} == EXPECTED[policy.name]


def test_every_rule_has_a_threshold_and_a_documented_metric() -> None:
    thresholds = AlarmsConfig.model_fields.keys() - {"window", "stop", "off"}
    assert {rule.name for rule in RULES} == thresholds
    assert undocumented(rule.metric for rule in RULES) == []


def test_docs_table_is_the_list_of_rules() -> None:
    defaults, expected = AlarmsConfig(), []
    for rule in RULES:
        side = {"above": "at least", "below": "below"}[rule.bad_side]
        share = " of its first window" if rule.is_relative else ""
        threshold = f"{side} {getattr(defaults, rule.name):g}{share}"
        expected.append(f"| {rule.name} | `{rule.metric}` | {threshold} | {rule.sentence} |")
    lines = DOCS.read_text().splitlines()
    assert lines[lines.index("| alarm | metric | threshold | meaning |") + 2 :] == expected


def test_an_alarm_begins_and_ends_with_the_mean_over_the_window() -> None:
    config = AlarmsConfig(window=2, mismatch=1.0)
    lines = lines_of("rollout/mismatch_kl", [3.0, 0.0, None, 0.5, 1.5, 3.0, 0.0, 0.0, 2.0])
    found = find_alarms(lines, config)
    # means from step 2 on, the step without a value left out: 1.5, 0.25, 1.0, 2.25, 1.5, 0.0, 1.0
    spans = [(alarm.first_step, alarm.last_step, alarm.value) for alarm in found]
    assert spans == [(2, 2, 1.5), (5, 7, 1.0), (9, 9, 1.0)]
    assert "rollout/mismatch_kl 1.5, threshold 1" in found[0].describe()


def test_entropy_alarms_are_below_and_thinking_is_compared_with_the_beginning() -> None:
    config = AlarmsConfig(window=1, entropy_collapse=0.5, thinking_collapse=0.1)
    assert [alarm.first_step for alarm in find_alarms(lines_of("learner/entropy", [0.5, 0.49]), config)] == [2]
    (alarm,) = find_alarms(lines_of("answers/thinking_characters", [200.0, 20.0, 19.0]), config)
    assert (alarm.name, alarm.first_step, alarm.threshold) == ("thinking_collapse", 3, 20.0)


def test_watching_line_by_line_tells_each_alarm_once_and_agrees_with_reading_all() -> None:
    config = AlarmsConfig(window=1, no_signal=0.5)
    watch, begun = AlarmWatch(config), []
    lines = lines_of("groups/dropped_frac", [0.0, 0.6, 0.7, 0.0, 0.5])
    for line in lines:
        begun += watch.observe(line)
    assert [(alarm.name, alarm.first_step) for alarm in begun] == [("no_signal", 2), ("no_signal", 5)]
    assert watch.alarms == find_alarms(lines, config)
    assert [isinstance(alarm, Alarm) and alarm.last_step for alarm in watch.alarms] == [3, 5]


def test_what_is_off_is_not_raised_and_unknown_names_are_refused() -> None:
    lines = lines_of("groups/dropped_frac", [1.0] * 10)
    assert len(find_alarms(lines, AlarmsConfig())) == 1
    assert find_alarms(lines, AlarmsConfig(off=("no_signal",))) == []
    for key in ("stop", "off"):
        with pytest.raises(ConfigError, match=rf"alarms\.{key} names 'nosignal'; alarms are count_collapse, dup"):
            load_config([], [f'alarms.{key}=["nosignal"]'])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_an_alarm_at_once_and_enters_no_mean(value: float | None) -> None:
    """None is what `metrics.jsonl` holds for it; the metric need not be one that a rule watches."""
    lines = lines_of("rollout/mismatch_kl", [0.0, 2.0, 2.0])
    lines[1] |= {"rollout/mismatch_kl": value, "learner/kl": value, "learner/loss": 0.5}
    found = find_alarms(lines, AlarmsConfig(window=2, mismatch=1.0))
    assert [(alarm.name, alarm.metric, alarm.first_step, alarm.last_step, alarm.value) for alarm in found] == [
        ("not_finite", "rollout/mismatch_kl, learner/kl", 2, 2, 2),
        ("mismatch", "rollout/mismatch_kl", 3, 3, 1.0),
    ]
    assert "rollout/mismatch_kl, learner/kl 2, threshold 1" in found[0].describe()
    assert not find_alarms(lines, AlarmsConfig(off=("not_finite",)))


def test_one_skipped_update_is_an_alarm_whatever_the_window() -> None:
    (alarm,) = find_alarms(lines_of("learner/skipped_updates", [0.0, 0.0, 1.0, 0.0]), AlarmsConfig())
    assert (alarm.name, alarm.first_step, alarm.last_step) == ("skipped_updates", 3, 3)
    assert not find_alarms(lines_of("learner/skipped_updates", [0.0, 1.0]), AlarmsConfig(skipped_updates=2))


def test_heeding_stops_where_the_config_says_and_where_a_figure_is_not_finite(caplog: Any) -> None:
    AlarmWatch(AlarmsConfig()).heed(1, {"groups/dropped_frac": 1.0, "learner/skipped_updates": 1.0})
    assert "alarm skipped_updates at step 1: DeepSpeed left out updates" in caplog.text
    with pytest.raises(AlarmError, match=r"stopped at step 2 by alarms\.stop: skipped_updates"):
        AlarmWatch(AlarmsConfig(stop=("skipped_updates",))).heed(2, {"learner/skipped_updates": 1.0})
    broken = {"learner/kl": math.nan, "learner/loss": 0.0, "learner/grad_norm": math.inf}
    for config in (AlarmsConfig(), AlarmsConfig(off=("not_finite",)), AlarmsConfig(stop=("not_finite",))):
        with pytest.raises(NotFiniteError, match=r"^learner/kl is nan, learner/grad_norm is inf$"):
            AlarmWatch(config).heed(3, broken)
    with pytest.raises(NotFiniteError, match=r"is inf \(DeepSpeed skipped 2 of the step's updates\)$"):
        AlarmWatch(AlarmsConfig()).heed(3, broken | {"learner/skipped_updates": 2.0})
