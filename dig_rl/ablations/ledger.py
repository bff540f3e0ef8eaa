"""`docs/ablations.json`: one entry a finished run, from which tables and plots are made."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dig_rl.ablations.recipe import Axis
from dig_rl.durable import write_durably
from dig_rl.errors import DigRlError


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Figures(_Record):
    """Greedy answers to the held-out split."""

    f1: float
    mean_iou: float
    count_accuracy: float
    parse_rate: float


class Entry(Figures):
    """One finished run under one name; its figures are those after training."""

    axis: Axis
    arm: str
    seed: int
    steps: int = Field(ge=1)
    """Optimiser steps."""
    seconds: float = Field(ge=0)
    """Wall clock of the whole run, evaluations and starts of engines included."""
    training_seconds: float = Field(ge=0)
    """Of that, sampling, scoring, learning and handing weights over; of supervised runs, all but timing a step and the
    held-out answers."""
    completions: int = Field(ge=0)
    """Answers sampled and scored; 0 for supervised runs."""
    before: Figures
    """The same split, answered by the policy that the run began with."""
    fingerprint: str
    """Of settings, stages, policy and pairs (`dig_rl.ablations.plan`)."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two entries share."""
        return self.axis, self.arm, self.seed


_ENTRIES = TypeAdapter(list[Entry])


def read_entries(path: Path) -> list[Entry]:
    """Every entry, in the order written; none where there is no file.

    Raises:
        DigRlError: the file is damaged, or holds a run twice.
    """
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DigRlError(f"{path} is damaged: {where} {problem['msg']}; restore it from the last commit") from None
    keys = [entry.key for entry in entries]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise DigRlError(f"{path} holds {sorted(twice)[0]} twice; remove one of the two")
    return entries


def append_entries(path: Path, added: Sequence[Entry]) -> None:
    """Add the entries of one run to the file, all or none, also beside another process that does so.

    Raises:
        DigRlError: the file is damaged, or one of them is there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.parent):
        entries = read_entries(path)
        there = {entry.key for entry in entries}
        if again := [entry.key for entry in added if entry.key in there]:
            raise DigRlError(f"{path} has an entry for {again[0]} already")
        write_durably(path, json.dumps([entry.model_dump() for entry in [*entries, *added]], indent=1) + "\n")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the folder, and hold it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
