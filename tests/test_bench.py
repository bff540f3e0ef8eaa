"""`make bench`: the entries it writes, whatever the figures are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import bench
from launch.benchmarks import scoring
from launch.benchmarks.measurement import Measurement, Request
from launch.terminal import end_with_message
from tests.test_scoring import ROOT

KEYS = ["name", "value", "unit", "versus", "ratio", "aim", "holds", "command"]


def finished_run(runs_dir: Path) -> Path:
    """Two steps that score for 1 of 100 seconds together, and an evaluation without timings."""
    run_dir = runs_dir / "mine"
    run_dir.mkdir(parents=True)
    lines = [
        {"step": 0, "stage": None, "heldout/f1": 0.5},
        {"step": 1, "stage": "single", "timing/score_s": 0.75, "timing/step_s": 40.0},
        {"step": 2, "stage": "dual", "timing/score_s": 0.25, "timing/step_s": 60.0},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    return end_with_message(bench.main, "")


def test_share_is_that_of_all_steps_of_the_run(tmp_path: Path) -> None:
    finished_run(tmp_path)
    measured = scoring.score_share_of_step(Request(tmp_path, "mine"))
    assert measured.value == measured.ratio == pytest.approx(0.01)
    assert measured.holds == (measured.value < 0.01)
    assert measured.versus == "the whole step, 2 steps of mine"


def test_scoring_is_timed_against_matching_for_every_term(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scoring, "_NUM_COMPLETIONS", 50)
    measured = scoring.score_us_per_completion(Request(tmp_path, None))
    assert measured.value > 0
    assert measured.ratio > 0
    assert measured.holds == (measured.value <= 50)


def test_the_pool_is_timed_against_plugins_in_the_same_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scoring, "_NUM_COMPLETIONS", 50)
    measured = scoring.pool_over_scorer(Request(tmp_path, None))
    assert measured.value == measured.ratio > 0
    assert measured.holds == (measured.value <= 2)


def test_entries_are_written_after_the_contract_and_others_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(tmp_path)
    path = tmp_path / "bench" / "bench.json"
    path.parent.mkdir()
    others = [{"name": "pairs_per_minute", "value": 1.0}, {"name": "score_share_of_step", "value": 9.0}]
    path.write_text(json.dumps(others))
    options = ["--only", "score_share_of_step", "--run", "mine", "--runs-dir", str(tmp_path)]
    assert command(monkeypatch, *options) == 0
    kept, entry = json.loads(path.read_text())
    assert kept == others[0]
    assert list(entry) == KEYS
    assert entry["name"] == "score_share_of_step" and entry["unit"] == "fraction"
    assert entry["command"] == 'make bench ONLY="score_share_of_step" RUN=mine'
    assert "score_share_of_step 0.01 fraction" in capsys.readouterr().out


def test_a_missed_aim_is_said() -> None:
    entry = bench.as_entry("slow", Measurement(2.0, "s", "theirs, 1 s", 2.0, "at most 1 s", False))
    assert bench.describe(entry) == "slow 2 s (2 of: theirs, 1 s); aim at most 1 s: MISSED"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "no benchmark is called speed; there are score_us_per_completion, pool_over_scorer, "),
        (["--only", "score_share_of_step", "--run", "gone"], "has no training step with timings"),
    ],
)
def test_mistakes_end_in_one_message(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert command(monkeypatch, *arguments, "--runs-dir", str(tmp_path)) == 1
    assert message in capsys.readouterr().err
