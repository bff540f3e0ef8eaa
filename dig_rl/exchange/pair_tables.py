"""One's own pairs from a CSV, TSV, JSON or JSON Lines file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dig_rl.durable import json_lines
from dig_rl.errors import DataError
from dig_rl.exchange.coco_pairs import read_coco_pairs
from dig_rl.exchange.pair_labels import (
    BOX_COLUMNS,
    FILE_COLUMNS,
    OTHER_COLUMNS,
    WHOLE_BOX,
    BoxForm,
    LabelledBox,
    LabelledPair,
    LabelTable,
    accepted_columns,
    column_name,
    first_present,
    four_numbers,
    joined,
    split_named,
)
from dig_rl.exchange.published import MAX_BOXES, EntryError, short

_DELIMITERS = ",;\t"
_SAID_DELIMITER = re.compile(r"sep=([,;\t])\s*", re.IGNORECASE)
"""A first line that some spreadsheets write."""
_MAX_FILE_BYTES = 2**30


def read_table(path: Path) -> LabelTable:
    """Read the pairs that a file names.

    Raises:
        DataError: the file cannot be read, is in another encoding, names no pairs, or lacks a column.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file named {', '.join(f'*{suffix}' for suffix in _READERS)}, or a folder")
    table = reader(path)
    if not table.pairs:
        raise DataError(f"{path}: expected at least one pair, found none")
    return table


def is_table(path: Path) -> bool:
    """Whether a file's name says that it may hold pairs."""
    return path.suffix.lower() in _READERS and not path.name.startswith(".") and path.is_file()


