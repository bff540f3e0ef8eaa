"""What each answer is paid: by hand, against an independent slow reference, and under attack."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dig_rl.config import RewardConfig
from dig_rl.errors import PluginError
from dig_rl.parsing import CoordinateFrame
from dig_rl.scoring import Scorer
from dig_rl.types import Completion, Example, FinishReason, SampledGroup, Score
from tests.reward_reference import Box, assigned_ious, reference_total

ROOT = Path(__file__).resolve().parent.parent

# 1000 pixels a side make pixels, thousandths and the numbers in an answer the same.
EXACT = (100, 200, 300, 400)
CORNERS: list[Box] = [(0, 0, 200, 200), (800, 0, 1000, 200), (0, 800, 200, 1000), (800, 800, 1000, 1000)]
NOWHERE: list[Box] = [(300, 300, 400, 400), (450, 300, 550, 400), (300, 600, 400, 700), (600, 600, 700, 700)]


def group_of(texts: list[str], target: list[Box], *, size: int = 1000, reason: FinishReason = "stop") -> SampledGroup:
    scaled = tuple(tuple(side * size / 1000 for side in box) for box in target)
    example = Example("pair-7", "/a.png", "/b.png", (size, size), scaled, ("color",) * len(target), "train")  # type: ignore[arg-type]
    completions = tuple(Completion((1, 2, 3), (-1.0,) * 3, text, reason, seed) for seed, text in enumerate(texts))
    return SampledGroup(example, (1,), completions, 0, (1000, 1000), 0)


def reward_config(*, match_iou: float = 0.5, iou_reduction: str | None = None) -> RewardConfig:
    if match_iou == 0.5 and iou_reduction is None:
        return RewardConfig()
    terms: dict[str, Any] = {
        "format": {"use": "rewards/answer_format.py:answer_format", "weight": 0.1},
        "f1": {"use": "rewards/box_f1.py:box_f1", "weight": 0.45, "kwargs": {"match_iou": match_iou}},
        "iou": {"use": "rewards/box_iou.py:box_iou", "weight": 0.45, "kwargs": {"iou_reduction": iou_reduction}},
    }
    return RewardConfig.model_validate({"terms": terms})


SHIPPED = reward_config()
PAPER = reward_config(iou_reduction="matched")
PAPER_LITERAL = reward_config(match_iou=0.0, iou_reduction="matched")


def scores(
    texts: list[str], target: list[Box], config: RewardConfig = SHIPPED, *, thinking: bool = False, **options: Any
) -> tuple[Score, ...]:
    frame: CoordinateFrame = "norm1000"
    scorer = Scorer(config, root=ROOT, thinking=thinking, frame=frame, prompt="box every change")
    return scorer.score(group_of(texts, target, **options), step=3, stage="single")


def answer(*boxes: Box) -> str:
    return str([list(box) for box in boxes])


def docs_table(heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading of docs/rewards.md: first cell -> other cells."""
    below = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    rows = re.findall(r"^\| (.+) \|$", below.split("\n## ")[0], flags=re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return {row[0]: row[1:] for row in cells[1:]}


ANSWERS = {
    "exact": "[[100, 200, 300, 400]]",
    "in a code fence": "```json\n[[100, 200, 300, 400]]\n```",
    "after thinking": "<think>left or right?</think>[[100, 200, 300, 400]]",
    "thinking never closed": "<think>left or right? [[100, 200, 300, 400]]",
    "`bbox_2d` objects": '[{"bbox_2d": [100, 200, 300, 400], "label": "cube"}]',
    "empty list": "[]",
    "prose": "The red cube has turned blue.",
    "several lists": "[[1, 2, 3, 4]], no: [[100, 200, 300, 400]]",
    "truncated": "[[100, 200, 300, 400], [500, 60",
    "list inside an object": '{"boxes": [[100, 200, 300, 400]]}',
    "box without a list": "[100, 200, 300, 400]",
    "duplicate": "[[100, 200, 300, 400], [100, 200, 300, 400]]",
    "swapped corners": "[[300, 200, 100, 400]]",
    "zero area": "[[100, 200, 100, 400]]",
    "NaN": "[[NaN, 200, 300, 400]]",
    "Infinity": "[[100, 200, Infinity, 400]]",
    "1e400": "[[100, 200, 1e400, 400]]",
    "boolean": "[[true, 200, 300, 400]]",
    "numeric string": '[["100", 200, 300, 400]]',
    "over 9 digits": "[[100, 200, 1000000300, 400]]",
    "an integer of 5,000 digits": f"[[100, 200, {'3' * 5000}, 400]]",
    "one malformed box among valid ones": "[[100, 200, 300, 400], [500, 600]]",
    "up to 2 out of range": "[[-2, 200, 300, 400]]",
    "far out of range": "[[-3, 200, 300, 400]]",
    "unicode digits": "[[１００, 200, 300, 400]]",
    "over `max_boxes`": answer(*[EXACT] * 33),
    "16 KB of brackets": "[" * 16_384,
    "8,000 levels deep": "[" * 8_000 + "]" * 8_000,
    "nested a million deep": "[" * 1_000_000 + "]" * 1_000_000,
}
READ_OTHERWISE: dict[str, list[Box]] = {"duplicate": [EXACT, EXACT], "up to 2 out of range": [(0, 200, 300, 400)]}


@pytest.mark.parametrize("kind", ANSWERS)
def test_each_kind_of_answer_has_the_documented_status_and_reward(kind: str) -> None:
    (score,) = scores([ANSWERS[kind]], [EXACT], thinking=kind.startswith("thinking") or kind.startswith("after"))
    status, reward = docs_table("Kinds of answer")[kind]
    assert (f"`{score.status}`", f"{score.total:.3f}") == (status, reward)
    boxes = READ_OTHERWISE.get(kind, [EXACT] if score.status == "ok" else [])
    assert score.total == pytest.approx(reference_total(boxes, [EXACT], match_iou=0.5, over_both=True))


def test_documentation_lists_every_kind_of_answer_once() -> None:
    assert list(docs_table("Kinds of answer")) == list(ANSWERS)


POLICIES: dict[str, tuple[list[Box], list[Box]]] = {
    "all 4 exact": (CORNERS, CORNERS),
    "1 exact of 2, stop": (CORNERS[:1], CORNERS[:2]),
    "1 exact of 4, stop": (CORNERS[:1], CORNERS),
    "1 exact, copied 4 times, 1 change": (CORNERS[:1] * 4, CORNERS[:1]),
    "1 exact, copied 4 times, 4 changes": (CORNERS[:1] * 4, CORNERS),
    "4 exact and 1 nowhere": (CORNERS + NOWHERE[:1], CORNERS),
    "4 nowhere, 4 changes": (NOWHERE, CORNERS),
    "whole image, 1 change": ([(0, 0, 1000, 1000)], CORNERS[:1]),
    "nothing, 1 change": ([], CORNERS[:1]),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_each_scripted_policy_earns_what_the_documentation_says(policy: str) -> None:
    predicted, target = POLICIES[policy]
    paid = [scores([answer(*predicted)], target, config)[0].total for config in (SHIPPED, PAPER, PAPER_LITERAL)]
    assert [f"{total:.4f}" for total in paid] == docs_table("What it pays")[policy]
    slow = [reference_total(predicted, target, *setting) for setting in ((0.5, True), (0.5, False), (0.0, False))]
    assert paid == pytest.approx(slow)


def test_documented_terms_by_hand() -> None:
    written: dict[str, list[Box]] = {
        "4 exact of 4": CORNERS,
        "1 exact of 4": CORNERS[:1],
        "4 exact of 4, and 4 nowhere": CORNERS + NOWHERE,
        "4 nowhere": NOWHERE,
    }
    uses = ["box_f1", "box_iou", "count_error", "all_or_nothing"]
    terms = {use: {"use": f"rewards/{use}.py:{use}", "weight": 1 / len(uses)} for use in uses}
    config = RewardConfig.model_validate({"terms": terms})
    table = {}
    for name, boxes in written.items():
        paid = scores([answer(*boxes)], CORNERS, config)[0].terms
        soft_f1 = 2 * sum(assigned_ious(boxes, CORNERS)) / (len(boxes) + len(CORNERS))
        table[name] = [f"{value:.3f}" for value in (*paid.values(), float(soft_f1))]
    assert docs_table("Terms") == table
    # 2 * 1 / 5, 1 / 4, 1 / 4, not all, and 2 * 1 / 5; 2 * 4 / 12, 4 / 8, 4 / 8, four too many, and 2 * 4 / 12.
    assert table["1 exact of 4"] == ["0.400", "0.250", "0.250", "0.000", "0.400"]
    assert table["4 exact of 4, and 4 nowhere"] == ["0.667", "0.500", "0.500", "0.000", "0.667"]


@pytest.mark.parametrize(
    ("boxes", "match_iou", "paid"),
    [
        (CORNERS[::-1], 0.5, 1.0),
        (CORNERS, 1.0, 1.0),
        (CORNERS[:3], 0.5, 0.0),
        (CORNERS + CORNERS[:1], 0.5, 0.0),
        (CORNERS[:3] + NOWHERE[:1], 0.5, 0.0),
        (CORNERS[:3] + NOWHERE[:1], 0.0, 1.0),
        ([*CORNERS[:3], (800, 800, 900, 1000)], 0.5, 1.0),  # half of its box
        ([*CORNERS[:3], (800, 800, 900, 1000)], 0.501, 0.0),
    ],
)
def test_all_or_nothing_pays_whole_answers_alone(boxes: list[Box], match_iou: float, paid: float) -> None:
    term = {"use": "rewards/all_or_nothing.py:all_or_nothing", "weight": 1, "kwargs": {"match_iou": match_iou}}
    (score,) = scores([answer(*boxes)], CORNERS, RewardConfig.model_validate({"terms": {"all": term}}))
    assert score.total == paid


def test_paper_total_by_hand() -> None:
    # One exact box of four: F1 = 2/5, IoU over assigned pairs 1 (paper) or over max(N, M) 1/4.
    (score,) = scores([answer(CORNERS[0])], CORNERS, PAPER)
    assert score.terms == pytest.approx({"format": 1.0, "f1": 0.4, "iou": 1.0})
    assert score.total == pytest.approx(0.1 + 0.45 * 0.4 + 0.45)
    (score,) = scores([answer(CORNERS[0])], CORNERS)
    assert score.total == pytest.approx(0.1 + 0.45 * 0.4 + 0.45 * 0.25)


def code_block(document: Path, language: str) -> str:
    return document.read_text(encoding="utf-8").split(f"```{language}\n")[1].split("```")[0]


def test_example_plugin_in_the_documentation_works(tmp_path: Path) -> None:
    readme = ROOT / "rewards" / "README.md"
    (tmp_path / "count_match.py").write_text(code_block(readme, "python"), encoding="utf-8")
    toml = code_block(readme, "toml").replace("rewards/count_match.py", f"{tmp_path}/count_match.py")
    config = RewardConfig.model_validate(tomllib.loads(toml)["reward"])
    counts = [
        score.terms["count"] for score in scores([answer(*NOWHERE[:n]) for n in (1, 2, 3, 4)], CORNERS[:2], config)
    ]
    assert counts == [1.0, 1.0, 1.0, 0.0]


def test_perfect_answer_earns_exactly_one() -> None:
    assert scores([answer(*CORNERS[::-1])], CORNERS)[0].total == 1.0


def test_stored_image_and_resized_image_may_differ_in_size() -> None:
    scorer = Scorer(SHIPPED, root=ROOT, thinking=False, frame="absolute_px", prompt="")
    group = group_of(["[[50, 100, 150, 200]]"], [EXACT], size=96)
    group = replace(group, model_image_size_px=(500, 500))  # half of the thousandths
    (score,) = scorer.score(group, step=0, stage="")
    assert score.total == pytest.approx(1.0)


def test_pair_without_changes_pays_only_the_empty_list() -> None:
    right, boxes, prose = scores(["[]", answer(EXACT), "nothing changed"], [])
    assert (right.total, right.status, right.boxes_unit) == (1.0, "empty", ())
    assert (boxes.total, boxes.status, len(boxes.boxes_unit)) == (0.0, "ok", 1)
    assert (prose.total, prose.status) == (0.0, "malformed")
    assert set(right.terms.values()) == {1.0}
    assert set(boxes.terms.values()) == {0.0}


def test_scores_come_in_the_order_of_the_completions() -> None:
    group = scores([answer(EXACT), "no", answer(NOWHERE[0]), "[]"], [EXACT])
    assert [score.status for score in group] == ["ok", "malformed", "ok", "empty"]
    assert [score.total for score in group] == pytest.approx([1.0, 0.0, 0.1, 0.0])


def test_malformed_box_that_counts_is_paid_as_a_box_nowhere() -> None:
    lenient = RewardConfig(count_malformed_boxes=True)
    text = "[[100, 200, 300, 400], [9, 9, 1, 1]]"
    assert [scores([text], [EXACT], config)[0].total for config in (SHIPPED, lenient)] == pytest.approx(
        [0.0, 0.1 + 0.45 * (2 / 3 + 1 / 2)]
    )
    assert scores([text], [EXACT], lenient)[0].boxes_unit == ((0.1, 0.2, 0.3, 0.4), (0, 0, 0, 0))


def test_term_weights_come_from_the_config() -> None:
    use = "rewards/answer_format.py:answer_format"
    config = RewardConfig.model_validate(
        {"terms": {"a": {"use": use, "weight": 0.3}, "b": {"use": use, "weight": 0.7}}}
    )
    (score,) = scores([answer(NOWHERE[0])], [EXACT], config)
    assert score.terms == {"a": 1.0, "b": 1.0}
    assert score.total == 1.0


def random_boxes(generator: random.Random, number: int) -> list[Box]:
    boxes = []
    for _ in range(number):
        (x_min, x_max), (y_min, y_max) = (sorted(generator.sample(range(1001), 2)) for _ in range(2))
        boxes.append((x_min, y_min, x_max, y_max))
    return boxes


@pytest.mark.parametrize(
    ("config", "match_iou", "over_both"), [(SHIPPED, 0.5, True), (PAPER, 0.5, False), (PAPER_LITERAL, 0, False)]
)
def test_total_equals_exact_fractions_and_brute_force(config: RewardConfig, match_iou: float, over_both: bool) -> None:
    generator = random.Random(1)
    for _ in range(60):
        predicted, target = (random_boxes(generator, generator.randint(1, 4)) for _ in range(2))
        if generator.random() < 0.5:  # near copies, so that some pairs are found
            predicted[0] = tuple(min(side + 3, 1000) if i > 1 else side for i, side in enumerate(target[0]))  # type: ignore[assignment]
        expected = reference_total(predicted, target, match_iou, over_both)
        assert scores([answer(*predicted)], target, config)[0].total == pytest.approx(expected)


def test_total_does_not_depend_on_the_order_of_boxes() -> None:
    generator = random.Random(2)
    for _ in range(100):
        predicted, target = (random_boxes(generator, generator.randint(1, 6)) for _ in range(2))
        shuffled = generator.sample(predicted, len(predicted)), generator.sample(target, len(target))
        (score,), (other,) = scores([answer(*predicted)], target), scores([answer(*shuffled[0])], shuffled[1])
        assert (score.total, score.terms) == (other.total, other.terms)


def test_extra_box_nowhere_never_pays() -> None:
    generator = random.Random(3)
    for number in range(1, 5):
        found = generator.sample(CORNERS, number)
        without, with_extra = scores([answer(*found), answer(*found, NOWHERE[0])], CORNERS[:4])
        assert with_extra.total < without.total


def plugin_config(folder: Path, body: str) -> RewardConfig:
    (folder / "own.py").write_text(f"import numpy as np\n\ndef own(item):\n    {body}\n", encoding="utf-8")
    return RewardConfig.model_validate({"terms": {"own": {"use": f"{folder}/own.py:own", "weight": 1.0}}})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return {}['gone']", "raised KeyError: 'gone'"),
        ("return float('nan')", "returned nan"),
        ("return np.float32('nan')", "returned np.float32(nan)"),
        ("return np.float16('inf')", "returned np.float16(inf)"),
        ("return -np.inf", "returned -inf"),
        ("import decimal; return decimal.Decimal('NaN')", "returned Decimal('NaN')"),
        ("return np.array(np.nan)", "returned array(nan)"),
        ("return 1.0001", "returned 1.0001"),
        ("return -1e-9", "returned -1e-09"),
        ("return None", "returned None"),
        ("return '1'", "returned '1'"),
        ("return np.ones(1)", "returned array"),
        ("return 1 + 0j", "returned"),
        ("item.predicted_boxes_unit.sort(); return 1.0", "raised ValueError"),
        ("item.target_boxes_unit[:] = 0; return 1.0", "raised ValueError"),
    ],
)
def test_broken_plugin_stops_with_its_name_the_pair_and_an_excerpt(tmp_path: Path, body: str, what: str) -> None:
    config = plugin_config(tmp_path, body)
    with pytest.raises(PluginError) as caught:
        scores(["x" * 10_000 + answer(EXACT)], [EXACT], config)
    message = str(caught.value)
    assert what in message
    assert f"{tmp_path}/own.py:own" in message
    assert "pair-7" in message
    assert "[[100, 200, 300, 400]]" in message
    assert len(message) < 1500


