"""Files that a kill or a power cut cannot leave half-written, and reading them back."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

from dig_rl.errors import DigRlError


def write_durably(path: Path, contents: str | bytes) -> None:
    """Replace `path` by `contents`, text as UTF-8, in one step: readers see the whole old file or the whole new one.

    Raises:
        OSError: the folder is missing or unwritable, or the disk is full; the old file is then unchanged.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_lines(contents: bytes) -> list[bytes]:
    """Lines of a JSON Lines file, without a byte order mark and blank lines at the end.

    Line feeds alone end a line: an answer may hold whatever else `str.splitlines` splits at, such as U+2028. A carriage
    return before a line feed stays; JSON takes it for white space. A last line without its line feed is a line, too:
    whether it was torn, only its reader can tell.
    """
    lines = contents.removeprefix(codecs.BOM_UTF8).split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_json_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """Contents of a JSON file; None where there is none.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the message.

    Raises:
        DigRlError: the file does not hold one JSON object.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DigRlError(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(contents, dict):
        raise DigRlError(f"{path} should hold a JSON object, found {type(contents).__name__}; {remedy}")
    return contents