def _contents(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than 1 GiB; split it")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _text(path: Path, contents: bytes) -> str:
    """Decoded UTF-8, with or without a byte order mark."""
    try:
        if b"\0" in contents[:4096] or contents[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it looks like UTF-16")
        return contents.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path}: expected text in UTF-8 ({error}); save it again as UTF-8") from None


def _read_separated(path: Path) -> LabelTable:
    lines = io.StringIO(_text(path, _contents(path)), newline="")
    said = _SAID_DELIMITER.fullmatch(lines.readline())
    start = lines.tell() if said else 0
    lines.seek(start)
    delimiter = said[1] if said else _delimiter(lines.readline())
    lines.seek(start)
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        header = [column_name(name) for name in next(rows, [])]
        form, box_names = _box_columns(header)
        _require_columns(path, header, box_names)
        pairs = list(_rows(path, rows, header, form, box_names, decimal_comma=delimiter != ","))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not a table separated by {delimiter!r} ({error})") from None
    return LabelTable(joined(pairs), form, f"columns {', '.join(box_names or ('mask',))}")


def _delimiter(header: str) -> str:
    """The sign that makes the most columns of a header."""
    return max(_DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _box_columns(names: Sequence[str]) -> tuple[BoxForm | None, tuple[str, ...]]:
    """The form that the columns of a box say, and their names; no names where there is no box."""
    for form, columns in BOX_COLUMNS:
        if set(columns) <= set(names):
            return form, columns
    return None, tuple(name for name in WHOLE_BOX if name in names)[:1]


def _require_columns(path: Path, header: Sequence[str], box_names: Sequence[str]) -> None:
    has = {what: any(name in header for name in names) for what, names in (FILE_COLUMNS | OTHER_COLUMNS).items()}
    read = {*box_names, *(name for names in (FILE_COLUMNS | OTHER_COLUMNS).values() for name in names)}
    twice = sorted({name for name in header if name in read and header.count(name) > 1})
    missing = []
    if not (has["file"] or (has["a"] and has["b"])):
        missing.append("no column names the pictures")
    if not (box_names or has["mask"]):
        missing.append("no columns hold a box")
    if twice:
        missing.append(f"{', '.join(twice)} is there twice")
    if missing:
        found = ", ".join(filter(None, header)) or "nothing"
        raise DataError(f"{path}: {' and '.join(missing)}; found {found}; expected {accepted_columns()}")


def _rows(
    path: Path,
    rows: Any,
    header: Sequence[str],
    form: BoxForm | None,
    box_names: Sequence[str],
    *,
    decimal_comma: bool,
) -> Iterator[LabelledPair]:
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}, line {rows.line_num}"
        values = dict(zip(header, (cell.strip() for cell in row), strict=False))
        pair = _pair(values, where, partial(_row_box, values, where, form, box_names, decimal_comma=decimal_comma))
        if any(cell.strip() for cell in row[len(header) :]):
            problem = f"expected {len(header)} cells, found {len(row)}; quote a cell that holds the separator"
            pair = replace(pair, fault=EntryError(where, problem, "bad_row"))
        yield pair


def _row_box(
    values: Mapping[str, str], where: str, form: BoxForm | None, names: Sequence[str], *, decimal_comma: bool
) -> tuple[LabelledBox, ...]:
    cells = [values.get(name, "") for name in names]
    if not any(cells):
        return ()  # a pair without a change
    numbers = cells if form else re.findall(r"[^\s,;\[\]()]+", cells[0])
    label = first_present(values, OTHER_COLUMNS["label"]) or ""
    return (LabelledBox(four_numbers(numbers, where, decimal_comma=decimal_comma), label),)


def _pair(values: Mapping[str, Any], where: str, boxes: Callable[[], tuple[LabelledBox, ...]]) -> LabelledPair:
    """One pair; what is wrong with it stands in it."""
    names = {what: first_present(values, columns) for what, columns in FILE_COLUMNS.items()}
    pair = LabelledPair(where, **_pictures({what: str(name) if name else None for what, name in names.items()}))
    try:
        if any(name is not None and not isinstance(name, str) for name in names.values()) or not all(pair.names):
            found = {what: name for what, name in names.items() if name is not None}
            raise EntryError(where, f"expected the names of two pictures, found {short(found)}", "bad_names")
        mask = first_present(values, OTHER_COLUMNS["mask"])
        split = split_named(first_present(values, OTHER_COLUMNS["split"]), where)
        return LabelledPair(
            where, pair.file, pair.image_a, pair.image_b, boxes(), None if mask is None else str(mask), split
        )
    except EntryError as error:
        return LabelledPair(where, pair.file, pair.image_a, pair.image_b, fault=error)


def _pictures(names: Mapping[str, str | None]) -> dict[str, Any]:
    both = names["a"] and names["b"]
    return {
        "file": None if both else names["file"],
        "image_a": names["a"] if both else None,
        "image_b": names["b"] if both else None,
    }


def _read_json_lines(path: Path) -> LabelTable:
    contents = _contents(path)
    _text(path, contents)
    items = []
    for number, line in enumerate(json_lines(contents), start=1):
        if line.strip():
            items.append((f"{path}, line {number}", _json(path, line, f"line {number}")))
    return _from_objects(path, items)


def _read_json(path: Path) -> LabelTable:
    contents = _json(path, _text(path, _contents(path)).encode(), "the file")
    if isinstance(contents, dict) and isinstance(contents.get("images"), list) and "annotations" in contents:
        return read_coco_pairs(path, contents)
    if not isinstance(contents, list):
        expected = "COCO's images and annotations, or a list of pairs"
        raise DataError(f"{path}: expected an object with {expected}, found {short(contents)}")
    return _from_objects(path, [(f"{path}, entry {number}", item) for number, item in enumerate(contents)])


def _json(path: Path, text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} is not valid JSON ({error})") from None


def _from_objects(path: Path, items: Sequence[tuple[str, Any]]) -> LabelTable:
    """Pairs of objects with keys as the columns of a table have, and a list `boxes`; without it, as rows of a table."""
    pairs, forms, seen = [], set[BoxForm | None](), dict[tuple[str, str], tuple[str, bool]]()
    for where, item in items:
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, one pair a line, found {short(item)}")
        values = {column_name(key): value for key, value in item.items()}
        pair = _pair(values, where, partial(_object_boxes, values, where, forms))
        if not any(pair.names) and not any(first_present(values, names) for names in FILE_COLUMNS.values()):
            raise DataError(
                f"{where}: no key names the pictures; found {', '.join(values)}; expected {accepted_columns()}"
            )
        is_whole = "boxes" in values
        first, was_whole = seen.setdefault(pair.names, (where, is_whole))
        if first != where and (is_whole or was_whole) and pair.fault is None:
            error = EntryError(where, f"the pair {pair.names[0]} was there before, in {first}", "duplicate")
            pair = LabelledPair(where, pair.file, pair.image_a, pair.image_b, fault=error)
        pairs.append(pair)
    if len(forms) > 1:
        raise DataError(f"{path}: some boxes are lists or have keys of another form than others; write all in one way")
    form = next(iter(forms), None)
    return LabelTable(joined(pairs), form, f"keys of {form} boxes" if form else "lists of four numbers")


def _object_boxes(values: Mapping[str, Any], where: str, forms: set[BoxForm | None]) -> tuple[LabelledBox, ...]:
    label = first_present(values, OTHER_COLUMNS["label"])
    listed = values.get("boxes")
    if "boxes" not in values:
        if first_present(values, OTHER_COLUMNS["mask"]) is not None:
            return ()
        form, names = _box_columns(list(values))
        if not names:
            raise EntryError(where, f"expected a key boxes, found {', '.join(values)}", "missing_labels")
        if all(values[name] in (None, "") for name in names):
            return ()  # a pair without a change, like a row with empty cells
        listed = [values]
    if not isinstance(listed, list) or len(listed) > MAX_BOXES:
        raise EntryError(where, f"expected a list of at most {MAX_BOXES} boxes, found {short(listed)}", "bad_labels")
    labels = values.get("labels", [label] * len(listed))
    if not isinstance(labels, list) or len(labels) != len(listed):
        raise EntryError(where, f"expected one label a box, found {short(labels)}", "bad_labels")
    found = []
    for item, name in zip(listed, labels, strict=True):
        keys = {column_name(key): value for key, value in item.items()} if isinstance(item, dict) else {"box": item}
        form, names = _box_columns(list(keys))
        numbers = [keys[key] for key in names] if form else (keys[names[0]] if names else item)
        own_label = first_present(keys, OTHER_COLUMNS["label"]) or name or ""
        found.append(LabelledBox(four_numbers(numbers, where), str(own_label)))
        forms.add(form)
    return tuple(found)


_READERS: dict[str, Callable[[Path], LabelTable]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
}
