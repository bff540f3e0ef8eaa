"""What a table of one's own pairs says, before any picture is opened: the same records for every kind of file."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from dig_rl.data import Kind, Split
from dig_rl.exchange.published import EntryError, short

BoxForm = Literal["xyxy", "xywh"]
Size = tuple[int, int]

SIDES = (("a", "before"), ("b", "after"))
"""Names of the two folders of pictures, in any case."""

FILE_COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("file", "file_name", "filename", "image", "picture", "name"),
    "a": ("a", "image_a", "file_a", "path_a", "before", "image_before", "reference", "image1", "image_1"),
    "b": ("b", "image_b", "file_b", "path_b", "after", "image_after", "changed", "image2", "image_2"),
}
"""Names of columns and keys: one name of a picture that lies in a/ and in b/, or the two pictures.

The first that is there counts: beside an `image`, `name` is the name of a class.
"""
BOX_COLUMNS: tuple[tuple[BoxForm, tuple[str, str, str, str]], ...] = (
    ("xyxy", ("x1", "y1", "x2", "y2")),
    ("xyxy", ("x_min", "y_min", "x_max", "y_max")),
    ("xyxy", ("xmin", "ymin", "xmax", "ymax")),
    ("xyxy", ("left", "top", "right", "bottom")),
    ("xywh", ("x", "y", "w", "h")),
    ("xywh", ("x", "y", "width", "height")),
    ("xywh", ("left", "top", "width", "height")),
)
"""Names of a box's columns, `box_` or `bbox_` before them or not, and the form that they say."""
WHOLE_BOX = ("box", "bbox")
"""A column or key that holds all four numbers, and does not say how."""
OTHER_COLUMNS: dict[str, tuple[str, ...]] = {
    "mask": ("mask", "mask_file"),
    "label": ("label", "kind", "class", "category", "change"),
    "split": ("split",),
}
KINDS: dict[Kind, tuple[str, ...]] = {
    "add": ("add", "added", "addition", "new", "inserted", "appeared"),
    "remove": ("remove", "removed", "removal", "deleted", "disappeared", "missing", "drop"),
    "move": ("move", "moved"),
    "color": ("color", "colour", "recolored", "recoloured"),
    "shape": ("shape", "reshaped"),
    "size": ("size", "resized"),
    "material": ("material", "texture"),
}
"""Labels in any case that say a kind of ours; every other one is `unknown`."""
SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
_BOX_PREFIXED = {name for _form, names in BOX_COLUMNS for name in names} | set(OTHER_COLUMNS["label"])
_KIND_OF_LABEL = {label: kind for kind, labels in KINDS.items() for label in labels}


@dataclass(frozen=True)
class LabelledBox:
    """One box as it is written."""

    values: tuple[float, float, float, float]
    label: str = ""
    side: Literal["a", "b"] | None = None
    """The picture it belongs to, where the file says so."""
    change: int | None = None
    """Joins the boxes of one change in the two pictures."""

    @property
    def kind(self) -> Kind:
        """Ours for the label."""
        return _KIND_OF_LABEL.get(self.label.strip().lower(), "unknown")


@dataclass(frozen=True)
class LabelledPair:
    """One pair as a table tells it."""

    where: str
    """File and line, for messages."""
    file: str | None = None
    """Name of a picture that lies in a/ and in b/; None where `image_a` and `image_b` are named."""
    image_a: str | None = None
    image_b: str | None = None
    boxes: tuple[LabelledBox, ...] = ()
    mask: str | None = None
    """Name of a change mask, in place of boxes."""
    split: Split | None = None
    sizes_px: tuple[Size | None, Size | None] = (None, None)
    """(width, height) that the file declares of each picture."""
    fault: EntryError | None = None
    """Why the pair is unusable."""

    @property
    def names(self) -> tuple[str, str]:
        """What the two pictures are called."""
        return (self.image_a or self.file or "", self.image_b or self.file or "")

    @property
    def names_within_sides(self) -> tuple[str, str]:
        """The same without extension and without what leads to `a/` and `b/`, letters composed."""
        first, second = (_within_side(name, side) for name, side in zip(self.names, SIDES, strict=True))
        return first, second


