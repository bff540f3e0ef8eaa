"""A checkpoint is complete and verified, or it is not there."""

from __future__ import annotations

import json
import logging
import os
import re
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


def flip_a_byte(folder: Path, name: str = "learner/rank-0/weights.bin") -> str:
    contents = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([contents[0] ^ 1]) + contents[1:])
    return f"{name} has other contents"


def cut_short(folder: Path, name: str = "rng.json") -> str:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, 2)
    return f"{name} has 2 bytes, recorded were {size}"


def lose_a_file(folder: Path, name: str = "rng.json") -> str:
    (folder / name).unlink()
    return f"{name} is missing"


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


@pytest.mark.parametrize("name", ["learner/rank-0/weights.bin", "rng.json", "state.json"])
@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, lose_a_file])
def test_any_damage_to_any_file_is_seen(tmp_path: Path, damage: Callable[[Path, str], str], name: str) -> None:
    store = store_with(tmp_path, 1, 2)
    clause = damage(store.directory / "step-2", name)
    latest = store.latest()
    assert latest is not None and latest.step == 1 and clause in latest.warnings[0]
    damage(store.directory / "step-1", name)
    with pytest.raises(CheckpointError, match=rf"(?s)step 2 .*{re.escape(clause)}.*step 1 .*RUN="):
        store.latest()


def store_with_scores(directory: Path, scores: dict[int, float | None], **options: Any) -> CheckpointStore:
    store = CheckpointStore(directory / "checkpoints", options.pop("keep_last", 2), **options)
    for step, score in scores.items():
        store.save(step, writes(f"weights {step}"), {"step": step}, score=score)
    return store


def pointer(store: CheckpointStore) -> dict[str, Any] | None:
    path = store.directory / "best.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_the_best_is_kept_beside_the_last_and_named(tmp_path: Path) -> None:
    store = store_with_scores(tmp_path, {1: 0.2, 2: 0.5, 3: None, 4: 0.5, 5: 0.4, 6: None})
    assert saved_steps(store) == ["best.json", "step-2", "step-5", "step-6"]
    assert pointer(store) == {"folder": "step-2", "step": 2, "score": 0.5}  # the first of equals
    state = json.loads((store.directory / "step-6" / "state.json").read_text())
    assert state == {"step": 6, "score": None, "best": {"step": 2, "score": 0.5}}
    latest = store.latest()
    assert latest is not None and (latest.state, latest.score) == ({"step": 6}, None)
    store.save(7, writes("better"), {}, score=0.6)
    assert saved_steps(store) == ["best.json", "step-6", "step-7"]
    assert pointer(store) == {"folder": "step-7", "step": 7, "score": 0.6}


def test_without_scores_or_without_the_wish_no_step_is_best(tmp_path: Path) -> None:
    unmeasured = store_with_scores(tmp_path / "a", {1: None, 2: None, 3: None})
    unwanted = store_with_scores(tmp_path / "b", {1: 0.5, 2: 0.2, 3: 0.1}, keep_best=False)
    for store in (unmeasured, unwanted):
        assert saved_steps(store) == ["step-2", "step-3"] and store.best(up_to=3) is None


def test_a_best_step_that_is_cut_is_forgotten(tmp_path: Path) -> None:
    store = store_with_scores(tmp_path, {1: 0.3, 2: 0.2, 3: 0.9})
    flip_a_byte(store.directory / "step-3")
    latest = store.latest()
    assert latest is not None and (latest.step, latest.score) == (2, 0.2)
    assert pointer(store) == {"folder": "step-2", "step": 2, "score": 0.2}  # step 1 went when step 3 took its place
    store.save(3, writes("again"), {}, score=0.1)
    assert pointer(store) == {"folder": "step-2", "step": 2, "score": 0.2}
    assert saved_steps(store) == ["best.json", "step-2", "step-3"]


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

    with pytest.raises(
        CheckpointError, match=r"no room for the checkpoint of step 2: .*No space left on device.*of steps 1 are intact"
    ):
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
    store.save(step, write_one_file, {"attempt": "new"}, score=0.2)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "best"), [(2, 1), (2, 2), (3, 2)])
def test_a_kill_before_any_line_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, step: int, best: int) -> None:
    """Step 3 is new; step 2 replaces a checkpoint of the same step. Both prune step 1 unless that is the best."""
    template = CheckpointStore(tmp_path / "template", 2)
    for earlier in (1, 2):
        template.save(earlier, write_one_file, {"step": earlier}, score=0.9 if earlier == best else 0.1)
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
        *steps, named = [name.removeprefix("step-") for name in reversed(saved_steps(store))]
        assert named == "best.json" and all(name.isdigit() for name in steps)
        pointed = pointer(store)
        assert pointed is not None and str(pointed["step"]) in steps
        # Replacing the best step by a worse one, scored 0.2, is all that changes which one it is.
        replaced = is_new and step == best
        assert (pointed["step"], pointed["score"]) == ((2, 0.2) if replaced else (best, 0.9))
        outcomes.append(is_new)
    kept = {step, best}
    assert saved_steps(store) == ["best.json", *(f"step-{number}" for number in sorted(kept))]
    assert outcomes == sorted(outcomes) and not outcomes[0] and outcomes[-1]
    assert line_number > 50
