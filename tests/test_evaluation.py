"""Figures against independent references, stored answers, intervals, and verdicts."""

from __future__ import annotations

import contextlib
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dig_rl.boxes import giou_matrix, iou_matrix, l1_matrix
from dig_rl.errors import DataError
from dig_rl.evaluation.answers import JudgedPair, StoredAnswer, TruePair, judge_pairs, read_answers, write_answers
from dig_rl.evaluation.average_precision import AveragePrecision
from dig_rl.evaluation.bootstrap import percentile_intervals
from dig_rl.evaluation.comparison import compare
from dig_rl.evaluation.figures import estimate, measures
from dig_rl.evaluation.overview import overview
from dig_rl.types import Example

Boxes = list[tuple[float, float, float, float]]
SIDE = 100
GRID: Boxes = [(0, 0, 20, 20), (60, 0, 80, 20), (0, 60, 20, 80), (60, 60, 80, 80)]


def judged(truths: list[Boxes], answers: list[Boxes | None], scores: list[float] | None = None) -> list[JudgedPair]:
    pairs, stored = [], []
    for index, (true, predicted) in enumerate(zip(truths, answers, strict=True)):
        example = Example(str(index), "", "", (SIDE, SIDE), tuple(true), ("add",) * len(true), "test")
        pairs.append(TruePair(example, (None,) * len(true)))
        status = "malformed" if predicted is None else "ok" if predicted else "empty"
        logprob = scores[index] if scores else None
        stored.append(
            StoredAnswer(
                pair_id=str(index),
                status=status,
                predicted_boxes_px=tuple(predicted or ()),
                target_boxes_px=tuple(true),
                mean_logprob=logprob,
            )
        )
    return judge_pairs(pairs, stored, "answers")


def random_set(seed: int, num_pairs: int = 25, most: int | None = None) -> list[JudgedPair]:
    """Boxes near true ones, far from them, none, unreadable answers, empty truths, tied scores."""
    draw = np.random.default_rng(seed)
    truths: list[Boxes] = []
    answers: list[Boxes | None] = []
    for _ in range(num_pairs):
        true = [GRID[i] for i in draw.permutation(4)[: draw.integers(0, 5)]]
        near = [
            tuple(max(0.0, edge + float(d)) for edge, d in zip(b, draw.integers(-5, 6, 4), strict=True)) for b in true
        ]
        predicted = [b for b in near if draw.random() < 0.7] + GRID[: draw.integers(0, 3)]
        predicted = predicted[:most]
        truths.append(true)
        answers.append(None if draw.random() < 0.1 else predicted)  # type: ignore[arg-type]
    return judged(truths, answers, [float(s) for s in draw.integers(-3, 0, num_pairs)])


def values(pairs: list[JudgedPair]) -> dict[str, float]:
    return {n: v for m in measures(pairs, 0.5) for n, v in zip(m.names, m.values.tolist(), strict=True)}


def coco_of(images: list[JudgedPair], kind: str) -> COCO:
    """One side of the answers as the file that pycocotools reads, each pair's only answer an image."""
    boxes = [
        (index, box, pair.answers[0].mean_logprob)
        for index, pair in enumerate(images)
        for box in (pair.truth.example.target_boxes_px if kind == "true" else pair.answers[0].predicted_boxes_px)
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": index} for index in range(len(images))],
        "categories": [{"id": 7}],
        "annotations": [
            {
                "id": number,
                "image_id": index,
                "category_id": 7,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": score,
            }
            for number, (index, (x0, y0, x1, y1), score) in enumerate(boxes, start=1)
        ],
    }
    coco.createIndex()
    return coco