@pytest.mark.parametrize("body", ["return np.float32(0.5)", "return 1", "return True", "return np.int64(0)"])
def test_any_real_number_in_range_is_a_reward(tmp_path: Path, body: str) -> None:
    assert 0 <= scores([answer(EXACT)], [EXACT], plugin_config(tmp_path, body))[0].total <= 1


def test_plugin_sees_the_whole_contract(tmp_path: Path) -> None:
    checks = [
        "item.pair_id == 'pair-7'",
        "item.prompt == 'box every change'",
        "item.completion == '[[100, 200, 300, 400]]'",
        "item.status == 'ok'",
        "item.predicted_boxes_unit.tolist() == [[0.1, 0.2, 0.3, 0.4]]",
        "item.target_boxes_unit.tolist() == [[0.1, 0.2, 0.3, 0.4]]",
        "item.assignment == ((0, 0, 1.0),)",
        "item.image_size_px == (1000, 1000)",
        "item.model_image_size_px == (1000, 1000)",
        "item.finish_reason == 'length'",
        "item.num_tokens == 3",
        "item.metadata == {'kinds': ('color',)}",
        "(item.step, item.stage) == (3, 'single')",
    ]
    config = plugin_config(tmp_path, f"return sum([{', '.join(checks)}]) / {len(checks)}")
    assert scores([answer(EXACT)], [EXACT], config, reason="length")[0].total == 1.0


def test_plugin_is_not_asked_about_an_answer_that_is_not_ok(tmp_path: Path) -> None:
    config = plugin_config(tmp_path, "raise AssertionError('asked')")
    texts = ["no", "[]", answer(*[EXACT] * 33), " " * 20_000]
    assert {score.total for score in scores(texts, [EXACT], config)} == {0.0}
