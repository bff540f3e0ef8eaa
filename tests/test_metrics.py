"""Names, reward and rollout figures, and reading them back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dig_rl.errors import DigRlError
from dig_rl.metrics import METRICS, read_metrics, summarise_dropped, summarise_groups, undocumented
from dig_rl.types import Completion, Example, FinishReason, ParseStatus, RolloutGroup, SampledGroup, Score

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def group(
    rewards: list[float],
    *,
    lengths: list[int],
    statuses: list[ParseStatus],
    finish: list[FinishReason],
    prompt_tokens: int,
    cached: int,
) -> RolloutGroup:
    example = Example("p", "/a.png", "/b.png", (96, 64), ((0.0, 0.0, 8.0, 8.0),), ("color",), "train")
    completions = tuple(
        Completion(tuple(range(n)), (-1.0,) * n, "[]", reason, seed=0)
        for n, reason in zip(lengths, finish, strict=True)
    )
    sampled = SampledGroup(
        example=example,
        prompt_token_ids=tuple(range(prompt_tokens)),
        completions=completions,
        policy_version=0,
        num_cached_tokens=cached,
        model_image_size_px=(96, 64),
    )
    scores = tuple(Score(r, {"f1": r / 2}, status) for r, status in zip(rewards, statuses, strict=True))
    return RolloutGroup(sampled, scores, "single")


def test_docs_table_is_the_list_of_metrics() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in METRICS]


def test_undocumented_names_are_found_and_placeholders_match_one_word() -> None:
    names = ["reward/total", "reward/my_term", "memory/learner_gib", "groups/no_signal", "heldout/f1"]
    assert undocumented(names) == []
    assert undocumented(["learner/typo", "memory/learner", "reward/a/b"]) == [
        "learner/typo",
        "memory/learner",
        "reward/a/b",
    ]


def test_summary_of_two_groups_equals_hand_computed_means() -> None:
    groups = [
        group(
            [0.0, 1.0],
            lengths=[2, 4],
            statuses=["malformed", "ok"],
            finish=["length", "stop"],
            prompt_tokens=10,
            cached=8,
        ),
        group(
            [0.5, 0.5],
            lengths=[3, 7],
            statuses=["empty", "ok"],
            finish=["stop", "stop"],
            prompt_tokens=30,
            cached=24,
        ),
    ]
    assert summarise_groups(groups) == pytest.approx(
        {
            "reward/total": 0.5,
            "reward/f1": 0.25,
            "reward/parse_rate": 0.75,
            "reward/group_std": (0.5**0.5 + 0) / 2,  # spread of (0, 1) with ddof 1 is sqrt(1/2)
            "reward/failed_frac": 0.0,
            "rollout/completion_tokens": 4.0,
            "rollout/truncated_frac": 0.25,
            "rollout/cached_token_frac": 32 / 40,
        }
    )
    assert undocumented(summarise_groups(groups)) == []


def test_every_figure_is_a_plain_float_that_json_takes() -> None:
    figures = summarise_groups(
        [group([0.1, 0.2], lengths=[1, 1], statuses=["ok", "ok"], finish=["stop"] * 2, prompt_tokens=4, cached=0)]
    )
    assert {type(value) for value in figures.values()} == {float}
    assert json.loads(json.dumps(figures)) == figures


def test_masked_completions_are_counted_and_not_averaged() -> None:
    options: dict[str, Any] = {"statuses": ["ok"] * 3, "finish": ["stop"] * 3, "prompt_tokens": 4, "cached": 0}
    first, second = (group([0.0, 1.0, 0.5], lengths=[1, 2, 3], **options) for _ in range(2))
    masked = [
        replace(first, scores=(first.scores[0], None, first.scores[2])),
        replace(second, scores=(None, second.scores[1], None)),
    ]
    figures = summarise_groups(masked)
    assert figures["reward/total"] == pytest.approx((0.0 + 0.5 + 1.0) / 3)
    assert figures["reward/f1"] == pytest.approx((0.0 + 0.25 + 0.5) / 3)
    assert figures["reward/failed_frac"] == pytest.approx(3 / 6)
    assert figures["reward/group_std"] == pytest.approx(0.125**0.5)  # of 0 and 1/2; one score has no spread
    assert figures["rollout/completion_tokens"] == 2.0  # masked or not, they were sampled
    assert "reward/group_std" not in summarise_groups(masked[1:])  # nothing to say is not NaN


def test_no_scored_completion_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one scored completion, found none in 0 groups"):
        summarise_groups([])


def test_dropped_groups_are_counted_by_reason() -> None:
    assert summarise_dropped({"no_signal": 3, "masked": 1}, 8) == {
        "groups/no_signal": 3.0,
        "groups/masked": 1.0,
        "groups/dropped_frac": 0.5,
    }
    assert summarise_dropped({}, 8) == {"groups/dropped_frac": 0.0}


def test_reading_leaves_out_a_torn_last_line(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": null}\n{"step": 2, "x')
    assert read_metrics(tmp_path) == [{"step": 1, "x": None}]


@pytest.mark.parametrize("bad", ["not json", "[1]", "{}", '{"step": "1"}', '{"step": null}', "", "[" * 100_000])
def test_a_damaged_line_is_named_with_its_number(tmp_path: Path, bad: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(DigRlError, match=r"metrics\.jsonl line 2: expected a JSON object"):
        read_metrics(tmp_path)
