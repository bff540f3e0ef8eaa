"""Checkpoints on disk: complete and verified, or not there at all.

A checkpoint is a folder `step-N` with whatever the learner wrote, `state.json` (everything else a run needs to go on,
the step's score, and which step is the best so far) and `manifest.json` (size and sha256 of every file). It is built
as `step-N.partial` and renamed when it is on the disk. `best.json` beside the folders names the best of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dig_rl.durable import sync_to_disk, write_durably
from dig_rl.errors import CheckpointError
from dig_rl.room import describe_room, folder_size, free_bytes, is_no_room

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
BEST_FILE = "best.json"


class Best(NamedTuple):
    """The checkpoint with the highest score."""

    step: int
    score: float


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    """Optimiser steps it contains."""
    path: Path
    state: dict[str, Any]
    """What was given to `CheckpointStore.save`, after a round trip through JSON."""
    score: float | None = None
    """What its policy is worth; None if nobody has measured it."""
    warnings: tuple[str, ...] = ()
    """One sentence for each newer checkpoint that was passed over because it is damaged."""


class CheckpointStore:
    """The newest few checkpoints of a run, and the best one, in one folder."""

    def __init__(self, directory: Path, keep_last: int, *, keep_best: bool = True) -> None:
        """Describe a store; nothing is read or written yet.

        Args:
            directory: made when the first checkpoint is saved.
            keep_last: newest checkpoints that are kept, at least 1.
            keep_best: keep the one with the highest score as well.
        """
        self.directory = Path(directory)
        self.keep_last = keep_last
        self.keep_best = keep_best

    def save(
        self, step: int, write: Callable[[Path], None], state: dict[str, Any], *, score: float | None = None
    ) -> Path:
        """Save one checkpoint; a kill at any moment leaves the previous ones as they were.

        Older checkpoints beyond `keep_last` are then removed, the best excepted, and so are ones of a later step: a run
        that saves step N was restored from before them because they are damaged.

        Args:
            step: optimiser steps done.
            write: fills the (existing, empty) folder it is given; may leave the work to other processes.
            state: JSON-able; finite numbers only; neither `score` nor `best` among its keys.
            score: what the policy is worth, higher is better; None if nobody has measured it.

        Returns:
            The folder `step-N`.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        final = self._folder(step)
        partial = final.with_name(final.name + ".partial")
        try:
            self._remove_leftovers()
            partial.mkdir(parents=True)
            write(partial)
            best = self._best_of([(step, score), *self._scores(below=step)])
            contents = state | {"score": score, "best": best and best._asdict()}
            (partial / STATE_FILE).write_text(json.dumps(contents, allow_nan=False, indent=1), encoding="utf-8")
            _write_manifest(partial, step)
            self._publish(partial, final)
            self._point_to(best)
            self._prune(step, best)
        except OSError as error:
            # As soon as nobody has a file of the unfinished checkpoint open any more.
            free = free_bytes(self.directory) + folder_size(partial)
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(self._why_not_saved(step, error, free)) from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every file has the recorded size and hash; None if none was ever completed.

        What is later than that does not count as best any more.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        self._remove_leftovers()
        warnings: list[str] = []
        for step in sorted(self.steps(), reverse=True):
            damage = find_damage(self._folder(step))
            if damage is None:
                state = json.loads((self._folder(step) / STATE_FILE).read_text(encoding="utf-8"))
                self._point_to(self.best(up_to=step))
                score = state.pop("score", None)
                state.pop("best", None)
                return Checkpoint(step, self._folder(step), state, score, tuple(warnings))
            warnings.append(f"checkpoint of step {step} is damaged and passed over: {damage}")
            logger.warning(warnings[-1])
        if warnings:
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be used:\n  "
                + "\n  ".join(warnings)
                + "\nRestore the files, or start again under another RUN= name"
            )
        return None

    def best(self, up_to: int) -> Best | None:
        """The highest score among checkpoints of steps 1 to `up_to`, of equal ones the first; None if none has one."""
        return self._best_of(self._scores(below=up_to + 1))

    def _scores(self, below: int) -> list[tuple[int, float | None]]:
        return [(step, _recorded_score(self._folder(step))) for step in self.steps() if step < below]

    def _best_of(self, scores: list[tuple[int, float | None]]) -> Best | None:
        known = [Best(step, score) for step, score in scores if score is not None and self.keep_best]
        return max(known, key=lambda best: (best.score, -best.step), default=None)

    def _point_to(self, best: Best | None) -> None:
        path = self.directory / BEST_FILE
        if best is None:
            path.unlink(missing_ok=True)
        else:
            pointer = {"folder": self._folder(best.step).name, **best._asdict()}
            write_durably(path, json.dumps(pointer, indent=1) + "\n")

    def _folder(self, step: int) -> Path:
        return self.directory / f"step-{step}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or damaged, in no order."""
        matches = [re.fullmatch(r"step-(\d+)", path.name) for path in self.directory.glob("step-*")]
        return [int(match[1]) for match in matches if match]

    def _publish(self, partial: Path, final: Path) -> None:
        """Rename; a checkpoint of the same step stands aside until its successor is in place."""
        aside = final.with_name(final.name + ".replaced")
        if final.exists():
            final.rename(aside)
        partial.rename(final)
        sync_to_disk(self.directory)
        if aside.exists():
            shutil.rmtree(aside)

    def _prune(self, newest: int, best: Best | None) -> None:
        older = sorted(step for step in self.steps() if step < newest)
        abandoned = [step for step in self.steps() if step > newest]
        for step in older[: max(0, len(older) - (self.keep_last - 1))] + abandoned:
            if best is None or step != best.step:
                self._remove(self._folder(step))

    def _why_not_saved(self, step: int, error: OSError, free: int) -> str:
        kept, continued = sorted(self.steps()), "then run again with the same RUN= to continue"
        if not is_no_room(error):
            return (
                f"could not save the checkpoint of step {step} in {self.directory}: {error}; earlier checkpoints are "
                f"intact. Make the folder writable, {continued}"
            )
        needed = folder_size(self._folder(kept[-1])) if kept else None
        best = self.best(up_to=step)
        spare = [str(self._folder(old)) for old in kept[:-1] if best is None or old != best.step]
        delete = f"older checkpoints ({', '.join(spare)}) or other runs" if spare else "other files on that disk"
        return (
            f"no room for the checkpoint of step {step}: {describe_room(self.directory, free, needed)} ({error}). "
            f"Checkpoints of steps {', '.join(map(str, kept)) or 'none'} are intact. Delete {delete}, {continued}"
        )

    def _remove(self, folder: Path) -> None:
        """Rename first, so that a kill while deleting leaves a leftover and not a damaged checkpoint."""
        doomed = folder.with_name(folder.name + ".partial")
        folder.rename(doomed)
        shutil.rmtree(doomed)

    def _remove_leftovers(self) -> None:
        """Undo what a killed `save` left: put back a checkpoint that stood aside, delete unfinished folders."""
        for aside in self.directory.glob("step-*.replaced"):
            final = aside.with_suffix("")
            if final.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(final)
        for partial in self.directory.glob("step-*.partial"):
            shutil.rmtree(partial)
        for partial in self.directory.glob(f"{BEST_FILE}.partial"):
            partial.unlink()


def find_damage(folder: Path) -> str | None:
    """Compare a checkpoint with its manifest.

    Returns:
        None if every file has the recorded size and hash, else one clause naming the first file that has not.
    """
    try:
        recorded = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in recorded.items()}
    except FileNotFoundError:
        return f"{folder / MANIFEST_FILE} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / MANIFEST_FILE} is not a manifest"
    if STATE_FILE not in expected:
        return f"{folder / MANIFEST_FILE} does not list {STATE_FILE}"
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, recorded were {size}"
        if _sha256(path) != sha256:
            return f"{path} has other contents than recorded (sha256 differs)"
    return None


def _recorded_score(folder: Path) -> float | None:
    """Score of a checkpoint; None also where its state cannot be read."""
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_manifest(folder: Path, step: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [*paths, manifest, *folders, folder]:
        sync_to_disk(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
