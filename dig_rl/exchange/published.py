"""What the readers of published layouts give to the importer, and the checks that all of them share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import Repr
from typing import Any

from dig_rl.data import Box, Kind, Split
from dig_rl.errors import DataError

CLIPPED_PX = 1.0
"""A box may leave its picture by this much (rounding, inclusive edges) and is clipped; beyond, it is wrong."""
MAX_BOXES = 1000
"""More boxes for one pair are no labels."""


_REPR = Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 80, 80


def short(value: Any) -> str:
    """What was found, for a message: a few words even of endless data."""
    return _REPR.repr(value)


class EntryError(DataError):
    """One entry of a published data set is unusable; an import may leave it out and count it."""

    def __init__(self, where: str, problem: str, reason: str) -> None:
        """Args: `where` file and entry; `problem` expected and found; `reason` one word to count it by."""
        super().__init__(f"{where}: {problem}")
        self.problem, self.reason = problem, reason


@dataclass(frozen=True)
class SourceDifference:
    """One labelled change as published, in pixels of the first picture, not checked yet."""

    kind: Kind
    box_a: Sequence[Any] | None = None
    """xyxy in the first picture; None when the object is not there, or not known."""
    box_b: Sequence[Any] | None = None
    """xyxy in the second picture; None when the object is not there, or not known."""
    box: Sequence[Any] | None = None
    """xyxy of the change where it is not known which picture the box belongs to; else None."""


@dataclass(frozen=True)
class SourcePair:
    """One pair as published."""

    pair_id: str
    image_a: Path
    image_b: Path
    split: Split
    differences: Sequence[SourceDifference]
    where: str
    """File and entry that hold the labels, for messages."""
    resize_b: bool = False
    """The data set's own reader resizes the second picture to the first."""


Entry = Callable[[], SourcePair]
"""Reads one pair when called; raises EntryError."""


@dataclass(frozen=True)
class Layout:
    """One published data set that can be imported."""

    title: str
    page: str
    licence: str
    """What its page says; the pictures may have further terms."""
    expected: str
    """What the folder must hold, in a few words."""
    read: Callable[[Path], list[Entry]]


def checked_box(values: Any, size: tuple[int, int], where: str) -> Box:
    """A box as our schema has it.

    Args:
        values: xyxy in pixels, anything a file may hold.
        size: (width, height) of the pictures.
        where: for the message.

    Raises:
        EntryError: not four finite numbers, no area, or more than `CLIPPED_PX` outside.
    """
    width, height = size
    box = numbers(values, 4, where)
    x_min, y_min, x_max, y_max = box
    inside = min(x_min, y_min) >= -CLIPPED_PX and x_max <= width + CLIPPED_PX and y_max <= height + CLIPPED_PX
    clipped = (max(x_min, 0.0), max(y_min, 0.0), min(x_max, float(width)), min(y_max, float(height)))
    if not inside or not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        expected = f"expected 0 <= x_min < x_max <= {width} and 0 <= y_min < y_max <= {height}"
        raise EntryError(where, f"box {[round(value, 3) for value in box]}: {expected}", "bad_box")
    return clipped


def numbers(values: Any, count: int, where: str) -> list[float]:
    """`count` finite numbers; raises EntryError for anything else."""
    try:
        found = [float(value) for value in values if not isinstance(value, (str, bytes, bool))]
        if len(values) == len(found) == count and all(map(math.isfinite, found)):
            return found
    except (TypeError, ValueError, OverflowError):
        pass  # told below
    raise EntryError(where, f"expected {count} finite numbers, found {short(values)}", "bad_box")


def file_inside(folder: Path, name: Any, where: str) -> Path:
    """`folder / name` for a name that a data set gives; it may not lead out of the folder.

    Raises:
        EntryError: not a plain relative path, or there is no such file.
    """
    path = PurePosixPath(name) if isinstance(name, str) and "\0" not in name and "\\" not in name else None
    if path is None or path.is_absolute() or ".." in path.parts:
        raise EntryError(where, f"expected a path within {folder}, found {short(name)}", "unsafe_path")
    if not (folder / path).is_file():
        raise EntryError(where, f"image {path} does not exist in {folder}", "missing_image")
    return folder / path


def safe_id(*parts: object) -> str:
    """A pair id of the parts, joined by `-`, that is also a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(str(part) for part in parts))[:120]


def require(folder: Path, names: Sequence[str], layout: str) -> None:
    """Raise DataError, with what was expected, unless the folder holds all the names."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; expected {layout}")


def read_json(path: Path, kind: type) -> Any:
    """Contents of a JSON file that holds an object (`dict`) or a list; raises DataError for anything else."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(contents, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, found {type(contents).__name__}")
    return contents
