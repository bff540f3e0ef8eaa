"""Finding the pictures that names mean: `a/` and `b/`, links, and the ways in which one name is written.

A letter with an accent is one sign on most systems and two on others, extensions are written large and small, and a
mask is a PNG whatever its picture is. A name that exists as it stands always wins; a likeness counts where it is the
only one.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from dig_rl.errors import DataError
from dig_rl.exchange.pair_labels import SIDES
from dig_rl.exchange.published import EntryError, short
from dig_rl.image_files import leads_out

MASKS = ("masks", "mask", "label", "labels")
"""Names of a folder of change masks, in any case."""
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif")


class PictureFolder:
    """A folder of pictures, subfolders and linked ones included; hidden files and other kinds of files are no part."""

    def __init__(self, path: Path) -> None:
        """Args: `path` of an existing folder."""
        self.path = path

    @cached_property
    def names(self) -> list[str]:
        """Relative to the folder, sorted."""
        return sorted(self._walk())

    def find(self, name: str) -> Path | None:
        """The picture that a name means, None where there is none, or several are equally alike."""
        exact = self.path / name
        if _is_file(exact):
            return exact
        for key, by_key in zip(_likenesses(name), self._by_likeness, strict=True):
            if len(by_key[key]) == 1:
                return self.path / by_key[key][0]
        return None

    @cached_property
    def _by_likeness(self) -> Sequence[defaultdict[str, list[str]]]:
        tables: list[defaultdict[str, list[str]]] = [defaultdict(list) for _ in _likenesses("")]
        for name in self.names:
            for table, key in zip(tables, _likenesses(name), strict=True):
                table[key].append(name)
        return tables

    def _walk(self) -> Iterator[str]:
        visited = set()
        for folder, folders, files in os.walk(self.path, followlinks=True):
            if (real := os.path.realpath(folder)) in visited:  # a loop of links
                folders.clear()
                continue
            visited.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and PurePosixPath(name).suffix.lower() in _EXTENSIONS:
                    yield (Path(folder) / name).relative_to(self.path).as_posix()


def subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder within another that has one of the names, in any case; the exact one first.

    Raises:
        DataError: several have.
    """
    found = [path for path in sorted(folder.iterdir()) if path.name.lower() in names and path.is_dir()]
    exact = [path for path in found if path.name in names]
    chosen = exact or found
    if len(chosen) > 1:
        listed = ", ".join(path.name for path in chosen)
        raise DataError(f"{folder} holds several folders for the same pictures: {listed}; leave one of them")
    return chosen[0] if chosen else None


class PairFolder:
    """A folder of one's own pairs: what its table names, and `a/` and `b/` where they are."""

    def __init__(self, path: Path) -> None:
        """Args: `path` of an existing folder."""
        self.path = path
        self.sides = [PictureFolder(found) if (found := subfolder(path, names)) else None for names in SIDES]
        masks = subfolder(path, MASKS)
        self.masks = PictureFolder(masks) if masks else None

    def both(self, name: str, where: str) -> tuple[Path, Path]:
        """The pictures of one name in `a/` and in `b/`; raises EntryError if one is not there."""
        found = []
        for side, names in zip(self.sides, SIDES, strict=True):
            if side is None:
                problem = (
                    f"expected the folders a/ and b/, which hold {short(name)}, found no {names[0]}/ in {self.path}"
                )
                raise EntryError(where, problem, "missing_folder")
            found.append(self._found(side, name, where))
        return found[0], found[1]

    def one(self, name: str, side: int, where: str) -> Path:
        """A picture by its own name: absolute, relative to the folder, or to its side's folder.

        A name without a folder is its side's first: a file of that name beside `a/` and `b/` is not meant.
        """
        if PurePosixPath(name).is_absolute():
            return self._checked(Path(name), name, where)
        folder = self.sides[side]
        if folder is None or leads_out(name):
            return self._checked(self.path / name, name, where)
        is_beside = _is_file(self.path / name) and ("/" in name or folder.find(name) is None)
        return self._checked(self.path / name, name, where) if is_beside else self._found(folder, name, where)

    def mask(self, name: str, where: str) -> Path:
        """A mask by its own name, or by the name of its picture; in `masks/` first."""
        if PurePosixPath(name).is_absolute() or leads_out(name):
            return self._checked(self.path / name, name, where)
        if self.masks is not None and (self.masks.find(name) or not _is_file(self.path / name)):
            return self._found(self.masks, name, where, "mask")
        if not _is_file(self.path / name):
            raise EntryError(where, f"mask {name} does not exist in {self.path}", "missing_mask")
        return self._checked(self.path / name, name, where)

    def _found(self, folder: PictureFolder, name: str, where: str, what: str = "image") -> Path:
        self._checked(None, name, where)
        found = folder.find(name)
        if found is None:
            raise EntryError(where, f"{what} {name} does not exist in {folder.path}", f"missing_{what}")
        return found

    def _checked(self, path: Path | None, name: str, where: str) -> Path:
        if leads_out(name) or "\0" in name or "\\" in name:
            problem = f"expected a path without `..` and backslashes, or an absolute one, found {short(name)}"
            raise EntryError(where, problem, "unsafe_path")
        if path is not None and not _is_file(path):
            raise EntryError(where, f"image {name} does not exist in {self.path}", "missing_image")
        return path or self.path


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _likenesses(name: str) -> tuple[str, ...]:
    """From near to far: the same letters, the same but for the extension's case, the same but for the extension."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    stem = str(path.with_suffix("")) if path.suffix else str(path)
    return (str(path), stem + path.suffix.lower(), stem)
