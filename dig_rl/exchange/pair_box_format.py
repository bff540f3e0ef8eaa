"""How the boxes of one's own pairs are written: what is said, and what the pixels say to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dig_rl.boxes import BoxFormat
from dig_rl.errors import DataError
from dig_rl.exchange.pair_labels import LabelTable
from dig_rl.exchange.pair_sources import OwnPairs, pictures_of
from dig_rl.exchange.pictures import read_picture
from dig_rl.exchange.published import EntryError
from dig_rl.inspection.box_formats import FORMATS, Agreement, agreements, best_format, better_format, shares_in_words
from dig_rl.inspection.pixels import CHANGED_ABOVE, change_levels

_PAIRS_COMPARED = 50
"""Pairs whose pixels are asked how boxes are written, spread evenly over all of them."""


def choose_format(found: OwnPairs, table: LabelTable, said: BoxFormat | None) -> tuple[BoxFormat, list[str]]:
    """How boxes are written, and what the pixels say against what was said.

    Raises:
        DataError: nobody says it, or the pixels speak against what the table alone says.
    """
    compared = _compare_formats(found)
    if said is None and table.form is None:
        best = best_format(compared)
        suggestion = f"suggested: BOXES={best}" if best else "the pixels do not decide"
        problem = f"{found.source} ({table.said}) does not say how its boxes are written"
        raise DataError(_ask(problem, compared, FORMATS, suggestion))
    chosen = said or ("xyxy_px" if table.form == "xyxy" else "xywh_px")
    rival = better_format(compared, chosen)
    values = [value for pair in table.pairs for box in pair.boxes for value in box.values]
    if said is None and rival is None and max(values) <= 1:
        rival = "xyxy_unit" if table.form == "xyxy" else "xywh_unit"
    if rival is None:
        return chosen, []
    if said is None:
        problem = f"{found.source} ({table.said}) would be read as {chosen}, and its boxes look like {rival}"
        raise DataError(_ask(problem, compared, (chosen, rival), f"suggested: BOXES={rival}"))
    shares = shares_in_words(compared, (chosen, rival))
    return chosen, [f"suspected: the boxes look like {rival}, read as {chosen}: {shares}"]


def _ask(
    problem: str, compared: Sequence[Mapping[BoxFormat, Agreement]], names: Sequence[BoxFormat], suggestion: str
) -> str:
    shares = f": {shares_in_words(compared, names)}" if compared else ""
    return f"{problem}; say it with BOXES=, one of {', '.join(FORMATS)}{shares}; {suggestion}"


def _compare_formats(found: OwnPairs) -> list[Mapping[BoxFormat, Agreement]]:
    """What the pixels of some pairs say to every way of writing boxes; pairs that cannot be opened are passed over."""
    usable = [pair for pair in found.labels if pair.boxes and pair.fault is None]
    compared: list[Mapping[BoxFormat, Agreement]] = []
    for place in np.unique(np.linspace(0, max(0, len(usable) - 1), min(len(usable), _PAIRS_COMPARED)).astype(int)):
        labels = usable[place]
        try:
            pictures = [np.asarray(read_picture(path, labels.where)) for path in pictures_of(found.folder, labels)]
        except EntryError:
            continue  # told when its turn comes
        if pictures[0].shape == pictures[1].shape:
            clear = change_levels(pictures[0], pictures[1]) > CHANGED_ABOVE
            if clear.any():
                compared.append(agreements(clear, np.array([box.values for box in labels.boxes])))
    return compared
