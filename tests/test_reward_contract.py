"""`make reward-test`: the shipped plugins keep the contract, and each way of breaking it gets its verdict."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from launch import reward_test
from launch.reward_test import Verdict, judge_plugin
from launch.terminal import end_with_message

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 3
CHECKS = ["loads", "hostile input", "speed", "range", "purity", "determinism"]


def shipped_plugins() -> list[str]:
    """Every public function of every file in rewards/."""
    return [
        f"rewards/{file.name}:{node.name}"
        for file in sorted((ROOT / "rewards").glob("*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def judge(use: str, root: Path = ROOT, kwargs: dict[str, Any] | None = None, **options: Any) -> list[Verdict]:
    return list(judge_plugin(use, kwargs or {}, root, **options))


@pytest.mark.parametrize("use", shipped_plugins())
def test_shipped_plugins_keep_the_contract(use: str) -> None:
    verdicts = judge(use)
    assert [verdict.check for verdict in verdicts] == CHECKS
    assert [verdict for verdict in verdicts if not verdict.holds] == []


def test_there_is_a_plugin_for_each_term_of_the_paper() -> None:
    names = {use.rpartition(":")[2] for use in shipped_plugins()}
    assert {"answer_format", "box_f1", "box_iou", "count_error"} <= names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "check", "detail"),
    [
        ("return 1.0 + len(item.assignment)", "hostile input", "returns 2.0, expected a number in [0, 1], for 32"),
        ("return float('nan')", "hostile input", "returns nan"),
        ("return np.ones(1)", "hostile input", "returns array([1.])"),
        ("return item.step / 500", "range", "returns 1.002"),
        ("return item.metadata['kinds'][0] == 'color'", "hostile input", "KeyError: 'kinds', for no metadata"),
        ("return len(item.completion.encode()) < 0", "hostile input", "for text that is no UTF-8"),
        ("CALLS.append(1); return 1 / len(CALLS)", "purity", "it keeps state or draws"),
        ("return random.random()", "purity", "draws from a global random generator"),
        ("item.metadata['seen'] = 1; return 1", "purity", "changes its input"),
        ("open('/dev/null', 'w').close(); return 1", "purity", "touches the world outside: open"),
        ("return sum(range(10**6 if len(item.predicted_boxes_unit) == 32 else 1)) < 0", "speed", "of 5 ms allowed"),
        ("return hash(item.completion) % 1000 / 1000", "determinism", "another process scores the same input"),
        ("os._exit(7)", "hostile input", "ended its process (exit code 7)"),
    ],
)
def test_each_way_of_breaking_the_contract_is_named(tmp_path: Path, body: str, check: str, detail: str) -> None:
    head = "import os, random\nimport numpy as np\nCALLS = []\n\n"
    (tmp_path / "own.py").write_text(f"{head}def own(item):\n    {body}\n", encoding="utf-8")
    broken = [verdict for verdict in judge("own.py:own", tmp_path) if not verdict.holds]
    assert broken[0].check == check
    assert detail in broken[0].detail


@pytest.mark.slow
def test_plugin_that_never_returns_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import time\n\ndef own(item):\n    time.sleep(1e6)\n", encoding="utf-8")
    expected = Verdict("hostile input", False, f"did not finish within {PATIENCE_S} s")
    assert judge("own.py:own", tmp_path, patience_s=PATIENCE_S)[-1] == expected


@pytest.mark.slow
def test_plugin_that_hangs_while_it_is_imported_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import time\ntime.sleep(1e6)\n", encoding="utf-8")
    expected = Verdict("loads", False, f"did not finish within {PATIENCE_S} s")
    assert judge("own.py:own", tmp_path, patience_s=PATIENCE_S) == [expected]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["reward_test", *arguments])
    return end_with_message(reward_test.main, "")


def test_command_ends_with_a_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--reward", "rewards/box_f1.py:box_f1", "--kwargs", "match_iou = 0.75") == 0
    assert "rewards/box_f1.py:box_f1 keeps the contract" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [("match_iou = 2", "match_iou = 2 does not fit"), ("mach_iou = 0.5", 'did you mean "match_iou"?')],
)
def test_command_fails_on_a_plugin_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kwargs: str, message: str
) -> None:
    assert command(monkeypatch, "--reward", "rewards/box_f1.py:box_f1", "--kwargs", kwargs) == 1
    printed = capsys.readouterr()
    assert message in printed.out and printed.out.startswith("FAIL  loads")
    assert "breaks the contract" in printed.err


def test_kwargs_that_are_no_toml_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--reward", "rewards/box_f1.py:box_f1", "--kwargs", "match_iou: 1") == 1
    assert 'KWARGS takes TOML such as "match_iou = 0.75"' in capsys.readouterr().err
