"""A full disk ends in one message, wherever a writer meets it, and costs nothing that was written before."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dig_rl.checkpoint import CheckpointStore, find_damage
from dig_rl.errors import CheckpointError, DigRlError, NoRoomError
from dig_rl.metrics import read_metrics
from dig_rl.room import describe_room, folder_size, free_bytes, in_words, is_no_room, no_room_as_os_error
from dig_rl.tracking import Tracker
from launch.terminal import end_with_message

FULL = Path("/dev/full")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 576 vs 470"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("shape mismatch at position 5"), False),
    ],
)
def test_a_full_disk_is_recognised_in_what_libraries_say_of_it(error: Exception, expected: bool) -> None:
    assert is_no_room(error) is expected
    later = RuntimeError("could not save")
    later.__cause__ = error
    assert is_no_room(later) is expected
    with pytest.raises(OSError if expected or isinstance(error, OSError) else RuntimeError), no_room_as_os_error():
        raise error


def test_torch_on_a_full_disk_is_an_os_error(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"), no_room_as_os_error():
        torch.save(torch.zeros(1 << 20), small_disk / "weights.pt")


def test_figures_of_a_disk(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_bytes(b"x" * 1500)
    (tmp_path / "b").write_bytes(b"x" * 548)
    assert folder_size(tmp_path) == 2048
    assert [in_words(size) for size in (0, 900, 2048, 5.25 * 2**20, 3 * 2**30)] == [
        "0 bytes", "900 bytes", "2 KiB", "5.25 MiB", "3 GiB",
    ]  # fmt: skip
    assert free_bytes(tmp_path / "not" / "there") > 0
    assert describe_room(tmp_path, 1024, 2048) == f"1 KiB are free in {tmp_path}, about 2 KiB are needed"


def test_a_checkpoint_without_room_says_where_how_much_and_what_to_delete(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints", keep_last=3)

    def write(folder: Path) -> None:
        with no_room_as_os_error():
            torch.save(torch.from_numpy(np.arange(160_000.0)), folder / "weights.pt")

    store.save(1, write, {}, score=0.5)
    with pytest.raises(CheckpointError) as caught:
        store.save(2, write, {}, score=0.4)
    message = str(caught.value)
    assert message.startswith("no room for the checkpoint of step 2: "), message
    assert f"are free in {store.directory}, about 1.22 MiB are needed" in message
    assert (
        "Checkpoints of steps 1 are intact. Delete other files on that disk, then run again with the same RUN="
        in message
    )
    assert [path.name for path in store.directory.glob("step-*")] == ["step-1"]
    assert find_damage(store.directory / "step-1") is None


def test_what_may_be_deleted_is_neither_the_newest_checkpoint_nor_the_best(small_disk: Path) -> None:
    small = CheckpointStore(small_disk / "small", keep_last=9)
    for step in (1, 2, 3):
        small.save(step, lambda folder: (folder / "w").write_bytes(b"x" * 100_000) and None, {}, score=float(step == 1))
    with pytest.raises(CheckpointError) as caught:
        small.save(4, lambda folder: (folder / "w").write_bytes(b"x" * 3_000_000) and None, {})
    # Not the newest, which the run goes on from, and not the best.
    assert f"Delete older checkpoints ({small.directory / 'step-2'}) or other runs" in str(caught.value)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_metrics_on_a_full_disk_are_one_message_and_closing_is_no_second(tmp_path: Path) -> None:
    with pytest.raises(DigRlError, match=r"cannot write metrics to .*No space left on device.*same RUN="):
        with Tracker(tmp_path, restored_step=None) as tracker:
            tracker.log(1, {"learner/loss": 0.5})
            tracker._lines.close()
            tracker._lines = FULL.open("a", encoding="utf-8")
            tracker.log(2, {"learner/loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    tracker = Tracker(tmp_path, restored_step=1)
    tracker._lines.close()
    tracker._lines = FULL.open("a", encoding="utf-8")
    tracker._lines.write("x")
    with pytest.raises(DigRlError, match="cannot write metrics"):
        tracker.close()


def _raise(error: Exception) -> Any:
    raise error


def test_any_command_ends_with_one_message_where_no_writer_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/some file")
    assert end_with_message(lambda: _raise(error), "") == 1
    said = capsys.readouterr().err
    assert "error: no room to write /tmp/some file: " in said and "are free in /tmp" in said
    assert "Traceback" not in said
    assert end_with_message(lambda: _raise(RuntimeError("x: unexpected pos 1 vs 2\nframe #0")), "") == 1
    assert "frame" not in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        end_with_message(lambda: _raise(RuntimeError("a bug")), "")
    assert isinstance(NoRoomError("x"), OSError)  # a checkpoint's writer may be in another process


LIMITED = """
import resource, signal, sys
from pathlib import Path
from dig_rl.durable import write_durably
from launch.terminal import end_with_message
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
sys.exit(end_with_message(lambda: write_durably(Path(sys.argv[1]), b"x" * (1 << 17)), ""))
"""


def test_a_limit_on_the_size_of_files_is_told_in_the_same_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: no room to write" in done.stderr and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []
