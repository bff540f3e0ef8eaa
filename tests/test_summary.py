"""`summary.json` has the agreed shape, honest sums, and survives a continued run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from dig_rl.errors import DigRlError
from dig_rl.summary import Summary, read_summary, summarise_stages
from dig_rl.tracking import Tracker


def open_summary(run_dir: Path) -> Summary:
    return Summary(
        run_dir,
        rollout_engine="vllm 0.32.0",
        learner_engine="deepspeed 0.19.8",
        ray="2.60.0",
        device="cpu",
        model={"parameters": 12, "architecture": "Qwen3VLForConditionalGeneration"},
    )


def stage_lines(stage: str, rewards: list[float | None]) -> list[dict[str, Any]]:
    return [{"step": step, "stage": stage, "reward/total": reward} for step, reward in enumerate(rewards, 1)]


def test_the_file_has_the_agreed_shape(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo"
    run_dir.mkdir()
    with Tracker(run_dir, restored_step=None) as tracker:
        tracker.log(0, {"heldout/f1": 0.1})
        tracker.log(1, {"reward/total": 0.25, "rollout/mismatch_kl": 2e-7}, stage="single")
        tracker.log(2, {"reward/total": 0.5, "rollout/mismatch_kl": 3e-7}, stage="dual")
        tracker.log(3, {"reward/total": 0.75, "rollout/mismatch_kl": float("nan")}, stage="dual")
    figures = {"f1": 0.1, "mean_iou": 0.2, "precision": 0.3, "recall": 0.4, "count_accuracy": 0.5, "parse_rate": 1.0}
    summary = open_summary(run_dir)
    summary.set_heldout("before", {**figures, "pairs": 8})
    written = summary.write("running")
    contents = json.loads((run_dir / "summary.json").read_text())
    assert contents == written == read_summary(run_dir)
    assert list(contents["seconds"]) == ["total", "generate", "score", "learn", "sync", "evaluate", "other"]
    del contents["seconds"]
    assert contents == {
        "run": "demo",
        "status": "running",
        "rollout_engine": "vllm 0.32.0",
        "learner_engine": "deepspeed 0.19.8",
        "ray": "2.60.0",
        "device": "cpu",
        "model": {"parameters": 12, "architecture": "Qwen3VLForConditionalGeneration"},
        "stages": [
            {"name": "single", "steps": 1, "first_reward": 0.25, "last_reward": 0.25},
            {"name": "dual", "steps": 2, "first_reward": 0.5, "last_reward": 0.75},
        ],
        "heldout": {"before": {**figures, "pairs": 8}},
        "mismatch_kl_max": 3e-7,
    }


def test_rewards_are_means_over_the_first_and_last_tenth() -> None:
    lines = stage_lines("single", [float(step) for step in range(29)])  # a tenth of 29 steps is 2
    assert summarise_stages(lines) == [{"name": "single", "steps": 29, "first_reward": 0.5, "last_reward": 27.5}]


def test_a_reward_that_was_not_finite_counts_as_a_step_but_not_in_the_mean() -> None:
    assert summarise_stages(stage_lines("single", [None, 0.5])) == [
        {"name": "single", "steps": 2, "first_reward": None, "last_reward": 0.5}
    ]


def test_stages_keep_the_order_they_were_trained_in_and_evaluations_do_not_count() -> None:
    lines = [{"step": 0, "stage": None}, *stage_lines("z", [0.1]), *stage_lines("a", [0.2]), {"step": 2, "stage": None}]
    assert [(stage["name"], stage["steps"]) for stage in summarise_stages(lines)] == [("z", 1), ("a", 1)]


def test_other_is_what_remains_of_the_total(tmp_path: Path) -> None:
    summary = open_summary(tmp_path)
    time.sleep(0.05)
    summary.add_seconds(generate=0.01, learn=0.02)
    summary.add_seconds(generate=0.01)
    seconds = summary.write("running")["seconds"]
    assert (seconds["generate"], seconds["learn"], seconds["score"]) == (0.02, 0.02, 0.0)
    assert seconds["total"] >= 0.05
    assert seconds["other"] == pytest.approx(seconds["total"] - 0.04, abs=0.002)


def test_overlapping_phases_never_make_other_negative(tmp_path: Path) -> None:
    summary = open_summary(tmp_path)
    summary.add_seconds(generate=100.0)
    assert summary.write("running")["seconds"]["other"] == 0.0


def test_a_continued_run_adds_to_the_seconds_and_keeps_the_figures_from_before(tmp_path: Path) -> None:
    first = open_summary(tmp_path)
    first.add_seconds(learn=10.0)
    first.set_heldout("before", {"f1": 0.1, "pairs": 8})
    total = first.write("interrupted")["seconds"]["total"]
    second = open_summary(tmp_path)
    second.add_seconds(learn=5.0)
    second.set_heldout("after", {"f1": 0.2, "pairs": 8})
    contents = second.write("finished")
    assert contents["seconds"]["learn"] == 15.0
    assert contents["seconds"]["total"] >= total
    assert contents["heldout"] == {"before": {"f1": 0.1, "pairs": 8}, "after": {"f1": 0.2, "pairs": 8}}


def test_an_unknown_phase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="lern"):
        open_summary(tmp_path).add_seconds(lern=1.0)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DigRlError, match=r"summary\.json is not valid JSON"):
        open_summary(tmp_path)


def test_a_folder_that_is_gone_is_one_clear_message(tmp_path: Path) -> None:
    summary = open_summary(tmp_path / "gone")
    with pytest.raises(DigRlError, match=r"cannot write .*gone/summary\.json"):
        summary.write("failed")
