"""Both sinks say the same, and a continued run draws every curve once."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dig_rl.errors import DigRlError
from dig_rl.metrics import read_metrics
from dig_rl.tracking import Tracker


def log_steps(tracker: Tracker, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        tracker.log(step, {"reward/total": step / 10 + offset}, stage="single")


def tensorboard_curve(run_dir: Path, name: str = "reward/total") -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(scalar.step, pytest.approx(scalar.value, abs=1e-6)) for scalar in accumulator.Scalars(name)]


def test_a_step_is_readable_in_both_sinks_while_the_run_goes_on(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        tracker.log(1, {"reward/total": 0.25, "learner/kl": 1e-7}, stage="dual")
        line = {"step": 1, "stage": "dual", "reward/total": 0.25, "learner/kl": 1e-7, "tracking/non_finite": 0}
        assert read_metrics(tmp_path) == [line]
        assert tensorboard_curve(tmp_path) == [(1, 0.25)]


def test_non_finite_values_become_null_and_are_counted(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        tracker.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 2}, stage=None)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {
        "step": 1,
        "stage": None,
        "a": None,
        "b": None,
        "c": None,
        "d": 2.0,
        "tracking/non_finite": 3,
    }


def test_continuing_cuts_both_sinks_at_the_restored_step(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        log_steps(tracker, range(1, 8))
    with Tracker(tmp_path, restored_step=4) as tracker:
        log_steps(tracker, range(5, 7), offset=1.0)
    expected = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 1.5), (6, 1.6)]
    assert [(line["step"], line["reward/total"]) for line in read_metrics(tmp_path)] == expected
    assert tensorboard_curve(tmp_path) == expected
    superseded = [json.loads(line) for line in (tmp_path / "superseded.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reward/total"]) for line in superseded] == [(5, 0.5), (6, 0.6), (7, 0.7)]


def test_lines_cut_by_several_restarts_are_all_kept(tmp_path: Path) -> None:
    for attempt in range(3):
        with Tracker(tmp_path, restored_step=2 if attempt else None) as tracker:
            log_steps(tracker, range(3 if attempt else 1, 5), offset=attempt)
    superseded = [json.loads(line) for line in (tmp_path / "superseded.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reward/total"]) for line in superseded] == [(3, 0.3), (4, 0.4), (3, 1.3), (4, 1.4)]
    assert tensorboard_curve(tmp_path) == [(1, 0.1), (2, 0.2), (3, 2.3), (4, 2.4)]
    assert sorted(path.stat().st_size > 0 for path in (tmp_path / "tensorboard").iterdir()) == [False, True]


def test_without_a_checkpoint_every_training_step_is_written_again(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        tracker.log(0, {"heldout/f1": 0.5})
        log_steps(tracker, range(1, 4))
    with Tracker(tmp_path, restored_step=None) as tracker:
        log_steps(tracker, range(1, 3))
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]
    assert tensorboard_curve(tmp_path) == [(1, 0.1), (2, 0.2)]
    assert tensorboard_curve(tmp_path, "heldout/f1") == [(0, 0.5)]


def test_a_cut_that_was_killed_half_way_leaves_no_double_points(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        log_steps(tracker, range(1, 5))
    original = next((tmp_path / "tensorboard").iterdir())
    contents = original.read_bytes()
    with Tracker(tmp_path, restored_step=3):
        pass
    original.write_bytes(contents)  # as if the kill had come before the old file was emptied
    with Tracker(tmp_path, restored_step=3) as tracker:
        log_steps(tracker, range(4, 6))
    assert tensorboard_curve(tmp_path) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)]


def test_a_watching_tensorboard_forgets_what_was_cut(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        log_steps(tracker, range(1, 5))
    # File names are ordered by the second they were made in; a real continuation comes later than its first start.
    first_file = next((tmp_path / "tensorboard").iterdir())
    first_file.rename(first_file.with_name("events.out.tfevents.1000000000.host.1.0"))
    watching = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    watching.Reload()
    with Tracker(tmp_path, restored_step=2) as tracker:
        log_steps(tracker, range(3, 4), offset=1.0)
        watching.Reload()
    assert [scalar.step for scalar in watching.Scalars("reward/total")] == [1, 2, 3]


def test_what_was_logged_survives_a_kill(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        tracker = Tracker(tmp_path, restored_step=None)
        log_steps(tracker, range(1, 4))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # torn in the middle of a line
    with Tracker(tmp_path, restored_step=3) as tracker:
        log_steps(tracker, range(4, 5))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert [step for step, _ in tensorboard_curve(tmp_path)] == [1, 2, 3, 4]


def test_closing_twice_is_allowed(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, restored_step=None)
    tracker.close()
    tracker.close()


def test_a_file_that_cannot_grow_ends_with_one_clear_message(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None) as tracker:
        log_steps(tracker, range(1, 2))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size, limits[1]))
        try:
            with pytest.raises(DigRlError, match=r"cannot write metrics to .*metrics\.jsonl.*File too large"):
                log_steps(tracker, range(2, 3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_missing_run_folder_ends_with_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DigRlError, match=r"cannot write metrics to .*file"):
        Tracker(tmp_path / "file", restored_step=None)