def coco_precision(images: list[JudgedPair]) -> list[float]:
    """AP over IoU 0.5:0.95 and at 0.5, by pycocotools from end to end."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCOeval(coco_of(images, "true"), coco_of(images, "predicted"), "bbox")
        reference.params.iouThrs = reference.params.iouThrs - 1e-9
        reference.evaluate()
        reference.accumulate()
    precision = reference.eval["precision"][:, :, 0, 0, -1]
    return [precision.mean(), precision[0].mean()]


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_pycocotools_also_for_pairs_drawn_twice(seed: int) -> None:
    pairs, single = random_set(seed), random_set(seed, most=1)
    counts = np.random.default_rng(seed).integers(0, 3, len(pairs))
    # Copies of an answer with several boxes, all of one score, would be tied in another order.
    for chosen, weights in ((pairs, np.ones(len(pairs), dtype=int)), (single, counts)):
        images = [pair for pair, weight in zip(chosen, weights, strict=True) for _ in range(weight)]
        found = AveragePrecision(chosen).of_weights(weights[None])[:, 0]
        assert found == pytest.approx(coco_precision(images), abs=1e-9)


def plain_figures(pairs: list[JudgedPair]) -> dict[str, float]:
    """Every figure but AP, with every assignment tried, in loops."""
    rows: list[dict[str, float]] = []
    totals = {"found": 0, "predicted": 0, "true": 0}
    for pair in pairs:
        predicted, true = pair.answers[0].boxes_unit((SIDE, SIDE))
        boxes = np.zeros((0, 4)) if predicted is None else predicted
        n, m = len(boxes), len(true)
        cost, iou = 5 * l1_matrix(boxes, true) + 2 * (1 - giou_matrix(boxes, true)), iou_matrix(boxes, true)
        options = [
            list(zip(range(n), p, strict=True)) if n <= m else list(zip(p, range(m), strict=True))
            for p in itertools.permutations(range(max(n, m)), min(n, m))
        ]
        best = min(options, key=lambda option: sum(cost[i, j] for i, j in option))
        ious = [iou[i, j] for i, j in best]
        empty = float(predicted is not None and n == m == 0)

        def shares(threshold: float, ious=ious, n=n, m=m, empty=empty) -> dict[str, float]:  # type: ignore[no-untyped-def]
            hits = sum(value >= threshold - 1e-9 for value in ious)
            return {
                "f1": 2 * hits / (n + m) if n + m else empty,
                "precision": hits / n if n else empty,
                "recall": hits / m if m else empty,
            }

        averaged = [shares(0.5 + 0.05 * index) for index in range(10)]
        rows.append(
            {
                **shares(0.5),
                **{f"{name}_50_95": sum(row[name] for row in averaged) / 10 for name in averaged[0]},
                "mean_iou": sum(ious) / max(n, m) if n or m else empty,
                "count_accuracy": float(predicted is not None and n == m),
                "parse_rate": float(predicted is not None),
                "count_error": abs(n - m),
                "count_bias": n - m,
            }
        )
        totals["found"] += sum(value >= 0.5 - 1e-9 for value in ious)
        totals["predicted"] += n
        totals["true"] += m
    found, n, m = totals.values()
    right = float(n == m == 0 and all(row["parse_rate"] for row in rows))
    figures = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | {
        "micro_precision": found / n if n else right,
        "micro_recall": found / m if m else right,
        "micro_f1": 2 * found / (n + m) if n + m else right,
    }
    unchanged = [len(p.answers[0].predicted_boxes_px) > 0 for p in pairs if not p.truth.example.num_differences]
    return figures | ({"false_positive_rate": sum(unchanged) / len(unchanged)} if unchanged else {})


HALF: Boxes = [(0, 0, 10, 20)]  # half of the first box of GRID: an IoU of exactly 0.5

EDGES = {
    "empty predictions": judged([GRID[:1], GRID[:3], []], [[], [], []]),
    "empty truth": judged([[], [], []], [GRID[:1], [], None]),
    "nothing at all": judged([[], []], [[], []]),
    "nothing readable": judged([GRID[:2], []], [None, None]),
    "one pair": judged([GRID[:1]], [HALF]),
    "an exact tie at the threshold": judged([GRID[:1], GRID[:2]], [HALF, [*HALF, *HALF]]),
    "one score for all": judged([GRID[:1], GRID, GRID[:2]], [[GRID[1], GRID[0]], [*HALF, *GRID[1:]], []], [0.0] * 3),
}


@pytest.mark.parametrize("pairs", [*(random_set(seed, 12) for seed in range(5)), *EDGES.values()], ids=str)
def test_every_figure_is_that_of_plain_loops_over_every_assignment(pairs: list[JudgedPair]) -> None:
    got = values(pairs)
    average_precision = {name: got.pop(name) for name in ("ap", "ap_50") if name in got}
    assert got == pytest.approx(plain_figures(pairs))
    if any(pair.truth.example.num_differences for pair in pairs):
        scored = [
            replace(
                pair, answers=tuple(a.model_copy(update={"mean_logprob": a.mean_logprob or 0.0}) for a in pair.answers)
            )
            for pair in pairs
        ]
        expected = dict(zip(("ap", "ap_50"), coco_precision(scored), strict=True))
        assert average_precision == pytest.approx(expected, abs=1e-9)
    else:
        assert average_precision == {}


def test_intervals_cover_a_known_mean_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        sample = draw.random(40) < 0.5
        low, high = percentile_intervals(lambda counts, s=sample: (counts @ s / 40)[None], 40)  # type: ignore[misc]
        hits += low[0] <= 0.5 <= high[0]
    assert 88 <= hits <= 99
    assert percentile_intervals(lambda counts: counts.T, 1) is None


def test_a_comparison_finds_nothing_in_the_same_answers_and_a_built_in_difference() -> None:
    pairs = random_set(1)
    assert {row.verdict for row in compare(pairs, pairs, 0.5)} == {"no difference shown"}
    truths = [GRID[:2]] * 12
    good, bad = judged(truths, list(truths)), judged(truths, [[]] * 12)
    verdicts = {row.name: row.verdict for row in compare(bad, good, 0.5)}
    assert verdicts["f1"] == verdicts["ap"] == verdicts["count_error"] == "better"
    assert verdicts["count_bias"] == "more boxes" and verdicts["parse_rate"] == "no difference shown"
    assert {row.name: row.verdict for row in compare(good, bad, 0.5)}["f1"] == "worse"
    few = {row.verdict for row in compare(bad[:5], good[:5], 0.5)}
    assert few == {"no difference shown"}
    with pytest.raises(ValueError, match="same pairs"):
        compare(good, bad[:5], 0.5)


def test_stored_answers_give_the_same_figures(tmp_path: Path) -> None:
    pairs = random_set(2)
    path = tmp_path / "predictions.jsonl"
    write_answers(path, [answer for pair in pairs for answer in pair.answers])
    again = judge_pairs([pair.truth for pair in pairs], read_answers(path), "stored")
    assert estimate(again, 0.5) == estimate(pairs, 0.5)
    assert overview(again, 0.5).to_json() == overview(pairs, 0.5).to_json()


def test_answers_that_do_not_fit_are_one_clear_error(tmp_path: Path) -> None:
    pairs = judged([GRID[:1], GRID[:2]], [[], []])
    truths, answers = [p.truth for p in pairs], [a for p in pairs for a in p.answers]
    for wrong, message in (
        (answers[:1], "lacks 1 of"),
        ([*answers, answers[0]], "twice"),
        ([answers[0].model_copy(update={"pair_id": "x"}), answers[1]], "answers x, not among"),
        ([answers[0].model_copy(update={"target_boxes_px": GRID[:2]}), answers[1]], "true boxes of pair 0"),
        ([*answers, answers[0].model_copy(update={"sample": 1})], "as many answers"),
    ):
        with pytest.raises(DataError, match=message):
            judge_pairs(truths, wrong, "file")
    path = tmp_path / "p.jsonl"
    for text, message in (("", "no predictions"), ("{}\n", "line 1: not a prediction"), ("[\n", "line 1")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_answers(path)
