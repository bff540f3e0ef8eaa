"""One evaluation as a whole: figures, slices, and what the plots show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dig_rl.evaluation.answers import JudgedPair
from dig_rl.evaluation.bootstrap import CONFIDENCE_LEVEL, RESAMPLES, SEED
from dig_rl.evaluation.detection import IOU_THRESHOLDS, answer_figures
from dig_rl.evaluation.figures import Estimate, estimate
from dig_rl.evaluation.slices import Slice, slices_by_box, slices_by_count


@dataclass(frozen=True)
class Overview:
    """Everything that one set of answers shows."""

    num_pairs: int
    num_samples: int
    """Answers a pair."""
    match_iou: float
    statuses: dict[str, int]
    """Answers by parse status."""
    figures: dict[str, Estimate]
    """Over all pairs."""
    slices: dict[str, list[Slice]]
    """By `count` (of changes in the pair), `kind`, `size` and `visibility` (of a true box)."""
    counts: dict[tuple[int, int], int]
    """Readable answers by (true, predicted) number of boxes."""
    by_iou: dict[str, list[float]]
    """Macro `f1`, `precision` and `recall` at each of `IOU_THRESHOLDS`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what was not measured is null or missing."""
        return {
            "pairs": self.num_pairs,
            "samples": self.num_samples,
            "match_iou": self.match_iou,
            "intervals": {"method": "percentile bootstrap over pairs", **BOOTSTRAP},
            "statuses": self.statuses,
            "figures": _plain(self.figures),
            "slices": {
                name: [part._asdict() | {"figures": _plain(part.figures)} for part in parts]
                for name, parts in self.slices.items()
            },
            "counts": [{"true": n, "predicted": m, "answers": k} for (n, m), k in sorted(self.counts.items())],
            "by_iou": {"iou": IOU_THRESHOLDS.tolist(), **self.by_iou},
        }


BOOTSTRAP = {"confidence_level": CONFIDENCE_LEVEL, "resamples": RESAMPLES, "seed": SEED}


def overview(pairs: Sequence[JudgedPair], match_iou: float) -> Overview:
    """Measure a set of answers.

    Args:
        pairs: at least one.
        match_iou: IoU from which an assigned box counts as found, in (0, 1].
    """
    judged = [(answer, one) for pair in pairs for answer, one in zip(pair.answers, pair.judged, strict=True)]
    at_iou = [[answer_figures(one, float(threshold)) for _, one in judged] for threshold in IOU_THRESHOLDS]
    return Overview(
        num_pairs=len(pairs),
        num_samples=len(pairs[0].answers),
        match_iou=match_iou,
        statuses=dict(Counter(answer.status for answer, _ in judged).most_common()),
        figures=estimate(pairs, match_iou),
        slices={"count": slices_by_count(pairs, match_iou), **slices_by_box(pairs, match_iou)},
        counts=dict(Counter((one.num_true, one.num_predicted) for _, one in judged if one.is_readable)),
        by_iou={
            name: [float(np.mean([figures[name] for figures in rows])) for rows in at_iou]
            for name in ("f1", "precision", "recall")
        },
    )


def _plain(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: found._asdict() for name, found in estimates.items()}
