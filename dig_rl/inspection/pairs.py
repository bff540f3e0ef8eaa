"""Everything that can be said of one pair without looking at another; runs in several processes."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from dig_rl.boxes import BoxFormat
from dig_rl.data import METADATA_NAME, PairRecord, ScannedLine
from dig_rl.errors import DataError
from dig_rl.image_files import DAMAGE, UPRIGHT, image_problem, leads_out, read_with_tag
from dig_rl.inspection.box_formats import Agreement, agreements
from dig_rl.inspection.findings import Finding, Severity
from dig_rl.inspection.labels import label_problems
from dig_rl.inspection.masks import DrawIds, IdRendererFactory, mask_problems
from dig_rl.inspection.pixels import CHANGED_ABOVE, PixelFigures, change_levels, compare_pictures, thumbnail
from dig_rl.inspection.scenes import SceneFacts, StoredScenes, read_scenes

FEWEST_EXPLAINED = 0.5
"""A pair whose clear changes lie outside its boxes more often than inside deserves a look."""
FEWEST_TO_SHARE = 400
"""Fewer pairs are examined sooner than further processes have started."""
_CHUNK = 16


@dataclass(frozen=True)
class Picture:
    """One decoded image of a pair, as far as other pairs need to know it."""

    digest: str
    """sha256 of its size and pixels: the same for the same picture in another file."""
    thumbnail: np.ndarray
    """`[12, 16, 3]` uint8."""


@dataclass(frozen=True)
class PairExamination:
    """What was found in one pair."""

    line: int
    record: PairRecord
    findings: tuple[Finding, ...]
    sha256: Mapping[str, str]
    """Of each sound file of the pair, by its name in the data folder."""
    pictures: tuple[Picture, Picture] | None
    """None where an image is broken."""
    figures: PixelFigures | None
    """None where an image or a label is broken."""
    scenes: SceneFacts | None
    """None where no scene is stored."""
    formats: Mapping[BoxFormat, Agreement] | None
    """What the pixels say to each way to read the boxes; None where something is broken, or nothing changed clearly."""
    num_tagged: int
    """Pictures whose file asks viewers to turn them."""


@dataclass(frozen=True)
class PairExaminer:
    """How to examine a pair; travels to the processes that do it."""

    folder: Path
    """The data folder, resolved."""
    make_ids: IdRendererFactory | None = None
    """Draws stored scenes to compare boxes with; None leaves that out."""

    def __call__(self, line: ScannedLine) -> PairExamination:
        """Examine the pair of one line that holds a record."""
        record = line.record
        assert record is not None
        notes = _Notes(line.number, record.pair_id)
        for problem in line.problems:
            notes.add("error", problem)
        images = [self._image(name, record, notes) for name in (record.image_a_file_name, record.image_b_file_name)]
        digests = {name: digest for _, names, _ in images for name, digest in names.items()}
        arrays = [array for array, *_ in images if array is not None]
        if not line.problems:
            for problem in label_problems(record):
                notes.add("error", problem)
        figures, formats = None, None
        if len(arrays) == 2 and not line.problems:
            figures = _compare(arrays, record, notes)
            if record.differences and figures.changed > 0:
                values = np.array([difference.box for difference in record.differences])
                formats = agreements(change_levels(arrays[0], arrays[1]) > CHANGED_ABOVE, values)
        scenes = self._scenes(record, notes, digests)
        if scenes is not None and self.make_ids is not None and not line.problems:
            self._compare_masks(scenes, record, notes)
        pictures = [Picture(_pixel_digest(array), thumbnail(array)) for array in arrays]
        return PairExamination(
            line=line.number,
            record=record,
            findings=tuple(notes.findings),
            sha256=digests,
            pictures=(pictures[0], pictures[1]) if len(pictures) == 2 else None,
            figures=figures,
            scenes=scenes.facts() if scenes else None,
            formats=formats,
            num_tagged=sum(tag != UPRIGHT for *_, tag in images),
        )

    def _image(self, name: str, record: PairRecord, notes: _Notes) -> tuple[np.ndarray | None, dict[str, str], int]:
        """The picture, None if it is not sound, the hash of its file, if it could be read, and the turn it asks for."""
        problem = image_problem(self.folder, name, (record.width, record.height))
        digests: dict[str, str] = {}
        if problem is None:
            try:
                digests[name] = _file_digest(self.folder / name)
                image, tag = read_with_tag(self.folder / name)
                return np.asarray(image), digests, tag
            except DAMAGE as error:
                problem = f"is damaged ({error}); make or copy it again"
        notes.add("error", f"image {name} {problem}")
        return None, digests, UPRIGHT

    def _scenes(self, record: PairRecord, notes: _Notes, digests: dict[str, str]) -> StoredScenes | None:
        name = f"scenes/{record.pair_id}.json"
        if not (self.folder / "scenes").is_dir():
            return None
        try:
            path = (self.folder / name).resolve()
            if leads_out(record.pair_id):
                notes.add("error", "the pair id leads out of scenes/; expected a name without slashes", file=name)
                return None
            if not path.is_file():
                notes.add("warning", "does not exist, while other pairs have their scenes", file=name)
                return None
            digests[name] = _file_digest(path)
        except (OSError, ValueError, RuntimeError) as error:
            notes.add("error", f"cannot be looked up ({error})", file=name)
            return None
        scenes = read_scenes(path, record)
        if isinstance(scenes, str):
            notes.add("error", scenes, file=name)
            return None
        return scenes

    def _compare_masks(self, scenes: StoredScenes, record: PairRecord, notes: _Notes) -> None:
        assert self.make_ids is not None
        draw = _id_renderer(self.make_ids, record.width, record.height)
        try:
            ids_a, ids_b = draw(scenes.scene_a), draw(scenes.scene_b)
        except DataError as error:
            notes.add("error", f"cannot be drawn: {error}", file=f"scenes/{record.pair_id}.json")
            return
        for problem in mask_problems(record, ids_a, ids_b):
            notes.add("error", problem)


def examine_pairs(lines: Sequence[ScannedLine], examiner: PairExaminer, workers: int) -> Iterator[PairExamination]:
    """Examine every line that holds a record, in order.

    Args:
        lines: scanned lines.
        examiner: what to do.
        workers: processes; with 1, or few lines, everything happens in this one.

    Raises:
        DataError: a process died, which only a lack of memory or a fault in an image library does.
    """
    if workers == 1 or len(lines) < FEWEST_TO_SHARE:
        yield from map(examiner, lines)
        return
    # Started afresh: a fork of a process with threads (the progress bar's) may hang. Ctrl-C is the parent's to answer.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    waiting = iter(lines)
    try:
        # In batches, so that a large folder is not queued whole and Ctrl-C is answered soon.
        while batch := list(islice(waiting, _CHUNK * 8 * workers)):
            yield from pool.map(examiner, batch, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise DataError("a checking process died; free memory, or run again with WORKERS=1") from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Notes:
    def __init__(self, line: int, pair_id: str) -> None:
        self._line, self._pair_id = line, pair_id
        self.findings: list[Finding] = []

    def add(self, severity: Severity, problem: str, file: str | None = None) -> None:
        line = self._line if file is None else None
        self.findings.append(Finding(severity, problem, file or METADATA_NAME, line, self._pair_id))


@lru_cache(maxsize=4)
def _id_renderer(make: IdRendererFactory, width: int, height: int) -> DrawIds:
    return make(width, height)


def _compare(arrays: Sequence[np.ndarray], record: PairRecord, notes: _Notes) -> PixelFigures:
    figures, largest = compare_pictures(arrays[0], arrays[1], record)
    for index, (difference, change) in enumerate(zip(record.differences, largest, strict=True)):
        where = f"differences.{index} ({difference.kind}) {list(difference.box)}"
        if change == 0:
            notes.add("error", f"{where}: both pictures are identical within the box")
        elif change <= CHANGED_ABOVE:
            notes.add("warning", f"{where}: no channel changes by more than {change} of 255 levels within the box")
    if record.differences and figures.explained is not None and figures.explained < FEWEST_EXPLAINED:
        share = f"{figures.explained:.0%} of the clearly changed pixels lie within the boxes"
        notes.add("warning", f"only {share}; is a change not labelled?")
    if not record.differences and figures.changed > 0:
        notes.add("warning", f"labelled as unchanged, but {figures.changed:.1%} of the pixels change clearly")
    return figures


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pixel_digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def default_workers() -> int:
    """One process a core that this process may use."""
    return len(os.sched_getaffinity(0))
