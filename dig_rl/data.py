"""The data folder: what one line of `metadata.jsonl` holds, and reading it with every mistake named.

A data folder has `metadata.jsonl` (one pair a line) and `images/`; docs/data.md shows the whole layout. The same
records write it (`dig_rl.datagen`) and read it, so there is one schema. A line may leave out what is not known.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dig_rl.durable import json_lines
from dig_rl.errors import DataError, MissingSplitError
from dig_rl.faults import counted
from dig_rl.image_files import image_problem
from dig_rl.next_command import next_command
from dig_rl.types import BoxTarget, Example

Split = Literal["train", "validation", "test"]
Kind = Literal["color", "shape", "size", "material", "add", "remove", "move", "unknown"]
Coordinate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
"""xyxy in pixels of the stored image, half-open, origin top-left."""

METADATA_NAME = "metadata.jsonl"
_PAIR_ID = re.compile(r'"pair_id"\s*:\s*"([^"]*)"')


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DifferenceRecord(_Record):
    """One labelled change; what is not known is null, or left out of the line."""

    kind: Kind = "unknown"
    object_id: int | None = None
    """Id of the changed object in `scenes/<pair_id>.json`."""
    box: Box
    """Box that answers are compared with, by the folder's box target; left out, the box around the other two."""
    box_a: Box | None = None
    """Visible extent in the reference image; null when the object is not there."""
    box_b: Box | None = None
    """Visible extent in the changed image; null when the object is not there."""
    visible_px_a: int | None = Field(None, ge=0)
    visible_px_b: int | None = Field(None, ge=0)
    visible_fraction_a: float | None = Field(None, ge=0, le=1)
    """Visible pixels over the pixels that the object alone would show."""
    visible_fraction_b: float | None = Field(None, ge=0, le=1)


