"""The files of a data folder against the hashes that its manifest gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dig_rl.data import METADATA_NAME
from dig_rl.durable import read_json_object
from dig_rl.errors import DigRlError
from dig_rl.image_files import leads_out
from dig_rl.inspection.findings import Finding

MANIFEST_NAME = "manifest.json"
_LISTED_FOLDERS = ("images", "scenes")


def read_manifest(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The manifest, None where there is none or it is damaged."""
    try:
        manifest = read_json_object(folder / MANIFEST_NAME, "make or copy the folder again")
    except (DigRlError, OSError) as error:
        return None, [Finding("error", str(error), MANIFEST_NAME)]
    if manifest is None:
        return None, []
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        return None, [Finding("error", "expected an object of file names and hashes under sha256", MANIFEST_NAME)]
    return manifest, []


def hash_findings(
    folder: Path, manifest: Mapping[str, Any], known: Mapping[str, str], pair_of_file: Mapping[str, tuple[int, str]]
) -> Iterator[Finding]:
    """Every file that is missing, changed or not listed.

    Args:
        folder: the data folder, resolved.
        manifest: as `read_manifest` gives it.
        known: sha256 of files that were read already and are sound, by name.
        pair_of_file: (line, pair id) of the files that pairs name.
    """
    listed: dict[str, str] = manifest["sha256"]
    for name, expected in listed.items():
        line, pair_id = pair_of_file.get(name, (None, None))
        if pair_id is not None and name not in known:
            continue  # what is wrong with it was said when its pair was examined
        found = known.get(name) or _sha256(folder, name)
        if found is None:
            yield Finding("error", f"{MANIFEST_NAME} lists this file, and it cannot be read", name)
        elif found != expected:
            change = f"has sha256 {found[:12]}..., {MANIFEST_NAME} says {expected[:12]}...: it was changed or damaged"
            if pair_id is None:
                yield Finding("error", change, name)
            else:
                yield Finding("error", f"image {name} {change}", METADATA_NAME, line, pair_id)
    for folder_name in _LISTED_FOLDERS:
        for path in sorted((folder / folder_name).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in listed:
                yield Finding("warning", f"{MANIFEST_NAME} does not list this file", name)


def _sha256(folder: Path, name: str) -> str | None:
    try:
        path = folder / name
        # Files that no line of the metadata names are read within the folder, and through its links, alone.
        if leads_out(name) or PurePosixPath(name).is_absolute() or not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, RuntimeError):
        return None