@dataclass(frozen=True)
class LabelTable:
    """All pairs of a file."""

    pairs: Sequence[LabelledPair]
    form: BoxForm | None
    """How boxes are written, as far as the file says it by the names of its columns."""
    said: str
    """What the file says about them, for the summary."""
    is_coco: bool = False
    """COCO's boxes are in pixels by definition."""


def _within_side(name: str, side: Sequence[str]) -> str:
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    parts = path.with_suffix("").parts if path.suffix else path.parts
    places = [place for place, part in enumerate(parts[:-1]) if part.lower() in side]
    if path.is_absolute() and places:
        return "/".join(parts[places[-1] + 1 :])
    return "/".join(parts[1:] if places[:1] == [0] else parts)


def column_name(text: str) -> str:
    """A column's name in any case, with spaces, hyphens or a `box_` before it, as the tables above have it."""
    name = re.sub(r"[\s-]+", "_", unicodedata.normalize("NFKC", text).strip().lower())
    rest = re.sub(r"^b?box_", "", name)
    return rest if rest in _BOX_PREFIXED else name


def first_present(values: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first of the names that has one."""
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def accepted_columns() -> str:
    """All names that are understood, for messages."""
    files = "; ".join(f"{what}: {', '.join(names)}" for what, names in FILE_COLUMNS.items())
    boxes = "; ".join(",".join(names) for _form, names in BOX_COLUMNS)
    others = "; ".join(", ".join(names) for names in OTHER_COLUMNS.values())
    return (
        f"one name that lies in a/ and b/ or both pictures ({files}), a box ({boxes}; {', '.join(WHOLE_BOX)}) or a "
        f"mask, and if you have them {others}"
    )


def four_numbers(values: Any, where: str, *, decimal_comma: bool = False) -> tuple[float, float, float, float]:
    """A box from four values, as text or as numbers; raises EntryError for anything else."""
    numbers = [_number(value, decimal_comma) for value in values] if isinstance(values, (list, tuple)) else []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise EntryError(where, f"expected a box of four finite numbers, found {short(values)}", "bad_box")
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def _number(value: Any, decimal_comma: bool) -> float:
    """NaN for what is none."""
    if isinstance(value, str):
        text = value.strip()
        if decimal_comma and re.fullmatch(r"[+-]?\d+,\d+", text):
            text = text.replace(",", ".")
        return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else math.nan
    try:
        return float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # an integer beyond all floats
        return math.inf


def split_named(value: Any, where: str) -> Split | None:
    """A split by one of its usual names; raises EntryError for another one."""
    if value is None:
        return None
    name = str(value).strip().lower()
    if name not in SPLITS:
        raise EntryError(where, f"expected a split of {', '.join(SPLITS)}, found {short(value)}", "bad_split")
    return SPLITS[name]


def joined(pairs: Iterable[LabelledPair]) -> list[LabelledPair]:
    """Rows about the same two pictures as one pair, in the order of the first rows."""
    rows: dict[Any, list[LabelledPair]] = {}
    for pair in pairs:
        rows.setdefault(pair.names if all(pair.names) else pair.where, []).append(pair)
    return [_joined(same) for same in rows.values()]


def _joined(rows: Sequence[LabelledPair]) -> LabelledPair:
    first = rows[0]
    fault = next((row.fault for row in rows if row.fault), None)
    for what in ("split", "mask"):
        found = {getattr(row, what) for row in rows} - {None}
        if len(found) > 1 and fault is None:
            problem = f"the rows of one pair name several values as {what}: {', '.join(sorted(map(str, found)))}"
            fault = EntryError(first.where, problem, f"bad_{what}")
        values: dict[str, Any] = {what: next(iter(found), None)}
        first = replace(first, **values)
    boxes = tuple(box for row in rows for box in row.boxes)
    return replace(first, boxes=boxes, fault=fault)
