"""A disk without room: recognised in whatever a writer raises, and told with what is free and what was needed."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch, safetensors and programs that write for us say it in words.
_SIGNS = (
    *("No space left on device", "Disk quota exceeded", "File too large", "os error 28", "os error 122", "os error 27"),
    *("unexpected pos ", "file write failed"),
)


def is_no_room(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that a disk, a quota or a limit left no room to write."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _CODES:
            return True
        if any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def no_room_as_os_error() -> Iterator[None]:
    """Let a library's own error about a full disk be the OSError that callers know."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not is_no_room(error):
            raise
        said = str(error).strip().splitlines()[0]
        raise OSError(errno.ENOSPC, f"No space left on device ({said[:200]})") from error


def free_bytes(folder: Path) -> int:
    """What is free where `folder` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def describe_room(folder: Path, free: int, needed: int | None = None) -> str:
    """What is free there, and what was needed, in bytes if somebody knows."""
    told = f"{in_words(free)} are free in {folder}"
    return told if needed is None else f"{told}, about {in_words(needed)} are needed"


def folder_size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_words(num_bytes: float) -> str:
    """A size as `df -h` has it."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} GiB"
