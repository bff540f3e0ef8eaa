"""Scalars of a run, written twice: `metrics.jsonl` for programs, TensorBoard for people.

Both are cut at the restored step when a run continues, so that every curve is drawn once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dig_rl.durable import sync_to_disk, write_durably
from dig_rl.errors import DigRlError
from dig_rl.metrics import METRICS_FILE, read_metrics

SUPERSEDED_FILE = "superseded.jsonl"


class Tracker:
    """Appends one line and one TensorBoard event a step; a context manager."""

    def __init__(self, run_dir: Path, *, restored_step: int | None, head: Sequence[Summary.Value] = ()) -> None:
        """Open both sinks, first cutting what a continued run will write again.

        Args:
            run_dir: the run folder; must exist.
            restored_step: step of the checkpoint the run continues from; None if it trains from the beginning. Lines of
                step 0, the policy before training, stay in either case.
            head: what TensorBoard alone gets, once a run: a later start replaces what an earlier one wrote.

        Raises:
            DigRlError: `metrics.jsonl` is damaged, or the folder cannot be written.
        """
        self._path = Path(run_dir) / METRICS_FILE
        last_kept = restored_step or 0
        try:
            _cut_lines(Path(run_dir), last_kept)
            self._events = _open_events(Path(run_dir) / "tensorboard", last_kept, head)
            self._lines = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self._path.parent, error) from error

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        stage: str | None = None,
        summaries: Sequence[Summary.Value] = (),
    ) -> None:
        """Write the metrics of one step; they are on their way to the disk when this returns.

        Args:
            step: optimiser steps done, counted from 1; 0 is the policy before training.
            metrics: scalars by their name in `dig_rl.metrics.METRICS`. NaN and infinities become null in
                `metrics.jsonl`, are counted in `tracking/non_finite`, and go to TensorBoard as they are.
            stage: curriculum stage of a training step; None for an evaluation.
            summaries: pictures, text and the like, for TensorBoard alone.

        Raises:
            DigRlError: the disk is full or the folder is gone.
        """
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        non_finite = sum(value is None for value in finite.values())
        line = {"step": step, "stage": stage, **finite, "tracking/non_finite": non_finite}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        scalars.append(Summary.Value(tag="tracking/non_finite", simple_value=non_finite))
        try:
            self._lines.write(json.dumps(line, allow_nan=False) + "\n")
            self._lines.flush()
            self._events.add_event(
                Event(wall_time=time.time(), step=step, summary=Summary(value=[*scalars, *summaries]))
            )
            self._events.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        """Finish both files; safe to call twice.

        Raises:
            DigRlError: the disk is full or the folder is gone.
        """
        try:
            with contextlib.closing(self._events):
                self._lines.close()
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is left in a buffer because the disk is full is no second error.
        with contextlib.suppress(DigRlError) if error is not None else contextlib.nullcontext():
            self.close()


def _cut_lines(run_dir: Path, last_kept: int) -> None:
    """Move lines after `last_kept` to `superseded.jsonl`; a line torn by a kill disappears."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return
    lines = read_metrics(run_dir)
    kept = [line for line in lines if line["step"] <= last_kept]
    cut = "".join(json.dumps(line) + "\n" for line in lines if line["step"] > last_kept)
    superseded = run_dir / SUPERSEDED_FILE
    before = superseded.read_text(encoding="utf-8") if superseded.exists() else ""
    # A kill between the two writes below makes the next start cut the same lines again.
    if cut and not before.endswith(cut):
        write_durably(superseded, before + cut)
    write_durably(path, "".join(json.dumps(line) + "\n" for line in kept))


def _open_events(folder: Path, last_kept: int, head: Sequence[Summary.Value]) -> EventFileWriter:
    """Start an event file that begins with `head` and the events kept from the earlier ones, which are then emptied.

    The copies equal their originals byte for byte, so a start that is killed between copying and emptying is repaired
    by the next one, which drops equal events. Emptied files go at the next start: a TensorBoard that is watching gets
    stuck on a file that disappears under it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old_files = sorted(folder.glob("events.out.tfevents.*"))
    old_events = [Event.FromString(record) for path in old_files for record in RawEventFileLoader(str(path)).Load()]
    tags = {value.tag for value in head}
    kept = {
        e.SerializeToString(): e
        for e in old_events
        if e.HasField("summary") and e.step <= last_kept and not any(value.tag in tags for value in e.summary.value)
    }
    writer = EventFileWriter(str(folder))
    if old_files:
        # Makes a TensorBoard that is already watching forget what it has read.
        writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
    if head:
        writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=head)))
    for event in sorted(kept.values(), key=lambda event: event.step):
        writer.add_event(event)
    writer.flush()
    sync_to_disk(folder)
    for path in old_files:
        if path.stat().st_size:
            os.truncate(path, 0)
        else:
            path.unlink()
    return writer


def _cannot_write(path: Path, error: OSError) -> DigRlError:
    return DigRlError(
        f"cannot write metrics to {path}: {error}; make room or make it writable, then run again with the same RUN="
    )
