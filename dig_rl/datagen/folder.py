"""The data folder while it is being made: kill it anywhere, and what is there is whole.

Every file is written under `.building/` and moved to its place in one step; a pair's receipt is moved last, so a pair
with a receipt is finished. `metadata.jsonl` and `manifest.json` follow when every pair has one, then `.building/`
goes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from dig_rl.config import differing_keys
from dig_rl.data import METADATA_NAME, PairRecord
from dig_rl.datagen.labels import CHANGED_LEVELS
from dig_rl.datagen.pairs import FinishedPair, PairTask
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.errors import ConfigError, DataError

GENERATOR_VERSION = 2
"""Raised whenever one recipe would give other files than before."""
MANIFEST_NAME = "manifest.json"


class PairReceipt(BaseModel):
    """What is known of a finished pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: PairRecord
    rejections: dict[str, int]
    share_explained: float | None
    """Share of the changed pixels that lie in labelled boxes grown by one pixel; None when no pixel has changed."""
    sha256: dict[str, str]
    """Of each file of the pair, by its path in the data folder."""


class BuildFolder:
    """`<out>` with its `.building/`, held by one process at a time."""

    def __init__(self, out: Path, recipe: DataRecipe) -> None:
        """Open or create the folder; `with` takes the lock.

        Raises:
            ConfigError: the folder was made, or begun, with another recipe.
            DataError: the folder holds something else, or cannot be written.
        """
        self.out = out
        self._recipe = recipe.model_dump(mode="json")
        self._work = out / ".building"
        self._lock: IO[bytes] | None = None
        self._refuse_other_recipe(out / MANIFEST_NAME)
        self._refuse_other_recipe(self._work / "recipe.json")
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is a file; name a folder with OUT=")
        known = (out / MANIFEST_NAME).exists() or self._work.exists()
        if out.exists() and not known and any(out.iterdir()):
            raise DataError(
                f"{out} holds files that are not a data folder of ours; name an empty or new folder with OUT="
            )

    @property
    def complete(self) -> bool:
        """Whether every file of the finished folder is there."""
        manifest = self.out / MANIFEST_NAME
        return manifest.exists() and all((self.out / name).exists() for name in _read_object(manifest)["sha256"])

    def __enter__(self) -> BuildFolder:
        """Create the folders and take the lock."""
        try:
            for folder in (self.out / "images", self.out / "scenes", self._work / "receipts", self._work / "partial"):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._work / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another process is making {self.out}; wait for it, or name another folder with OUT="
            ) from None
        except OSError as error:
            raise DataError(f"cannot write {self.out}: {error.strerror}; name a writable folder with OUT=") from None
        self._write("recipe.json", _json(self._recipe), self._work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()

    def finished(self, task: PairTask) -> PairReceipt | None:
        """The receipt of a pair whose files are all as they were written, else None."""
        try:
            receipt = PairReceipt.model_validate_json(self._receipt_path(task.pair_id).read_bytes())
            intact = all(_sha256((self.out / name).read_bytes()) == value for name, value in receipt.sha256.items())
        except (FileNotFoundError, ValidationError):
            return None
        return receipt if intact else None

    def add(self, pair: FinishedPair) -> PairReceipt:
        """Write a pair's files and, when they are in place, its receipt.

        Raises:
            DataError: a file cannot be written.
        """
        record = pair.record
        files = {
            record.image_a_file_name: encode_png(pair.images[0]),
            record.image_b_file_name: encode_png(pair.images[1]),
            f"scenes/{record.pair_id}.json": _json(pair.scenes),
        }
        for name, contents in files.items():
            self._write(name, contents, self.out)
        receipt = PairReceipt(
            record=record,
            rejections=dict(pair.rejections),
            share_explained=pair.share_explained,
            sha256={name: _sha256(contents) for name, contents in files.items()},
        )
        receipt_path = self._receipt_path(record.pair_id)
        self._write(receipt_path.name, receipt.model_dump_json().encode(), receipt_path.parent)
        return receipt

    def finish(self, receipts: Sequence[PairReceipt], renderer_version: str) -> None:
        """Write `metadata.jsonl` and `manifest.json` from the receipts of all pairs, and remove `.building/`."""
        metadata = "".join(receipt.record.model_dump_json() + "\n" for receipt in receipts).encode()
        rejections: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for receipt in receipts:
            rejections.update(receipt.rejections)
            kinds.update(difference.kind for difference in receipt.record.differences)
        sha256 = {name: value for receipt in receipts for name, value in receipt.sha256.items()}
        manifest = {
            "generator_version": GENERATOR_VERSION,
            "renderer": renderer_version,
            "recipe": self._recipe,
            "num_pairs": len(receipts),
            "pairs_by_split": dict(sorted(Counter(receipt.record.split for receipt in receipts).items())),
            "differences_by_kind": dict(sorted(kinds.items())),
            "rejections": dict(sorted(rejections.items())),
            "changed_px_explained": _summary({item.record.pair_id: item.share_explained for item in receipts}),
            "sha256": dict(sorted({**sha256, METADATA_NAME: _sha256(metadata)}.items())),
        }
        self._write(METADATA_NAME, metadata, self.out)
        self._write(MANIFEST_NAME, _json(manifest), self.out)
        self.remove_work()

    def remove_work(self) -> None:
        """Remove `.building/` of a complete folder."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _receipt_path(self, pair_id: str) -> Path:
        return self._work / "receipts" / f"{pair_id}.json"

    def _write(self, name: str, contents: bytes, folder: Path) -> None:
        partial = self._work / "partial" / Path(name).name
        try:
            partial.write_bytes(contents)
            partial.replace(folder / name)
        except OSError as error:
            raise DataError(
                f"cannot write {folder / name}: {error.strerror}; free some space or name another folder with OUT=, "
                "finished pairs are kept and the same command goes on"
            ) from None

    def _refuse_other_recipe(self, path: Path) -> None:
        if not path.exists():
            return
        saved = _read_object(path)
        differences = differing_keys(saved.get("recipe", saved), self._recipe)
        if saved.get("generator_version", GENERATOR_VERSION) != GENERATOR_VERSION:
            differences.append(f"generator_version: {saved['generator_version']} -> {GENERATOR_VERSION}")
        if differences:
            listed = "\n  ".join(differences)
            raise ConfigError(
                f"{self.out} was made with other settings:\n  {listed}\nname another folder with OUT=, or delete it"
            )


def encode_png(picture: np.ndarray) -> bytes:
    """A PNG of `[H, W, 3]` uint8 that depends on the pixels alone: no date, no render time."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _summary(shares: dict[str, float | None]) -> dict[str, Any]:
    """Mean, quantiles and values of the pairs that have one."""
    by_pair = {pair_id: round(share, 4) for pair_id, share in shares.items() if share is not None}
    values = list(by_pair.values())
    levels = {"least": 0.0, "p05": 0.05, "median": 0.5}
    figures = {name: round(float(np.quantile(values, level)), 4) if values else None for name, level in levels.items()}
    mean = round(float(np.mean(values)), 4) if values else None
    return {"changed_levels": CHANGED_LEVELS, "mean": mean, **figures, "by_pair": by_pair}


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}); delete the folder {path.parent} and make it again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} should hold a JSON object; delete the folder {path.parent} and make it again")
    return values


def _sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()
