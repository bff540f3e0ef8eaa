"""RefCOCO, RefCOCO+ and RefCOCOg from a local copy, in any of the three layouts that they are passed round in.

Sources:
    refer: github.com/lichengunc/refer, `refer.py`: `<set>/refs(<by>).p`, `<set>/instances.json`, and COCO's train2014.
    parquet: huggingface.co/datasets/lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: `<Set>/data/<split>-*.parquet`, one row a
        region with all its expressions, `bbox` as x, y, width, height, pictures inside.
    jsonl: Qwen-VL's evaluation files `<set>_<split>.jsonl`, one expression a line, `bbox` as two corners.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dig_rl.durable import json_lines
from dig_rl.errors import DataError
from dig_rl.evaluation.grounding import Expression
from dig_rl.exchange.pickles import read_pickle
from dig_rl.exchange.published import checked_box, file_inside, numbers, read_json, safe_id, short
from dig_rl.image_files import DAMAGE, stored_size

STANDARD_EXPRESSIONS = {
    "refcoco_val": 10834,
    "refcoco_testA": 5657,
    "refcoco_testB": 5095,
    "refcoco+_val": 10758,
    "refcoco+_testA": 5726,
    "refcoco+_testB": 4889,
    "refcocog_val": 4896,
    "refcocog_test": 9602,
}
"""Expressions of the eight splits that papers report: by UNC for RefCOCO and RefCOCO+, by UMD for RefCOCOg."""

_REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
_PARQUET_FOLDERS = {"refcoco": "RefCOCO", "refcoco+": "RefCOCOplus", "refcocog": "RefCOCOg"}
_IMAGE_FOLDERS = (".", "train2014", "images/train2014", "images/mscoco/images/train2014", "coco/train2014", "images")
_COLUMNS = ["question_id", "image", "answer", "bbox"]
_MAX_CHARACTERS = 1000
_ROWS = 32
_EXPECTED = (
    "expected a folder with refcoco/refs(unc).p and refcoco/instances.json (the refer repository), or "
    "RefCOCO/data/val-*.parquet (lmms-lab on Hugging Face), or refcoco_val.jsonl (Qwen's evaluation files); likewise "
    "for refcoco+ and refcocog"
)


@dataclass(frozen=True)
class SplitFile:
    """One split of one data set, found but not read."""

    name: str
    """`refcoco_testA` and the like."""
    layout: str
    """`refer`, `parquet` or `jsonl`."""
    read: Callable[[Path], list[Expression]]
    """Reads it; given a folder, in which pictures that come inside another file are put."""


def find_splits(root: Path) -> dict[str, SplitFile]:
    """Which of the eight splits a local copy holds, by name.

    Args:
        root: folder in one of the layouts; COCO's pictures in it, or in a `train2014` beside its files.

    Raises:
        DataError: there is none.
    """
    found = {}
    for name in STANDARD_EXPRESSIONS:
        dataset, _, split = name.partition("_")
        refs = root / dataset / _REFS[dataset]
        parts = sorted((root / _PARQUET_FOLDERS[dataset]).glob(f"data/{split}-*.parquet"))
        lines = [path for path in (root / f"{name}.jsonl", root / dataset / f"{name}.jsonl") if path.is_file()]
        if refs.is_file():
            found[name] = SplitFile(name, "refer", _reader(_read_refer, root, refs, split))
        elif parts:
            found[name] = SplitFile(name, "parquet", _parquet_reader(parts))
        elif lines:
            found[name] = SplitFile(name, "jsonl", _reader(_read_lines, root, lines[0], split))
    if not found:
        raise DataError(f"{root} holds no split of RefCOCO, RefCOCO+ or RefCOCOg; {_EXPECTED}")
    return found


def _reader(
    read: Callable[[Path, Path, str], Iterator[Expression]], root: Path, path: Path, split: str
) -> Callable[[Path], list[Expression]]:
    return lambda _pictures: _not_empty(read(root, path, split), path)


def _parquet_reader(parts: list[Path]) -> Callable[[Path], list[Expression]]:
    return lambda pictures: _not_empty(
        (expression for part in parts for expression in _read_parquet(part, pictures)), parts[0]
    )


def _not_empty(expressions: Iterator[Expression], path: Path) -> list[Expression]:
    read = list(expressions)
    if not read:
        raise DataError(f"{path}: expected expressions of this split, found none")
    return read


def _read_refer(root: Path, refs_path: Path, split: str) -> Iterator[Expression]:
    refs = read_pickle(refs_path)
    instances_path = refs_path.with_name("instances.json")
    instances = read_json(instances_path, dict)
    images = _by_id(instances, "images", instances_path)
    boxes = _by_id(instances, "annotations", instances_path)
    if not isinstance(refs, list):
        raise DataError(f"{refs_path}: expected a list of references, found {type(refs).__name__}")
    for number, ref in enumerate(refs):
        where = f"{refs_path}, reference {number}"
        if _field(ref, "split", where) != split:
            continue
        image = _lookup(images, _field(ref, "image_id", where), f"{where}: image_id", instances_path)
        annotation = _lookup(boxes, _field(ref, "ann_id", where), f"{where}: ann_id", instances_path)
        path = _picture(root, _field(image, "file_name", where), where)
        size = _size(path, where)
        box = _from_corner(_field(annotation, "bbox", where), size, where)
        sentences = _field(ref, "sentences", where)
        if not isinstance(sentences, list):
            raise DataError(f"{where}: expected a list of sentences, found {short(sentences)}")
        for sentence in sentences:
            text = _phrase(_field(sentence, "sent", where), where)
            sent_id = _field(sentence, "sent_id", where)
            yield Expression(safe_id(split, sent_id), text, str(path), size, box)


def _read_lines(root: Path, path: Path, split: str) -> Iterator[Expression]:
    try:
        lines = json_lines(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}); copy the file again") from None
        picture = _picture(root, _field(row, "image", where), where)
        size = _size(picture, where)
        stated = (_field(row, "width", where), _field(row, "height", where))
        if stated != size:
            raise DataError(f"{where}: {picture} is {size[0]}x{size[1]}, the line says {short(stated)}")
        box = checked_box(_field(row, "bbox", where), size, where)
        yield Expression(safe_id(split, number), _phrase(_field(row, "sent", where), where), str(picture), size, box)


def _read_parquet(path: Path, pictures: Path) -> Iterator[Expression]:
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path} lacks the columns {', '.join(missing)}; found {file.schema_arrow.names}")
        for batch in file.iter_batches(_ROWS, columns=_COLUMNS):
            for row in batch.to_pylist():
                yield from _of_row(row, path, pictures)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a parquet file, or damaged ({error}); copy it again") from None


def _of_row(row: dict[str, Any], path: Path, pictures: Path) -> Iterator[Expression]:
    where = f"{path}, question_id {short(row['question_id'])}"
    contents = row["image"].get("bytes") if isinstance(row["image"], dict) else None
    if not isinstance(contents, bytes):
        raise DataError(f"{where}: expected the bytes of a picture, found {short(row['image'])}")
    # Many regions share a picture; its hash names it once.
    picture = pictures / f"{hashlib.sha256(contents).hexdigest()[:32]}.jpg"
    if not picture.exists():
        _size(io.BytesIO(contents), where)
        pictures.mkdir(parents=True, exist_ok=True)
        partial = picture.with_suffix(".partial")
        partial.write_bytes(contents)
        partial.replace(picture)
    size = _size(picture, where)
    box = _from_corner(row["bbox"], size, where)
    phrases = row["answer"]
    if not isinstance(phrases, list):
        raise DataError(f"{where}: expected a list of expressions in answer, found {short(phrases)}")
    for number, phrase in enumerate(phrases):
        yield Expression(safe_id(row["question_id"], number), _phrase(phrase, where), str(picture), size, box)


def _by_id(instances: dict[str, Any], key: str, path: Path) -> dict[Any, Any]:
    rows = _field(instances, key, str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of {key}, found {short(rows)}")
    found = {}
    for row in rows:
        identifier = _field(row, "id", f"{path}, {key}")
        if not isinstance(identifier, int | str):
            raise DataError(f"{path}, {key}: expected a number as id, found {short(identifier)}")
        found[identifier] = row
    return found


def _lookup(rows: dict[Any, Any], identifier: Any, where: str, path: Path) -> Any:
    if not isinstance(identifier, int | str) or identifier not in rows:
        raise DataError(f"{where} {short(identifier)} is not in {path}; both files must be of one data set")
    return rows[identifier]


def _field(row: Any, key: str, where: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise DataError(f"{where}: expected an entry with {key}, found {short(row)}")
    return row[key]


def _phrase(text: Any, where: str) -> str:
    # A special token in a phrase would become a picture, or end the question.
    if not isinstance(text, str) or not text.strip() or len(text) > _MAX_CHARACTERS or "<|" in text:
        raise DataError(f"{where}: expected an expression without special tokens, found {short(text)}")
    with contextlib.suppress(UnicodeError):  # then it is right as it is
        text = text.encode("latin1").decode("utf-8")  # as which pickles of Python 2 carry it
    return text.strip()


def _picture(root: Path, name: Any, where: str) -> Path:
    """The picture of that name: as the path is given, or by its last part in one of COCO's usual folders."""
    last = PurePosixPath(name).name if isinstance(name, str) else name
    for folder, candidate in (*((folder, last) for folder in _IMAGE_FOLDERS), (".", name)):
        if isinstance(candidate, str) and "\0" not in candidate and (root / folder / candidate).is_file():
            return file_inside(root / folder, candidate, where)
    raise DataError(
        f"{where}: picture {short(name)} is not in {root}; put COCO's train2014 there (a link will do), as "
        f"{root}/train2014"
    )


def _size(source: Path | io.BytesIO, where: str) -> tuple[int, int]:
    try:
        return stored_size(source)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: its picture is damaged ({error}); copy it again") from None


def _from_corner(values: Any, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """A box given as corner, width and height."""
    x_min, y_min, width, height = numbers(values, 4, where)
    return checked_box([x_min, y_min, x_min + width, y_min + height], size, where)
