"""A bar for people, plain lines for files."""

from __future__ import annotations

import contextlib
import os
import pty
import sys

import pytest

from dig_rl.progress import TrainProgress


def test_time_left_is_a_bound_while_promotion_may_shorten_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainProgress(total_steps=12) as progress:
        progress.set_total(12, is_bound=True)
        progress.update(1, stage="single", figure="reward 0.4", seconds=2.0)
        progress.set_total(8, is_bound=False)
        progress.update(2, stage="single", figure="reward 0.4", seconds=2.0)
    assert capsys.readouterr().out.splitlines() == [
        "step  1/12  single  reward 0.4  2.0 s/step  at most 0:22 left",
        "step 2/8  single  reward 0.4  2.0 s/step  0:12 left",
    ]


def test_plain_lines_without_control_characters_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainProgress(total_steps=12, first_step=1) as progress:
        progress.note("held-out before: [bold] F1 0.100")
        progress.update(2, stage="single", figure="reward 0.412", seconds=3.0)
        progress.update(3, stage="[dual]", figure="reward 0.500", seconds=5.0)
    assert capsys.readouterr().out.splitlines() == [
        "held-out before: [bold] F1 0.100",
        "step  2/12  single  reward 0.412  3.0 s/step  0:30 left",
        "step  3/12  [dual]  reward 0.500  5.0 s/step  0:36 left",  # 9 steps at the mean of 3 s and 5 s
    ]


def test_the_estimate_follows_the_last_ten_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainProgress(total_steps=3611) as progress:
        progress.update(1, stage="s", figure="reward 0.000", seconds=1000.0)
        for step in range(2, 12):
            progress.update(step, stage="s", figure="reward 0.000", seconds=1.0)
    assert capsys.readouterr().out.splitlines()[-1].endswith("1.0 s/step  1:00:00 left")


def read_to_end(terminal: int) -> str:
    shown = b""
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):  # Linux ends a terminal with EIO
        while chunk := file.read(65536):
            shown += chunk
    return shown.decode()


def test_a_terminal_gets_a_bar_with_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    main, side = pty.openpty()
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with TrainProgress(total_steps=4) as progress:
            progress.update(3, stage="[dual]", figure="reward 0.250", seconds=2.0)
            progress.note("a line that stays")
        monkeypatch.undo()
    shown = read_to_end(main)
    for part in ("[dual]", "3/4", "reward 0.250", "2.0 s/step", "0:02 left", "a line that stays", "\x1b["):
        assert part in shown
