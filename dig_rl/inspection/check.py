"""The whole check of a data folder, from its first line to what is worth a person's look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dig_rl.data import METADATA_NAME, scan_records
from dig_rl.image_files import folders_outside
from dig_rl.inspection.balance import (
    BalanceCheck,
    best_constant_box,
    change_table,
    check_balance,
    counts_by_split,
    kinds_by_split,
)
from dig_rl.inspection.box_formats import better_format, shares_in_words
from dig_rl.inspection.duplicates import DuplicateFigures, find_duplicates
from dig_rl.inspection.findings import Finding
from dig_rl.inspection.labels import least_visible
from dig_rl.inspection.manifest import hash_findings, read_manifest
from dig_rl.inspection.masks import IdRendererFactory
from dig_rl.inspection.pairs import PairExamination, PairExaminer, examine_pairs

Progress = Callable[[int, int], None]
"""Called with (pairs done, pairs in all)."""


@dataclass(frozen=True)
class DataCheck:
    """What a data folder holds, and what is wrong with it."""

    folder: Path
    findings: tuple[Finding, ...]
    """Errors first, each kind in the order of the lines."""
    pairs: tuple[PairExamination, ...]
    """Every line that holds a record, in order."""
    balance: tuple[BalanceCheck, ...]
    duplicates: DuplicateFigures
    has_manifest: bool
    boxes_drawn: bool
    """Whether boxes were compared with drawn scenes."""
    folders_outside: dict[str, str]
    """Where pictures really lie that a link or an absolute path leads to, by the folder of their names."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make the folder unfit for training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings for a person to judge."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def num_tagged(self) -> int:
        """Pictures whose file asks viewers to turn them, which nothing here does."""
        return sum(pair.num_tagged for pair in self.pairs)

    @property
    def sound_pairs(self) -> list[PairExamination]:
        """Pairs whose labels and images could be read: the ones that figures are about."""
        return [pair for pair in self.pairs if pair.figures is not None]


def check_folder(
    folder: Path,
    *,
    workers: int = 1,
    allow_no_change: bool = False,
    make_ids: IdRendererFactory | None = None,
    on_progress: Progress = lambda done, total: None,
) -> DataCheck:
    """Look at every file of a data folder; what is wrong is listed, not raised.

    Args:
        folder: generated or imported, with or without `manifest.json` and `scenes/`.
        workers: processes that open images.
        allow_no_change: accept pairs without any difference.
        make_ids: compare boxes with id pictures of the stored scenes that this draws.
        on_progress: called after every pair.

    Raises:
        DataError: there is no `metadata.jsonl`, or a checking process died.
    """
    folder = Path(folder).resolve()
    lines = list(scan_records(folder, allow_no_change=allow_no_change))
    findings = [
        Finding("error", problem, METADATA_NAME, line.number, line.pair_id)
        for line in lines
        if line.record is None
        for problem in line.problems
    ]
    if not lines:
        findings.append(Finding("error", "holds no pairs", METADATA_NAME))
    readable = [line for line in lines if line.record is not None]
    pairs: list[PairExamination] = []
    for pair in examine_pairs(readable, PairExaminer(folder, make_ids), workers):
        pairs.append(pair)
        findings += pair.findings
        on_progress(len(pairs), len(readable))
    manifest, problems = read_manifest(folder)
    findings += problems
    if manifest is not None:
        known = {name: digest for pair in pairs for name, digest in pair.sha256.items()}
        findings += hash_findings(folder, manifest, known, _pair_of_file(pairs))
    repeated, duplicates = find_duplicates(pairs)
    balance = check_balance([pair for pair in pairs if pair.figures is not None])
    findings += [*_suspected_format(pairs), *repeated]
    findings += [
        Finding("warning", f"{check.question} {check.figure}, limit {check.limit:g}", METADATA_NAME)
        for check in balance
        if check.verdict == "look"
    ]
    return DataCheck(
        folder=folder,
        findings=tuple(sorted(findings, key=lambda item: (item.severity, item.line or 0))),
        pairs=tuple(pairs),
        balance=tuple(balance),
        duplicates=duplicates,
        has_manifest=manifest is not None,
        boxes_drawn=make_ids is not None and any(pair.scenes for pair in pairs),
        folders_outside=folders_outside(folder, (name for pair in pairs for name in pair.sha256)),
    )


def figures_of(check: DataCheck) -> dict[str, Any]:
    """The contents of `check.json`: findings and figures as plain values."""
    sound = check.sound_pairs
    visible = [least_visible(item) for pair in sound for item in pair.record.differences]
    return {
        "data": check.folder.name,
        "errors": [asdict(finding) for finding in check.errors],
        "warnings": [asdict(finding) for finding in check.warnings],
        "num_pairs": len(check.pairs),
        "num_sound_pairs": len(sound),
        "num_changes": len(visible),
        "has_manifest": check.has_manifest,
        "folders_outside": check.folders_outside,
        "num_scenes": sum(pair.scenes is not None for pair in check.pairs),
        "boxes_compared_with_drawn_scenes": check.boxes_drawn,
        "pictures_with_a_turning_tag": check.num_tagged,
        "pairs_by_split_and_count": counts_by_split(sound),
        "changes_by_split_and_kind": kinds_by_split(sound),
        "explained": spread(pair.figures.explained for pair in sound if pair.figures),
        "explained_any": spread(pair.figures.explained_any for pair in sound if pair.figures),
        "changed_share_of_picture": spread(pair.figures.changed for pair in sound if pair.figures),
        "visible_fraction": spread(visible),
        "box_share_of_picture": spread(change_table(sound).sides_unit ** 2),
        "best_constant_box": _constant_box(sound),
        "duplicates": check.duplicates._asdict(),
        "balance": [asdict(item) for item in check.balance],
    }


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, least, median and greatest of the values that are known; None if none is."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return None
    parts = {"mean": known.mean(), "min": known.min(), "median": np.median(known), "max": known.max()}
    return {name: round(float(value), 6) for name, value in parts.items()}


def _suspected_format(pairs: Sequence[PairExamination]) -> list[Finding]:
    formats = [pair.formats for pair in pairs if pair.formats]
    rival = better_format(formats, "xyxy_px")
    if rival is None:
        return []
    shares = shares_in_words(formats, ["xyxy_px", rival])
    return [Finding("warning", f"the boxes look like {rival}, expected xyxy_px: {shares}", METADATA_NAME)]


def _constant_box(pairs: Sequence[PairExamination]) -> dict[str, Any] | None:
    table = change_table(pairs)
    if not len(table.pair):
        return None
    box, f1 = best_constant_box(table)
    return {"box_unit": [round(value, 6) for value in box.tolist()], "f1": round(f1, 6)}


def _pair_of_file(pairs: Sequence[PairExamination]) -> dict[str, tuple[int, str]]:
    names = ((pair, (pair.record.image_a_file_name, pair.record.image_b_file_name)) for pair in pairs)
    return {name: (pair.line, pair.record.pair_id) for pair, both in names for name in both}
