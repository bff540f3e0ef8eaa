"""Balance figures against values worked out by hand, and against folders that leak the answer on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from dig_rl.boxes import iou_matrix
from dig_rl.data import DifferenceRecord, PairRecord
from dig_rl.inspection.balance import (
    BalanceCheck,
    ChangeTable,
    _iou,
    best_constant_box,
    change_table,
    check_balance,
    coverage_map,
)
from dig_rl.inspection.pairs import PairExamination
from dig_rl.inspection.scenes import SceneFacts

RANDOM = np.random.default_rng(5)
KINDS = ("color", "shape", "size", "material")


def pair(
    index: int,
    boxes: list[tuple[float, ...]],
    split: str = "train",
    kind: str | None = None,
    facts: SceneFacts | None = None,
) -> PairExamination:
    unknown = dict.fromkeys(
        ("object_id", "box_a", "box_b", "visible_px_a", "visible_px_b", "visible_fraction_a", "visible_fraction_b")
    )
    differences = tuple(
        DifferenceRecord(kind=kind or KINDS[(index + place) % 4], box=box, **unknown) for place, box in enumerate(boxes)
    )
    record = PairRecord(
        image_a_file_name="a",
        image_b_file_name="b",
        pair_id=f"p{index}",
        width=100,
        height=50,
        num_differences=len(boxes),
        split=split,
        seed=None,
        differences=differences,
    )
    return PairExamination(index + 1, record, (), {}, None, None, facts, formats=None, num_tagged=0)


def random_box() -> tuple[float, ...]:
    x, y = RANDOM.uniform(0, 80), RANDOM.uniform(0, 30)
    width, height = RANDOM.uniform(5, 20), RANDOM.uniform(5, 20)
    return (x, y, x + width, y + height)


def spread_pairs(number: int = 400) -> list[PairExamination]:
    return [
        pair(index, [random_box() for _ in range(1 + index % 4)], "test" if index % 5 == 0 else "train")
        for index in range(number)
    ]


def answer(checks: list[BalanceCheck], words: str) -> BalanceCheck:
    (found,) = (check for check in checks if words in check.question)
    return found


def test_even_data_pass_every_question() -> None:
    checks = check_balance(spread_pairs())
    assert len(checks) == 8 and {check.verdict for check in checks} == {"balanced"}


def test_a_handful_of_pairs_is_too_few_to_tell() -> None:
    assert {check.verdict for check in check_balance(spread_pairs(6))} == {"too few"}
    assert check_balance([]) == []


def test_the_best_constant_box_is_worth_what_it_hits() -> None:
    place, other = (10.0, 10.0, 30.0, 30.0), (60.0, 10.0, 80.0, 30.0)
    # Answering `place`: F1 1 on the first pair, 2/3 on the second (one of two), 0 on the third and fourth.
    pairs = [pair(0, [place]), pair(1, [place, other]), pair(2, [other]), pair(3, [(0.0, 0.0, 4.0, 4.0)])]
    box, f1 = best_constant_box(change_table(pairs))
    assert f1 == pytest.approx((1 + 2 / 3) / 4)
    assert box.tolist() in ([0.1, 0.2, 0.3, 0.6], [0.6, 0.2, 0.8, 0.6])


def test_two_hits_in_a_pair_earn_one_match() -> None:
    twice = [(10.0, 10.0, 30.0, 30.0), (11.0, 10.0, 31.0, 30.0)]
    assert best_constant_box(change_table([pair(0, twice)]))[1] == pytest.approx(2 / 3)


def test_iou_agrees_with_the_library() -> None:
    boxes = np.array([random_box() for _ in range(40)]) / 100
    assert np.allclose([_iou(box, boxes) for box in boxes], iou_matrix(boxes, boxes))


def test_coverage_counts_pairs_not_boxes() -> None:
    half, top = (0.0, 0.0, 50.0, 50.0), (0.0, 0.0, 100.0, 25.0)
    covered = coverage_map(change_table([pair(0, [half, half]), pair(1, [top])]), width=2, height=2)
    assert covered.tolist() == [[1.0, 0.5], [0.5, 0.0]]


@pytest.mark.parametrize(
    ("boxes_of", "words"),
    [
        (lambda index: [(10.0, 10.0, 30.0, 30.0)], "one box, always the same"),
        (lambda index: [(x := float(RANDOM.uniform(0, 40)), 5.0, x + 8, 20.0)], "left as on the right"),
        (lambda index: [(5.0, 5.0, 10.0 + 20 * (1 + index % 2), 30.0)] * (1 + index % 2), "size of a box independent"),
    ],
)
def test_leaks_of_place_and_size_are_seen(boxes_of: object, words: str) -> None:
    checks = check_balance([pair(index, boxes_of(index)) for index in range(200)])  # type: ignore[operator]
    assert answer(checks, words).verdict == "look"


def test_a_test_split_of_another_kind_is_seen() -> None:
    train = [pair(index, [random_box()], kind=KINDS[index % 4]) for index in range(200)]
    test = [pair(200 + index, [(0.0, 0.0, 9.0, 9.0)], "test", kind="size") for index in range(100)]
    checks = check_balance([*train, *test])
    for words in ("kinds the same in every split", "of test lie as those of train, across", "train, in size"):
        assert answer(checks, words).verdict == "look"


def test_one_kind_too_often_is_seen() -> None:
    pairs = [pair(index, [random_box()], kind="color" if index % 10 else "shape") for index in range(200)]
    check = answer(check_balance(pairs), "kind of change as frequent")
    assert check.verdict == "look" and check.figure == "shape 0.20 and color 1.80 of an equal share"


def test_a_moved_object_is_one_change_of_its_kind() -> None:
    kinds = ("color", "move", "size")
    pairs = [pair(index, [random_box()] * (1 + (index % 3 == 1)), kind=kinds[index % 3]) for index in range(60)]
    check = answer(check_balance(pairs), "kind of change as frequent")
    assert check.effect == 0.0 and check.verdict == "balanced"


@pytest.mark.parametrize(("leak", "verdict"), [(True, "look"), (False, "balanced")])
def test_an_object_that_betrays_itself_is_seen(leak: bool, verdict: str) -> None:
    pairs = []
    for index in range(100):
        colors = ("red", "blue") if leak or index % 2 else ("blue", "red")
        objects = tuple(
            (
                {"object_id": place, "color": color, "x_m": float(RANDOM.normal()), "y_m": float(RANDOM.normal())},
                place == 0,
            )
            for place, color in enumerate(colors)
        )
        pairs.append(pair(index, [random_box()], facts=SceneFacts(("", ""), objects, {})))
    checks = check_balance(pairs)
    color = answer(checks, "color of an object")
    assert color.verdict == verdict and color.effect == pytest.approx(1.0 if leak else 0.0)
    assert answer(checks, "place of an object, across").verdict == "balanced"


def test_columns_of_the_table() -> None:
    table: ChangeTable = change_table([pair(0, [(0.0, 0.0, 50.0, 50.0), (50.0, 25.0, 100.0, 50.0)])])
    assert table.boxes_unit.tolist() == [[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]
    assert table.centers_unit.tolist() == [[0.25, 0.5], [0.75, 0.75]]
    assert table.sides_unit.tolist() == pytest.approx([0.5**0.5, 0.5]) and table.count.tolist() == [2, 2]
