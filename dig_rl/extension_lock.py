"""Keeps a lock that a killed process left beside a compiled operator from hanging every later start.

Torch guards the folder of each operator it compiles with a file named `lock`, held open by its owner and deleted when
the owner is done. After kill -9 the file stays, and whoever needs the operator next waits for it without a word and
without end. A lock that no process on this machine holds open has lost its owner.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

_GRACE_S = 2.0
"""How long a lock must stay unheld: its owner closes the file a moment before deleting it."""


def remove_stale_locks(extensions_dir: Path) -> list[Path]:
    """Remove the abandoned locks of all operators compiled under one folder.

    Args:
        extensions_dir: the folder in `TORCH_EXTENSIONS_DIR`; need not exist. Only one machine may use it at a time,
            since owners elsewhere cannot be seen.

    Returns:
        The locks that were removed.
    """
    return [lock for lock in sorted(extensions_dir.glob("*/lock")) if remove_stale_lock(lock.parent)]


def remove_stale_lock(operator_dir: Path) -> bool:
    """Remove `operator_dir/lock` if the process that made it is gone.

    Args:
        operator_dir: build folder of one operator.

    Returns:
        Whether an abandoned lock was removed.
    """
    lock = operator_dir / "lock"
    if not lock.exists():
        return False
    # One cleaner at a time: a second one could otherwise delete the lock of a build that began after its check.
    with (operator_dir / "lock.cleaning").open("w") as cleaning:
        fcntl.flock(cleaning, fcntl.LOCK_EX)
        if not _stays_abandoned(lock):
            return False
        lock.unlink()
        return True


def _stays_abandoned(lock: Path) -> bool:
    deadline = time.monotonic() + _GRACE_S
    while lock.exists() and not _is_held(lock):
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.1)
    return False


def _is_held(lock: Path) -> bool:
    try:
        wanted = lock.stat()
    except FileNotFoundError:
        return False
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = descriptor.stat()
        except OSError:  # closed meanwhile, or another user's process
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False
