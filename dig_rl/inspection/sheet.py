"""`contact_sheet.html`: one self-contained page that shows a data folder to a person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from dig_rl.data import Box, DifferenceRecord
from dig_rl.inspection import plots
from dig_rl.inspection.balance import SPLITS, change_table, counts_by_split, kinds_by_split
from dig_rl.inspection.check import DataCheck
from dig_rl.inspection.labels import least_visible
from dig_rl.inspection.pairs import PairExamination
from dig_rl.reporting.pictures import embed_image
from dig_rl.reporting.plots import svg_data_uri

MAX_FINDINGS = 100
"""Findings of each severity on the page; `check.json` has all."""


@dataclass(frozen=True)
class ShownChange:
    """One labelled change as the page draws it."""

    number: int
    """From 1 within the pair."""
    kind: str
    text: str
    """The change in words where a scene is stored, else empty."""
    box_a: Box
    """Drawn on the reference picture."""
    box_b: Box
    """Drawn on the changed picture."""
    ghost: str
    """`a` or `b`: the picture in which the object is not there; empty where it is in both, or nobody knows."""
    size_px: tuple[float, float]
    """(width, height) of the box answers are compared with."""
    visible: float | None
    """Least visible fraction over both pictures."""


@dataclass(frozen=True)
class ShownPair:
    """One pair as the page draws it."""

    place: int
    """In the order of the folder."""
    pair_id: str
    split: str
    size_px: tuple[int, int]
    image_a: str
    """Data URI."""
    image_b: str
    changes: tuple[ShownChange, ...]
    smallest_px: float
    """Area of the smallest box."""
    least_visible: float
    explained: float | None
    findings: tuple[str, ...]


def contact_sheet(check: DataCheck, figures: dict[str, Any], max_pairs: int) -> str:
    """The page as HTML text; it needs no other file and no network.

    Args:
        check: a checked folder.
        figures: those of `figures_of(check)`.
        max_pairs: pairs to show, see `choose_pairs`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": _percent, "rect": _rect}
    shown = [_shown_pair(check.folder, pair, place) for place, pair in choose_pairs(check.sound_pairs, max_pairs)]
    return environment.get_template("sheet.html.jinja").render(
        check=check,
        figures=figures,
        pairs=shown,
        errors=check.errors[:MAX_FINDINGS],
        warnings=check.warnings[:MAX_FINDINGS],
        plots=balance_plots(check),
        kinds=sorted({change.kind for pair in shown for change in pair.changes}),
        counts=sorted({len(pair.changes) for pair in shown}),
        splits=[split for split in SPLITS if any(pair.split == split for pair in shown)],
    )


def choose_pairs(pairs: Sequence[PairExamination], most: int) -> list[tuple[int, PairExamination]]:
    """Up to `most` pairs in order: some with findings, the worst explained, and the rest evenly over the folder.

    Findings and the worst explained take at most a quarter of the places each.

    Returns:
        (place in the folder from 0, pair).
    """
    if len(pairs) <= most:
        return list(enumerate(pairs))
    with_findings = [place for place, pair in enumerate(pairs) if pair.findings]
    worst = sorted(range(len(pairs)), key=lambda place: _explained(pairs[place]))
    chosen = {*with_findings[: most // 4], *worst[: most // 4]}
    rest = [place for place in range(len(pairs)) if place not in chosen]
    chosen |= {rest[place] for place in np.linspace(0, len(rest) - 1, most - len(chosen)).round().astype(int)}
    return [(place, pairs[place]) for place in sorted(chosen)]


def balance_plots(check: DataCheck) -> list[tuple[str, str]]:
    """(title, data URI) of every plot; none for a folder without a change."""
    pairs = check.sound_pairs
    table = change_table(pairs)
    if not len(table.pair):
        return []
    explained: dict[str, list[float]] = defaultdict(list)
    visible: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        if pair.figures and pair.figures.explained is not None:
            explained[pair.record.split].append(pair.figures.explained)
        visible[pair.record.split] += [
            share for item in pair.record.differences if (share := least_visible(item)) is not None
        ]
    scenes: dict[int, list[int]] = defaultdict(list)
    for pair in pairs:
        if pair.scenes:
            scenes[pair.record.num_differences].append(len(pair.scenes.reference_objects))
    sizes = {split: 100 * table.sides_unit[table.split == split] ** 2 for split in np.unique(table.split)}
    drawn = [
        ("Kinds of change", plots.shares_by_split(kinds_by_split(pairs), "share of changes", even=True)),
        ("Changes in a pair", plots.shares_by_split(counts_by_split(pairs), "share of pairs")),
        ("Where changes are", plots.positions(table)),
        ("Size of the boxes", plots.histogram(sizes, "% of the picture")),
    ]
    if scenes:
        drawn.append(("Objects of a scene, by number of changes", plots.scene_sizes(scenes)))
    if any(visible.values()):
        drawn.append(("How much of a changed object shows", plots.histogram(visible, "visible fraction", top=1.0)))
    if any(explained.values()):
        drawn.append(("Changed pixels that the boxes explain", plots.histogram(explained, "share of a pair", top=1.0)))
    return [(title, svg_data_uri(svg)) for title, svg in drawn]


def _shown_pair(folder: Path, pair: PairExamination, place: int) -> ShownPair:
    record = pair.record
    words = pair.scenes.changes if pair.scenes else {}
    changes = tuple(
        _shown_change(item, number, words.get(item.object_id or 0, ""))
        for number, item in enumerate(record.differences, start=1)
    )
    return ShownPair(
        place=place,
        pair_id=record.pair_id,
        split=record.split,
        size_px=(record.width, record.height),
        image_a=embed_image(folder / record.image_a_file_name)[1],
        image_b=embed_image(folder / record.image_b_file_name)[1],
        changes=changes,
        smallest_px=min((width * height for width, height in (change.size_px for change in changes)), default=0.0),
        least_visible=min((change.visible for change in changes if change.visible is not None), default=1.0),
        explained=pair.figures.explained if pair.figures else None,
        findings=tuple(finding.problem for finding in pair.findings),
    )


def _shown_change(item: DifferenceRecord, number: int, text: str) -> ShownChange:
    x_min, y_min, x_max, y_max = item.box
    if item.kind == "move":
        text += " from here" if item.box_b is None else " to here"
    return ShownChange(
        number=number,
        kind=item.kind,
        text=text,
        box_a=item.box_a or item.box,
        box_b=item.box_b or item.box,
        ghost="" if (item.box_a is None) == (item.box_b is None) else "a" if item.box_a is None else "b",
        size_px=(x_max - x_min, y_max - y_min),
        visible=least_visible(item),
    )


def _explained(pair: PairExamination) -> float:
    known = pair.figures.explained if pair.figures else None
    return 1.0 if known is None else known


def _rect(box: Box) -> str:
    """Attributes of an SVG `rect`."""
    x_min, y_min, x_max, y_max = box
    return f'x="{x_min:g}" y="{y_min:g}" width="{x_max - x_min:g}" height="{y_max - y_min:g}"'


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
