"""Runs side by side: what differs is named, what can be compared is compared, and the page stands alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dig_rl.errors import ConfigError
from dig_rl.reporting import plots
from dig_rl.reporting.run_comparison import differing_values, write_run_comparison
from launch import compare_runs
from tests.test_report import _Page, make_run, steps


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs on the same twelve pairs: `demo` answers all rightly, `other` none, with another learning rate."""
    first = make_run(tmp_path, steps=6, pairs=12)
    second = tmp_path / "other"
    shutil.copytree(first, second)
    shutil.copy(second / "heldout/predictions_before.jsonl", second / "heldout/predictions_after.jsonl")
    config = json.loads((second / "config.json").read_text())
    config["learner"]["lr"] = 0.125
    (second / "config.json").write_text(json.dumps(config))
    return [first, second]


def test_the_page_tells_what_differs_and_stands_alone(runs: list[Path], tmp_path: Path) -> None:
    text = write_run_comparison(runs, tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.unclosed == [] and len(text) < 5_000_000
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert "<td>learner.lr</td><td>1e-06</td><td>0.125</td>" in text
    assert "learner.max_grad_norm" not in text
    # Every pair is right in the first run and wrong in the second.
    assert "-1.000 (-1.000 to -1.000): worse" in text
    assert 'class="notice"' not in text


def test_other_pairs_are_not_compared(runs: list[Path], tmp_path: Path) -> None:
    answers = runs[1] / "heldout/predictions_after.jsonl"
    answers.write_text(answers.read_text().replace("test-000", "test-999"))
    text = write_run_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert ": worse" not in text and "0.000 to 0.000" in text


def test_a_run_without_answers_is_still_shown(runs: list[Path], tmp_path: Path) -> None:
    shutil.rmtree(runs[1] / "heldout")
    (runs[1] / "summary.json").unlink()
    text = write_run_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "other has no held-out answers after training" in text and "not begun" in text


def test_keys_of_nested_tables_are_compared() -> None:
    tables = [{"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1], "e": None}]
    assert differing_values(tables) == [("a.c", ["2", "3"]), ("e", ["-", "null"])]


def test_unusable_names_are_one_clear_message(runs: list[Path], tmp_path: Path) -> None:
    for wrong in (runs[:1], [runs[0], runs[0]], []):
        with pytest.raises(ConfigError, match="at least two runs, each once"):
            write_run_comparison(wrong, tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"no run at .*nope; .* has demo, other"):
        write_run_comparison([runs[0], tmp_path / "nope"], tmp_path / "page.html")


def test_the_command_writes_the_page(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    arguments = ["--runs", "demo", "other", "--runs-dir", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["compare_runs", *arguments])
    compare_runs.main()
    assert out.is_file() and str(out) in capsys.readouterr().out


def test_curves_of_runs_of_different_lengths_share_one_plot() -> None:
    svg = plots.overlay({"short": steps(3), "long": steps(50), "empty": []}, "x", unit="u")
    assert svg is not None and "<!-- short -->" in svg and "<!-- long -->" in svg and "<!-- empty -->" not in svg
    assert plots.overlay({"a": steps(3), "b": []}, "y", unit="u") is None
