"""`.npy` and `.pkl` files of published data sets, read without running anything that is written in them.

A pickle is a program. Here it may only build numbers, text, lists, tuples, dicts and the numpy arrays that `np.save`
writes; the names it may call stand for the five objects below, never for the real ones.
Source: numpy's pickles (`ndarray.__reduce__`, `dtype.__reduce__`) and the `.npy` layout (`numpy.lib.format`).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from dig_rl.errors import DataError

MAX_FILE_BYTES = 256 * 2**20
_MAX_DEPTH = 16
_DTYPE = re.compile(r"O8?|[biuf][1248]|[US]\d{1,6}")


class _Dtype:
    """What `numpy.dtype` builds: a type code and a byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError(f"an array of numpy type {code!r:.40}")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("an array with fields")
        self.order = state[1]


class _Array:
    """What `numpy.ndarray` builds: a numpy array without objects, or the list of its objects."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, contents = state
        if dtype.code.startswith("O"):
            if len(shape) > 1 or not isinstance(contents, list) or len(contents) != math.prod(shape):
                raise ValueError(f"an array of objects of shape {shape!r:.40}")
            self.value: Any = contents if shape else contents[0]
        else:
            self.value = _from_bytes(contents, dtype, shape, "F" if fortran else "C")


# Instances of classes with empty slots: a pickle can call them, but set no attribute of them.
class _Callable:
    __slots__ = ()


class _MakeDtype(_Callable):
    __slots__ = ()

    def __call__(self, code: str, *_align_copy: object) -> _Dtype:
        return _Dtype(code)


class _Reconstruct(_Callable):
    __slots__ = ()

    def __call__(self, *_subtype_shape_code: object) -> _Array:
        return _Array()


class _FromBuffer(_Callable):
    __slots__ = ()

    def __call__(self, contents: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        return _from_bytes(contents, dtype, shape, order)


class _Scalar(_Callable):
    __slots__ = ()

    def __call__(self, dtype: _Dtype, contents: bytes) -> Any:
        return _from_bytes(contents, dtype, (1,), "C")[0].item()


class _Encode(_Callable):
    """`_codecs.encode(text, "latin1")`, as which old pickles write bytes."""

    __slots__ = ()

    def __call__(self, text: str, codec: str) -> bytes:
        if codec not in ("latin1", "latin-1"):
            raise ValueError(f"bytes written as {codec!r:.40}")
        return text.encode("latin1")


class _EmptyBytes(_Callable):
    """`bytes()`, as which old pickles write no bytes."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _EmptyDict(_Callable):
    """`collections.OrderedDict` and `collections.defaultdict`, whose items follow."""

    __slots__ = ()

    def __call__(self, *_factory: object) -> dict[Any, Any]:
        return {}


class _Token(_Callable):
    """A name that is only passed on: `numpy.ndarray`, the factory of a defaultdict."""

    __slots__ = ()


_STAND_INS: dict[str, _Callable] = {
    "numpy.ndarray": _Token(),
    "numpy.dtype": _MakeDtype(),
    "_codecs.encode": _Encode(),
    "collections.OrderedDict": _EmptyDict(),
    "collections.defaultdict": _EmptyDict(),
    "builtins.list": _Token(),
    "__builtin__.list": _Token(),  # the name of builtins in old pickles
    "__builtin__.bytes": _EmptyBytes(),
}
for _numpy in ("numpy.core", "numpy._core"):  # its name before and since numpy 2
    _STAND_INS[f"{_numpy}.multiarray._reconstruct"] = _Reconstruct()
    _STAND_INS[f"{_numpy}.multiarray.scalar"] = _Scalar()
    _STAND_INS[f"{_numpy}.numeric._frombuffer"] = _FromBuffer()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise ValueError(f"a call of {module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """Contents of a pickle of plain values and numpy arrays; arrays of objects become lists.

    Raises:
        DataError: the file cannot be read, is damaged, or asks for anything else.
    """
    return _unpickle(_read_bytes(path), path)


def read_npy(path: Path) -> Any:
    """Contents of a `.npy` file: an array, the list of its objects, or the one object of a 0-dimensional array.

    Raises:
        DataError: as `read_pickle`.
    """
    contents = _read_bytes(path)
    file = io.BytesIO(contents)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _fortran, dtype = read_header(file)
        rest = contents[file.tell() :]
        if not dtype.hasobject:
            if math.prod(shape) * dtype.itemsize != len(rest):
                raise ValueError(f"shape {shape} of {dtype} does not fit its {len(rest)} bytes")
            return np.lib.format.read_array(io.BytesIO(contents), allow_pickle=False)
    except Exception as error:  # whatever hostile bytes make numpy raise
        raise DataError(f"{path}: expected a numpy file ({type(error).__name__}: {error}); copy it again") from None
    return _unpickle(rest, path)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB; this is not the published file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _unpickle(contents: bytes, path: Path) -> Any:
    try:
        # The C unpickler allocates a memo as long as the largest index a file names; `genops` only reads.
        for operation, argument, _position in pickletools.genops(contents):
            far = "PUT" in operation.name and isinstance(argument, int) and argument > len(contents)
            if far or operation.name.startswith("EXT"):
                raise ValueError(f"operation {operation.name} {argument}")
        loaded = _Unpickler(io.BytesIO(contents), encoding="latin1").load()
        return _plain(loaded, {}, 0)
    except Exception as error:  # whatever a hostile program makes the unpickler raise
        raise DataError(
            f"{path}: expected a pickle of numbers, text, lists, dicts and numpy arrays, found {error} "
            f"({type(error).__name__}); nothing of it was run"
        ) from None


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Arrays unwrapped; an object that is referred to many times is converted once."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"values nested more than {_MAX_DEPTH} deep")
    if isinstance(value, (_Dtype, _Callable)):
        raise ValueError("a type where a value is expected")
    if not isinstance(value, (_Array, list, tuple, dict)):
        return value
    if id(value) not in done:
        if isinstance(value, _Array):
            converted = _plain(value.value, done, depth + 1)
        elif isinstance(value, dict):
            converted = {key: _plain(item, done, depth + 1) for key, item in value.items()}
        else:
            converted = [_plain(item, done, depth + 1) for item in value]
        done[id(value)] = converted
    return done[id(value)]


def _from_bytes(contents: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if dtype.code.startswith("O"):
        raise ValueError("objects written as bytes")
    if isinstance(contents, str):
        contents = contents.encode("latin1")  # Python 2
    kind = np.dtype(dtype.order + dtype.code)
    if math.prod(shape) * kind.itemsize != len(contents):
        raise ValueError(f"an array of shape {shape!r:.40} in {len(contents)} bytes")
    return np.frombuffer(bytes(contents), kind).reshape(shape, order="F" if order == "F" else "C")