class PairRecord(_Record):
    """One line of `metadata.jsonl`."""

    image_a_file_name: str
    """Reference image, relative to the data folder, or an absolute path."""
    image_b_file_name: str
    """Changed image, relative to the data folder, or an absolute path."""
    pair_id: str = Field(min_length=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    num_differences: int = Field(ge=0)
    """Length of `differences`; counted where a line leaves it out."""
    split: Split
    seed: int | None = None
    """Seed from which the pair was made."""
    differences: tuple[DifferenceRecord, ...]


class ScannedLine(NamedTuple):
    """One line of `metadata.jsonl`, right or wrong."""

    number: int
    """Counted from 1."""
    pair_id: str | None
    """Also of a damaged line, where it can be found in it."""
    record: PairRecord | None
    """None where the line is no record."""
    problems: tuple[str, ...]


def target_box(box_a: Box | None, box_b: Box | None, box_target: BoxTarget) -> Box:
    """The box an answer should give for one change.

    Args:
        box_a: visible extent in the reference image, None when absent.
        box_b: visible extent in the changed image, None when absent; at least one of the two is there.
        box_target: `a` or `b` takes that image's box, or the other image's where the object is absent; `union`
            encloses both.
    """
    present = [box for box in (box_a, box_b) if box is not None]
    if len(present) == 1:
        return present[0]
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = present
    union = (min(ax0, bx0), min(ay0, by0), max(ax1, bx1), max(ay1, by1))
    return {"union": union, "a": present[0], "b": present[1]}[box_target]


def load_examples(
    data_dir: str | Path,
    split: str | None,
    *,
    allow_no_change: bool = False,
    box_target: BoxTarget = "union",
    check_images: bool = True,
) -> list[Example]:
    """Read one split of a data folder in the order of its lines; every line of the folder is checked.

    Args:
        data_dir: folder with `metadata.jsonl` and `images/`.
        split: `train`, `validation` or `test`; None, which a setting may be, has no pair.
        allow_no_change: accept pairs without any difference.
        box_target: which image a box refers to; recomputed from `box_a` and `box_b` where either is known.
        check_images: open both images of each pair of the split, check their size and that they are intact.

    Raises:
        DataError: a line, label or image is wrong; file, line and pair id of the first are named, and how many more
            have the same fault.
        MissingSplitError: the split has no pair.
    """
    folder = Path(data_dir).resolve()
    records = read_records(folder, allow_no_change=allow_no_change)
    chosen = [(line, record) for line, record in records if record.split == split]
    if not chosen:
        counts = Counter(record.split for _, record in records)
        offered = ", ".join(f"{count} of {name!r}" for name, count in counts.items()) or "no pairs"
        named = "none" if split is None else repr(split)
        raise MissingSplitError(f"no pair of split {named} in {folder / METADATA_NAME}, which holds {offered}")
    if check_images:
        _fail_at_first(
            folder,
            ((line, record.pair_id, problem) for line, record in chosen for problem in _image_problems(folder, record)),
        )
    return [_example(folder, record, box_target) for _, record in chosen]


def read_records(folder: Path, *, allow_no_change: bool = False) -> list[tuple[int, PairRecord]]:
    """Parse and check every line, as (line number from 1, record); raises DataError at the first wrong one."""
    lines = list(scan_records(folder, allow_no_change=allow_no_change))
    _fail_at_first(folder, ((line.number, line.pair_id, line.problems[0]) for line in lines if line.problems))
    return [(line.number, line.record) for line in lines if line.record is not None]


def scan_records(folder: Path, *, allow_no_change: bool = False) -> Iterator[ScannedLine]:
    """Parse and check every line that is not blank; what is wrong with one stands beside it.

    Raises:
        DataError: there is no `metadata.jsonl` that can be read.
    """
    path = folder / METADATA_NAME
    try:
        lines = json_lines(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; name a data folder, or make one: {next_command('data', OUT=folder)}"
        ) from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_line(line)
        if isinstance(record, str):
            found = _PAIR_ID.search(line.decode("utf-8", errors="replace"))
            yield ScannedLine(number, found.group(1) if found else None, None, (record,))
            continue
        problems = _label_problems(record, allow_no_change)
        first = seen.setdefault(record.pair_id, number)
        if first != number:
            problems.insert(0, f"this pair id was used before, in line {first}")
        yield ScannedLine(number, record.pair_id, record, tuple(problems))


def _parse_line(line: bytes) -> PairRecord | str:
    """The record, or why the line is none."""
    try:
        values = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, found {type(values).__name__}")
        return PairRecord.model_validate_json(json.dumps(_completed(values)), strict=True)
    except ValidationError as error:
        return "; ".join(_describe(item) for item in error.errors())
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"not one complete JSON object ({error}); is the file cut off?"


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """A line with what follows from the rest of it: a hand-written one need not say these."""
    differences = values.get("differences")
    if not isinstance(differences, list):
        return values
    counted_here = {"num_differences": len(differences)} if values.get("num_differences") is None else {}
    return {**values, **counted_here, "differences": [_completed_difference(item) for item in differences]}


def _completed_difference(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    known = {key: value for key, value in values.items() if key not in ("kind", "box") or value is not None}
    sides = [box for box in (known.get("box_a"), known.get("box_b")) if box is not None]
    if "box" not in known and sides and all(map(_four_numbers, sides)):
        known["box"] = target_box(sides[0], sides[-1], "union")
    return known


def _four_numbers(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}"
    if problem["type"] == "missing":
        instead = ", or box_a or box_b" if re.fullmatch(r"differences\.\d+\.box", where) else ""
        return f"missing key {where}{instead}"
    return f"{where}: {problem['msg']}, found {problem['input']!r:.80}"


def _label_problems(record: PairRecord, allow_no_change: bool) -> list[str]:
    problems = []
    if record.num_differences != len(record.differences):
        listed = f"{len(record.differences)} differences are listed"
        problems.append(f"num_differences is {record.num_differences}, but {listed}")
    if not record.differences and not allow_no_change:
        problems.append(
            "no difference at all; ALLOW_NO_CHANGE=1 takes such pairs (data.allow_no_change = true in a config)"
        )
    for index, difference in enumerate(record.differences):
        for name in ("box", "box_a", "box_b"):
            box = getattr(difference, name)
            if box is not None and not _inside(box, record.width, record.height):
                expected = f"0 <= x_min < x_max <= {record.width} and 0 <= y_min < y_max <= {record.height}"
                problems.append(f"differences.{index}.{name} {list(box)}: expected {expected}")
    return problems


def _inside(box: Box, width: int, height: int) -> bool:
    x_min, y_min, x_max, y_max = box
    return 0 <= x_min < x_max <= width and 0 <= y_min < y_max <= height


def _image_problems(folder: Path, record: PairRecord) -> Iterator[str]:
    for name in (record.image_a_file_name, record.image_b_file_name):
        problem = image_problem(folder, name, (record.width, record.height))
        if problem:
            yield f"image {name} {problem}"


def _fail_at_first(folder: Path, problems: Iterable[tuple[int, str | None, str]]) -> None:
    """Raise DataError for the first of (line, pair id, problem), with the number of lines that have the same one."""
    found = list(problems)
    if found:
        (number, pair_id, problem), others = counted(found, lambda item: item[2])[0]
        lines = sorted({item[0] for item in others} - {number})
        more = f"; the same fault in {len(lines)} more line{'s'[: len(lines) > 1]}" if lines else ""
        raise DataError(f"{folder / METADATA_NAME}, line {number}, pair {pair_id or 'unknown'}: {problem}{more}")


def _example(folder: Path, record: PairRecord, box_target: BoxTarget) -> Example:
    return Example(
        pair_id=record.pair_id,
        image_a_path=str(folder / record.image_a_file_name),
        image_b_path=str(folder / record.image_b_file_name),
        image_size_px=(record.width, record.height),
        target_boxes_px=tuple(_target(difference, box_target) for difference in record.differences),
        kinds=tuple(difference.kind for difference in record.differences),
        split=record.split,
        visible_fractions=tuple(_visible_fraction(difference) for difference in record.differences),
    )


def _visible_fraction(difference: DifferenceRecord) -> float | None:
    """The lower fraction of those pictures that show the object; None if one of them is not known."""
    sides = (
        (difference.box_a, difference.visible_fraction_a),
        (difference.box_b, difference.visible_fraction_b),
    )
    shown = [fraction for box, fraction in sides if box is not None]
    known = [fraction for fraction in shown if fraction is not None]
    return min(known) if known and len(known) == len(shown) else None


def _target(difference: DifferenceRecord, box_target: BoxTarget) -> Box:
    if difference.box_a is None and difference.box_b is None:
        return difference.box
    return target_box(difference.box_a, difference.box_b, box_target)
