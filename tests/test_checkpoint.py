"""A checkpoint is complete and verified, or it is not there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dig_rl import checkpoint, durable
from dig_rl.checkpoint import CheckpointStore
from dig_rl.errors import CheckpointError


def writes(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "learner" / "rank-0").mkdir(parents=True)
        (folder / "learner" / "rank-0" / "weights.bin").write_text(text)
        (folder / "rng.json").write_text("[1, 2]")

    return write


def saved_steps(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def store_with(directory: Path, *steps: int, keep_last: int = 5) -> CheckpointStore:
    store = CheckpointStore(directory / "checkpoints", keep_last)
    for step in steps:
        store.save(step, writes(f"weights {step}"), {"step": step})
    return store


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    assert store.latest() is None
    state = {"curriculum": {"stage": 1, "order": [3, 1]}, "reward": 0.1 + 0.2}
    path = store.save(7, writes("abc"), state)
    latest = store.latest()
    assert latest is not None
    assert (latest.step, latest.path, latest.state, latest.warnings) == (7, path, state, ())
    assert (latest.path / "learner" / "rank-0" / "weights.bin").read_text() == "abc"


def test_the_manifest_records_every_file(tmp_path: Path) -> None:
    path = store_with(tmp_path).save(1, writes("abc"), {})
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["learner/rank-0/weights.bin", "rng.json", "state.json"]
    assert manifest["files"]["learner/rank-0/weights.bin"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # FIPS 180 example
    }


def test_only_the_last_ones_are_kept_in_order_of_number(tmp_path: Path) -> None:
    assert saved_steps(store_with(tmp_path, 8, 9, 10, 11, keep_last=2)) == ["step-10", "step-11"]


def test_keeping_one_keeps_the_newest(tmp_path: Path) -> None:
    assert saved_steps(store_with(tmp_path, 1, 2, keep_last=1)) == ["step-2"]


def flip_a_byte(folder: Path) -> str:
    path = folder / "learner" / "rank-0" / "weights.bin"
    path.write_bytes(b"W" + path.read_bytes()[1:])
    return "weights.bin has other contents"


def cut_short(folder: Path) -> str:
    os.truncate(folder / "rng.json", 2)
    return "rng.json has 2 bytes, recorded were 6"


def lose_a_file(folder: Path) -> str:
    (folder / "rng.json").unlink()
    return "rng.json is missing"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json is missing"


def spoil_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text('{"files": [')
    return "manifest.json is not a manifest"


def empty_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text('{"files": {}}')
    return "manifest.json does not list state.json"


@pytest.mark.parametrize(
    "damage", [flip_a_byte, cut_short, lose_a_file, lose_the_manifest, spoil_the_manifest, empty_the_manifest]
)
def test_a_damaged_newest_falls_back_with_a_warning_that_names_the_file(
    tmp_path: Path, damage: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    store = store_with(tmp_path, 10, 20)
    clause = damage(store.directory / "step-20")
    with caplog.at_level(logging.WARNING):
        latest = store.latest()
    assert latest is not None and latest.step == 10
    assert len(latest.warnings) == 1 and clause in latest.warnings[0]
    assert caplog.messages == list(latest.warnings)


def test_saving_after_a_fallback_removes_the_damaged_later_one_and_not_the_new_one(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10, 20, keep_last=1)
    assert saved_steps(store) == ["step-20"]
    store = store_with(tmp_path, 10, 20, keep_last=2)
    flip_a_byte(store.directory / "step-20")
    store.keep_last = 1
    store.save(15, writes("new"), {})
    assert saved_steps(store) == ["step-15"]


def test_nothing_but_damaged_checkpoints_is_an_error_that_lists_them(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2)
    for folder in list(store.directory.iterdir()):
        flip_a_byte(folder)
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint in .* can be used.*step 2.*step 1.*RUN="):
        store.latest()


def test_a_full_disk_is_a_clear_error_and_leaves_the_previous_one(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)

    def write(folder: Path) -> None:
        writes("some")(folder)
        (folder / "optimizer.bin").symlink_to("/dev/full")
        (folder / "optimizer.bin").write_text("more")

    with pytest.raises(CheckpointError, match=r"checkpoint of step 2 .*No space left on device.*earlier checkpoints"):
        store.save(2, write, {})
    assert saved_steps(store) == ["step-1"]
    assert store.latest().step == 1  # type: ignore[union-attr]


def test_an_interrupted_or_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    for error in (KeyboardInterrupt(), ValueError("from the learner")):

        def write(folder: Path, error: BaseException = error) -> None:
            writes("half")(folder)
            raise error

        with pytest.raises(type(error)):
            store.save(2, write, {})
        assert saved_steps(store) == ["step-1"]


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file, not a folder")
    with pytest.raises(CheckpointError, match=r"could not save the checkpoint of step 1 in .*checkpoints"):
        store_with(tmp_path, 1)


def test_leftovers_of_killed_saves_are_cleared(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2)
    (store.directory / "step-3.partial" / "deep").mkdir(parents=True)
    (store.directory / "step-1").rename(store.directory / "step-1.replaced")
    (store.directory / "step-2.replaced").mkdir()
    assert store.latest().step == 2  # type: ignore[union-attr]
    assert saved_steps(store) == ["step-1", "step-2"]


def write_one_file(folder: Path) -> None:
    (folder / "weights.bin").write_text("new")


def saves_and_dies_at_line(store: CheckpointStore, step: int, line_number: int) -> bool:
    """Save in a child process that is gone before it executes the given line; False if the save finished first."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    executed = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal executed
        if frame.f_code.co_filename not in (checkpoint.__file__, durable.__file__, __file__):
            return None
        if event == "line":
            executed += 1
            if executed == line_number:
                os._exit(9)
        return trace

    sys.settrace(trace)
    store.save(step, write_one_file, {"attempt": "new"})
    os._exit(0)


@pytest.mark.parametrize("step", [2, 3])
def test_a_kill_before_any_line_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, step: int) -> None:
    """Step 3 is new; step 2 replaces a checkpoint of the same step. Both saves prune step 1."""
    template = CheckpointStore(tmp_path / "template", 2)
    for earlier in (1, 2):
        template.save(earlier, write_one_file, {"step": earlier})
    line_number, outcomes = 0, []
    killed = True
    while killed:
        line_number += 1
        store = CheckpointStore(tmp_path / str(line_number), 1)
        shutil.copytree(template.directory, store.directory)
        killed = saves_and_dies_at_line(store, step, line_number)
        latest = store.latest()
        assert latest is not None and latest.warnings == ()
        is_new = latest.state == {"attempt": "new"}
        assert is_new or (latest.step, latest.state) == (2, {"step": 2})
        assert not [name for name in saved_steps(store) if not name.removeprefix("step-").isdigit()]
        outcomes.append(is_new)
    assert saved_steps(store) == [f"step-{step}"]
    assert outcomes == sorted(outcomes) and not outcomes[0] and outcomes[-1]
    assert line_number > 50
