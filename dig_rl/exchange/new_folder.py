"""A folder that appears whole under its name, or not at all."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dig_rl.durable import sync_to_disk
from dig_rl.errors import DataError

_LOCK = ".lock"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to fill, which becomes `out` at the end; whatever fails, it is removed.

    Raises:
        DataError: `out` exists, is being made by another process, or cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    _refuse_existing(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if any(partial.iterdir()) and not (partial / _LOCK).exists():
            raise DataError(f"{partial} holds files that are not ours; move it away, or name another folder with OUT=")
        with (partial / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                _clear(partial)  # left by a process that was killed
                yield partial
                _refuse_existing(out)
                (partial / _LOCK).unlink()
                partial.rename(out)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        sync_to_disk(out.parent)
    except BlockingIOError:
        raise DataError(f"another process is making {out}; wait for it, or name another folder with OUT=") from None
    except OSError as error:
        where = error.filename or out
        raise DataError(
            f"cannot write {where}: {error.strerror}; nothing was left behind, free some space or name another "
            "folder with OUT="
        ) from None


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists and nothing is overwritten; name a new folder with OUT=, or delete it")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
