"""`make reward-report`: every figure of its tables against the slow reference, and the warnings it must give."""

from __future__ import annotations

import functools
import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from dig_rl.config import RewardConfig, load_config
from dig_rl.reporting.reward_report import SCENES_PER_COUNT, Row, markdown_table, reward_table, three_decimals, warnings
from dig_rl.reporting.scripted_policies import POLICIES, answer, scenes
from launch import reward_report
from launch.terminal import end_with_message
from tests.reward_reference import Box, assigned_ious, brute_force, column_by_column, total_of
from tests.test_scoring import PAPER, PAPER_LITERAL, ROOT, SHIPPED, docs_table

SETTINGS = {"shipped": (SHIPPED, 0.5, True), "paper": (PAPER, 0.5, False), "literal": (PAPER_LITERAL, 0.0, False)}


def boxes_of(text: str) -> list[Box]:
    return [tuple(box) for box in json.loads(text)]


@functools.cache
def slow_facts() -> dict[str, list[tuple[list[Fraction], int, int]]]:
    """For each policy and scene: IoU of each assigned pair, boxes written, changes."""
    facts = {}
    for policy in POLICIES:
        answered = [(boxes_of(answer(policy, scene)), scene.boxes) for scene in scenes(SCENES_PER_COUNT)]
        facts[policy.name] = [
            (assigned_ious(boxes, target) if boxes else [], len(boxes), len(target)) for boxes, target in answered
        ]
    return facts


@functools.cache
def slow_table(setting: str) -> dict[str, list[float]]:
    """Mean total by number of changes, from the reference alone."""
    _, match_iou, over_both = SETTINGS[setting]
    table = {}
    for name, facts in slow_facts().items():
        totals = [total_of(*fact, match_iou, over_both) for fact in facts]
        by_count = [totals[start : start + SCENES_PER_COUNT] for start in range(0, len(totals), SCENES_PER_COUNT)]
        table[name] = [sum(part) / len(part) for part in by_count]
    return table


@functools.cache
def table(setting: str) -> list[Row]:
    return reward_table(SETTINGS[setting][0], ROOT)


@pytest.mark.parametrize("setting", SETTINGS)
def test_table_equals_the_slow_reference(setting: str) -> None:
    assert [row.policy for row in table(setting)] == list(POLICIES)
    for row in table(setting):
        assert row.by_count == pytest.approx(slow_table(setting)[row.policy.name], abs=1e-12)


def test_documented_table_is_that_of_the_slow_reference() -> None:
    expected = {}
    for policy in POLICIES:
        shipped = slow_table("shipped")[policy.name]
        means = [sum(slow_table(setting)[policy.name]) / 4 for setting in SETTINGS]
        expected[policy.name] = [three_decimals(value) for value in (*shipped, *means)]
    assert docs_table("Scripted policies") == expected


def test_reference_for_many_boxes_agrees_with_trying_every_assignment() -> None:
    generator = random.Random(5)
    for _ in range(30):
        costs = [[Fraction(generator.randint(0, 10**6)) for _ in range(6)] for _ in range(generator.randint(1, 4))]
        assert column_by_column(costs) == brute_force(costs)


def test_scenes_hold_one_to_four_boxes_that_do_not_overlap() -> None:
    made = scenes(5)
    assert [len(scene.boxes) for scene in made] == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5
    assert all(
        sum(assigned_ious([box], [other])) == (box == other) for s in made for box in s.boxes for other in s.boxes
    )


def test_every_policy_writes_what_its_name_says() -> None:
    scene = next(scene for scene in scenes(1) if len(scene.boxes) == 4)
    written = {policy.name: boxes_of(answer(policy, scene)) for policy in POLICIES}
    assert written["all exact"] == list(scene.boxes)
    assert written["one exact box, then stop"] == [scene.boxes[0]]
    assert written["all exact, each written twice"] == [*scene.boxes, *scene.boxes]
    assert written["one exact box, four times"] == [scene.boxes[0]] * 4
    assert len(written["random boxes, as many as changes"]) == 4
    grid = written["32 boxes, a grid over the image"]
    assert len(grid) == 32 and sum((b[2] - b[0]) * (b[3] - b[1]) for b in grid) == 1_000_000
    for percent in (1, 2, 5):
        moved = written[f"all, edges off by up to {percent} %"]
        most = max(abs(x - y) for a, b in zip(moved, scene.boxes, strict=True) for x, y in zip(a, b, strict=True))
        assert 0 < most <= 10 * percent


def test_shipped_defaults_pay_no_nonsense() -> None:
    assert warnings(table("shipped")) == []


def test_paper_form_is_warned_about() -> None:
    early, flood = warnings(table("paper"))
    assert early.startswith('"one exact box, then stop" earns 0.730 of 4 changes')
    assert flood.startswith('"32 boxes, a grid over the image" earns 0.259 without looking')


def test_paper_read_literally_pays_whoever_writes_the_right_number() -> None:
    assert '"random boxes, as many as changes" earns 0.574 without looking (more than 0.2)' in warnings(
        table("literal")
    )


@pytest.mark.parametrize(
    ("term", "blind", "extras"), [("answer_format.py:answer_format", 4, 3), ("count_error.py:count_error", 3, 0)]
)
def test_terms_that_ignore_where_boxes_sit_are_warned_about(term: str, blind: int, extras: int) -> None:
    config = RewardConfig.model_validate({"terms": {"only": {"use": f"rewards/{term}", "weight": 1.0}}})
    found = warnings(reward_table(config, ROOT))
    for what, number in (("without looking", blind), ("extras are free", extras), ("precision is not paid", 3)):
        assert sum(what in line for line in found) == number, found


def test_markdown_has_a_row_a_policy() -> None:
    lines = markdown_table(table("shipped")).splitlines()
    assert lines[0] == "| policy | 1 change | 2 changes | 3 changes | 4 changes | mean |"
    assert lines[2] == "| all exact | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |"
    assert len(lines) == 2 + len(POLICIES)


def test_command_writes_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    config = "launch/configs/rewards/paper.toml"
    monkeypatch.setattr("sys.argv", ["reward_report", "--config", config, "--out", str(tmp_path / "out")])
    assert end_with_message(reward_report.main, "") == 0
    printed = capsys.readouterr().out
    assert "stopping early pays" in printed
    assert (tmp_path / "out" / "table.md").read_text() in printed
    with Image.open(tmp_path / "out" / "table.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(("file", "config"), [("paper", PAPER), ("paper_literal", PAPER_LITERAL)])
def test_shipped_reward_configs_are_the_paper_forms(file: str, config: RewardConfig) -> None:
    assert load_config([ROOT / "launch" / "configs" / "rewards" / f"{file}.toml"]).reward == config
