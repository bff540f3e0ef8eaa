"""A lock left by a killed build never hangs a later start, and a living build is never disturbed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from dig_rl.extension_lock import remove_stale_lock, remove_stale_locks

HOLD = """
import os, sys, time
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
os.close(descriptor)
time.sleep(float(sys.argv[3]))
os.remove(sys.argv[1])
print("released", flush=True)
"""


def start_holder(lock: Path, hold_s: float, pause_s: float = 0.0) -> subprocess.Popen[str]:
    """A process that takes the lock as torch does, keeps it, closes it, and after a pause deletes it."""
    command = [sys.executable, "-S", "-c", HOLD, str(lock), str(hold_s), str(pause_s)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def torch_file_baton() -> ModuleType:
    """Torch's own lock, loaded without the rest of torch."""
    torch_package = importlib.util.find_spec("torch")
    assert torch_package is not None
    assert torch_package.origin is not None
    source = Path(torch_package.origin).parent / "utils" / "file_baton.py"
    spec = importlib.util.spec_from_file_location("file_baton", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lock_of_a_killed_build_is_removed_and_torch_can_take_it(tmp_path: Path) -> None:
    operator = tmp_path / "operator"
    operator.mkdir()
    holder = start_holder(operator / "lock", hold_s=60)
    holder.kill()
    holder.wait()
    baton = torch_file_baton().FileBaton(str(operator / "lock"))
    assert not baton.try_acquire()

    assert remove_stale_locks(tmp_path) == [operator / "lock"]

    assert baton.try_acquire()
    baton.release()


def test_lock_of_a_living_build_stays(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "lock", hold_s=60)
    try:
        assert not remove_stale_lock(tmp_path)
        assert (tmp_path / "lock").exists()
    finally:
        holder.kill()
        holder.wait()


def test_owner_may_pause_between_closing_and_deleting(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "lock", hold_s=0.2, pause_s=0.7)
    time.sleep(0.4)  # the lock is closed now, and not deleted yet
    assert not remove_stale_lock(tmp_path)
    output, _ = holder.communicate(timeout=60)
    assert output == "released\n"
    assert holder.returncode == 0


def test_nothing_to_remove(tmp_path: Path) -> None:
    assert remove_stale_locks(tmp_path / "absent") == []
    (tmp_path / "operator").mkdir()
    assert remove_stale_locks(tmp_path) == []
    assert list((tmp_path / "operator").iterdir()) == []
