"""Reading `.npy` and `.pkl` files: what numpy would give for honest ones, and nothing run for hostile ones."""

from __future__ import annotations

import collections
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.errors import DataError
from dig_rl.exchange.pickles import read_npy, read_pickle
from tests.published_layouts import OBJECTS

ARRAYS = [
    np.arange(6),
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([True, False]),
    np.array(["ab", "c"]),
    np.zeros((0, 4)),
    np.float32(1.5),
]


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ARRAYS, ids=repr)
def test_arrays_are_those_that_pickle_gives(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    read = read_pickle(written(tmp_path / "a.pkl", {"x": array, 3: [array, None]}, protocol))
    assert list(read) == ["x", 3] and read[3][1] is None
    for found in (read["x"], read[3][0]):
        assert np.array_equal(found, array) and np.asarray(found).shape == array.shape


@pytest.mark.parametrize("array", ARRAYS[:-1], ids=repr)
def test_plain_npy_files_are_those_that_numpy_gives(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_npy(tmp_path / "a.npy"), array)


def test_npy_files_of_objects_become_lists_and_dicts(tmp_path: Path) -> None:
    np.save(tmp_path / "list.npy", np.array(OBJECTS, dtype=object))
    assert read_npy(tmp_path / "list.npy") == OBJECTS
    labels = collections.defaultdict(list, {"7": [(1, 2, 3, 4.5)], 8: np.array([[1, 2, 3, 4]])})
    np.save(tmp_path / "dict.npy", labels)  # type: ignore[arg-type]
    read = read_npy(tmp_path / "dict.npy")
    assert type(read) is dict and read["7"] == [[1, 2, 3, 4.5]] and read[8].tolist() == [[1, 2, 3, 4]]


def test_a_file_written_by_numpy_1_is_read(tmp_path: Path) -> None:
    """Its modules were called `numpy.core`; the files of CYWS are from 2022."""
    modern = pickle.dumps({"val": np.array([4, 5])}, protocol=3)
    old = modern.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != modern
    assert read_pickle(written(tmp_path / "a.pkl", old))["val"].tolist() == [4, 5]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch(path: Path) -> list[Any]:
    """Ways to run a command from a pickle, by the name that an error should tell."""
    command = f"touch {path}"
    return [
        ("posix.system", Calls(os.system, command)),
        ("builtins.eval", Calls(eval, f"__import__('os').system({command!r})")),
        ("builtins.exec", {"a": [1, {"b": Calls(exec, f"open({str(path)!r}, 'w')")}]}),
        ("builtins.getattr", Calls(getattr, "", "upper")),
        ("pathlib.PosixPath", path),
        ("numpy.load", Calls(np.load, str(path))),
    ]


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_with_code_is_named_and_not_run(tmp_path: Path, index: int, protocol: int) -> None:
    sentinel = tmp_path / "run"
    name, hostile = touch(sentinel)[index]
    contents = pickle.dumps(hostile, protocol=protocol)
    with pytest.raises(DataError, match=r"a\.pkl: expected a pickle of numbers.*nothing of it was run") as refused:
        read_pickle(written(tmp_path / "a.pkl", contents))
    assert not sentinel.exists()
    module, function = name.split(".")
    assert f"{module}.{function}" in str(refused.value) or f"__builtin__.{function}" in str(refused.value)


def test_a_hostile_npy_file_is_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "run"
    np.save(tmp_path / "a.npy", np.array([Calls(os.system, f"touch {sentinel}")], dtype=object))
    with pytest.raises(DataError, match=r"a\.npy: .*a call of posix\.system"):
        read_npy(tmp_path / "a.npy")
    assert not sentinel.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # which is what the published readers do
    assert sentinel.exists()


def laughs(depth: int) -> list[Any]:
    nested: list[Any] = [1] * 10
    for _ in range(depth):
        nested = [nested] * 10
    return nested


def cycle() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "LONG_BINPUT"),  # a memo of 16 GiB
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "bytearray8"),
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"\x80\x04cnumpy\nndarray\n.", "a type where a value"),
        (b"\x80\x04cnumpy\nndarray\n)\x81.", "NEWOBJ|class"),
        (b"(S'x'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04cnumpy\nndarray\n}X\x01\x00\x00\x00aNsb.", "AttributeError"),  # sets an attribute
        (cycle(), "nested more than 16 deep"),
        (laughs(20), "nested more than 16 deep"),
        (np.array([1], dtype=[("a", "i4")]), "numpy type 'V4'"),
        (np.array([1 + 2j]), "numpy type 'c16'"),
        (np.array([[1, None], [2, 3]], dtype=object), "objects of shape"),
        (pickle.dumps(np.arange(3)).replace(b"K\x03\x85", b"K\x09\x85"), "shape"),
        (b"", "EOF|exhausted"),
        (b"no pickle", "UnpicklingError|ValueError|IndexError"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, (bytes, str)) else type(value).__name__,
)
def test_bombs_and_strange_pickles_are_refused(tmp_path: Path, contents: Any, expected: str) -> None:
    with pytest.raises(DataError, match=rf"a\.pkl: .*({expected})"):
        read_pickle(written(tmp_path / "a.pkl", contents))


def test_shared_parts_are_read_once(tmp_path: Path) -> None:
    """Twelve levels of ten references each are a trillion numbers to whoever walks all of them."""
    read = read_pickle(written(tmp_path / "a.pkl", laughs(11)))
    assert len(read) == 10 and read[0] is read[9]


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        b"__import__('os').system('touch run')",
        b"(" * 200,
    ],
)
def test_hostile_npy_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    contents = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + b"\0" * 8
    (tmp_path / "a.npy").write_bytes(contents)
    with pytest.raises(DataError, match=r"a\.npy: expected a numpy file"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path.mkdir() or path])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(make(tmp_path / "a.npy"))


def test_damaged_files_are_refused_or_read_but_never_break_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, {"7": [(1, 2, 3, 4.5)], 8: np.array([[1, 2, 3, 4]]), 9: np.array(OBJECTS)})  # type: ignore[arg-type]
    whole = path.read_bytes()
    refused = 0
    choice = random.Random(4)
    damaged = [whole[:length] for length in range(0, len(whole), 3)]
    for _ in range(1500):
        spoilt = bytearray(whole)
        for _ in range(choice.randint(1, 3)):
            spoilt[choice.randrange(len(spoilt))] = choice.randrange(256)
        damaged.append(bytes(spoilt))
    for contents in damaged:
        path.write_bytes(contents)
        try:
            read_npy(path)
        except DataError:
            refused += 1
    assert refused > len(range(0, len(whole), 3))
