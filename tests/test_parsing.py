"""Every kind of answer has one named status; no text raises, hangs or recurses."""

from __future__ import annotations

import json
import random
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_rl.config import RewardConfig
from dig_rl.errors import PolicyError
from dig_rl.parsing import CoordinateFrame, ParsedAnswer, frame_of, parse_answer

STATUSES = {"ok", "empty", "malformed", "unfinished_thinking", "too_long", "too_many"}


DEFAULTS = RewardConfig()


def parse(
    text: str, config: RewardConfig = DEFAULTS, *, thinking: bool = False, frame: CoordinateFrame = "norm1000"
) -> ParsedAnswer:
    return parse_answer(text, config, thinking=thinking, frame=frame, model_image_size_px=(200, 100))


def boxes_norm1000(text: str, config: RewardConfig = DEFAULTS, *, thinking: bool = False) -> list[list[float]]:
    answer = parse(text, config, thinking=thinking)
    assert answer.status == "ok"
    assert answer.boxes_unit is not None
    return (answer.boxes_unit * 1000).round(6).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "[[100, 200, 300, 400]]",
        "[[100,200,300,400]]",
        " \n[[100.0, 2e2, 300, 400]]\n",
        "```json\n[[100, 200, 300, 400]]\n```",
        '[{"bbox_2d": [100, 200, 300, 400], "label": "cube"}]',
        '[{"label": "a ] in \\" quotes [", "bbox_2d": [100, 200, 300, 400]}]',
        "There is one change: [[100, 200, 300, 400]], the red cube.",
        "Between images [A] and [B], \\boxed{[[100, 200, 300, 400]]}",
        'The 5" cube [see above] changed: [[100, 200, 300, 400]]',
        "First I saw [[1, 2, 3, 4]]. No: [[100, 200, 300, 400]]",
        "It is in [0, 1000), so [[100, 200, 300, 400]]",
        "[[1, 2, 3, 4], hm, again: [[100, 200, 300, 400]]",
        "[[100, 200, 300, 400]] as explained [above]",
        "I {think} this: [[100, 200, 300, 400]]",
        "<think>[[1, 2, 3, 4]]</think>[[100, 200, 300, 400]]",
        "</think></think>[[100, 200, 300, 400]]",
    ],
)
def test_one_box_is_read(text: str) -> None:
    assert boxes_norm1000(text) == [[100, 200, 300, 400]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no list at all",
        "[1, 2, 3, 4]",  # a box, not a list of boxes
        "[[100, 200, 300]]",
        "[[100, 200, 300, 400, 500]]",
        "[[100, 200, 300, 400], [500, 600, 700",
        "[[1, 2, 3, 4]] and then [[5, 6, 7",  # the last array counts, and it was cut off
        "[[1, 2, 3, 4]] and then [[5, 6, 7, 8],]",
        "[[1, 2, 3, 4]] in the range [0, 1000]",
        "[[1, 2, 3, 4]] in the range [0, 1000)",
        '{"boxes": [[100, 200, 300, 400]]}',  # not a top-level array
        '{"boxes": [[100, 200, 300, 400]]',
        '{"bbox_2d": [100, 200, 300, 400]}',
        '[{"bbox": [100, 200, 300, 400]}]',
        '[{"bbox_2d": "100, 200, 300, 400"}]',
        "[[100, 200, 300, 400}]",
        "[[300, 200, 100, 400]]",  # swapped in x
        "[[100, 400, 300, 200]]",
        "[[300, 400, 100, 200]]",  # swapped in both, so that the product of the sides is positive
        "[[100, 200, 100, 400]]",  # zero area
        "[[-2, 0, 0, 5]]",  # zero area once clipped
        "[[0, 0, 1e-200, 1e-200]]",
        "[[NaN, 200, 300, 400]]",
        "[[100, 200, Infinity, 400]]",
        "[[-Infinity, 200, 300, 400]]",
        "[[100, 200, 1e400, 400]]",
        "[[100, 200, 1234567890, 400]]",
        f"[[100, 200, {'9' * 5000}, 400]]",
        "[[100, 200, 300, 1002.01]]",
        "[[-2.01, 200, 300, 400]]",
        "[[true, 200, 300, 400]]",
        "[[null, 200, 300, 400]]",
        '[["100", 200, 300, 400]]',
        "[[100, 200, 300, 0400]]",
        "[[0x10, 200, 300, 400]]",
        "[[１００, 200, 300, 400]]",  # full-width digits
        "[(100, 200, 300, 400)]",
        "[[100, 200, 300, 400], [3, 3, 1, 1]]",  # one malformed box makes the list malformed
        "[[[100, 200, 300, 400]]]",
        "[" * DEFAULTS.max_answer_characters,
        "[" * 8000 + "1, 2, 3, 4" + "]" * 8000,
        '[{"bbox_2d":' * 1300,
        '["' + '\\"' * 8000,
        "[[1, 2, 3, 4]]\x00[[",
    ],
)
def test_anything_but_a_list_of_boxes_is_malformed(text: str) -> None:
    assert parse(text) == ParsedAnswer("malformed", None)


LIST = "[[100, 200, 300, 400]]"


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        # A list inside an object, whatever the quotes of its key.
        ('{"boxes": ', "}", "malformed"),
        ("{'boxes': ", "}", "malformed"),
        ("{boxes: ", "}", "malformed"),
        ("{ boxes : ", " }", "malformed"),
        ("{\n  bounding boxes:\n  ", "\n}", "malformed"),
        ("{“boxes”: ", "}", "malformed"),
        ("{1: ", "}", "malformed"),
        ("Answer: {boxes: ", "} and that is all.", "malformed"),
        ("```json\n{'boxes': ", "}\n```", "malformed"),
        ('{"answer": {"boxes": ', "}}", "malformed"),
        ("{answer: {boxes: ", "}}", "malformed"),
        ('[{"boxes": ', "}]", "malformed"),
        ("[{'boxes': ", "}]", "malformed"),
        ("[{boxes: ", "}]", "malformed"),
        # ... wherever the quotes stand, as in JSON that was written as a string.
        ('{\\"boxes\\": ', "}", "malformed"),
        ('[{\\"boxes\\": ', "}]", "malformed"),
        ('{the "boxes": ', "}", "malformed"),
        ('[{the "boxes": ', "}]", "malformed"),
        ("{the cube's boxes: ", "}", "malformed"),
        ("[{1's: ", "}]", "malformed"),
        # ... however broken the object is.
        ('{"boxes": ', "", "malformed"),
        ("{'boxes': ", "", "malformed"),
        ("{boxes: ", "", "malformed"),
        ("{label: cube, boxes: ", "}", "malformed"),
        ("{'label': 'a } brace', 'boxes': ", "}", "malformed"),
        ('{"label": "a } brace", "boxes": ', "}", "malformed"),
        ("{'label': 'an \\' and a }', 'boxes': ", "}", "malformed"),
        ("{label: it's a cube, boxes: ", "}", "malformed"),
        ("""{"label": 'cube', "boxes": """, "}", "malformed"),
        ("""[{"label": 'cube', "boxes": """, "}]", "malformed"),
        ('{"boxes": see ', "}", "malformed"),
        ("{boxes: see ", "}", "malformed"),
        ('{"', '"}', "malformed"),
        # Braces that hold no key, or are closed before the list.
        ("the set {red, blue}: ", "", "ok"),
        ("the set {'red', \"blue\"}: ", "", "ok"),
        ("the set {red: 1, blue: 2}: ", "", "ok"),
        ("{note: it's the cube} ", "", "ok"),
        ("{'it': 'the cube'} ", "", "ok"),
        ('the set {\\"red\\", the "blue"}: ', "", "ok"),
        ('{\\"it\\": 1} ', "", "ok"),
        ("{}: ", "", "ok"),
        ("a frown :{ and ", "", "ok"),
        ("[1, {red, blue}: ", "", "ok"),
        ("\\boxed{", "}", "ok"),
        ("\\boxed{\\text{boxes: } ", "}", "ok"),
        ("{", "}", "ok"),
        ("boxes: ", "", "ok"),
        ('"boxes": ', "", "ok"),
        # An object beside the list does not disturb it.
        ("", " {boxes: [[5, 6, 7, 8]]}", "ok"),
        ("", ' {"boxes": [[5, 6, 7, 8]]}', "ok"),
        ("", " {'boxes': [[5, 6, 7", "ok"),
        ("{boxes: [[5, 6, 7, 8]]} ", "", "ok"),
        ('[{"bbox_2d": [1, 2, 3, 4]}] note: ', "", "ok"),
    ],
)
def test_a_list_inside_an_object_is_not_top_level(before: str, after: str, status: str) -> None:
    for text in (f"{before}{LIST}{after}", f"[[5, 6, 7, 8]] x</think>{before}{LIST}{after}"):
        assert parse(text).status == status
    if status == "ok":
        assert boxes_norm1000(text) == [[100, 200, 300, 400]]


@pytest.mark.parametrize("text", ['{"bbox_2d": %s}', "{'bbox_2d': %s}", "{bbox_2d: %s}", "bbox_2d: %s"])
def test_one_box_without_a_list_is_malformed_in_any_dress(text: str) -> None:
    assert parse(text % "[100, 200, 300, 400]").status == "malformed"


def test_the_line_ends_of_other_readers_are_white_space_in_prose_only() -> None:
    for separator in ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]:
        text = f"a{separator}line{separator} [[100, 200, 300, 400]]{separator}"
        assert boxes_norm1000(text) == [[100, 200, 300, 400]]
    assert parse("[[100,\r200,\r\n300,\n400]]").status == "ok"
    assert parse("[[100,\u2028200, 300, 400]]").status == "malformed"  # as JSON has it


def test_malformed_box_may_count_as_a_wrong_box_among_valid_ones() -> None:
    config = RewardConfig(max_boxes=3, count_malformed_boxes=True)

    def read(text: str) -> ParsedAnswer:
        return parse(text, config)

    answer = read("[[300, 200, 100, 400], [100, 200, 300, 400], true]")
    assert answer.status == "ok" and answer.boxes_unit is not None
    np.testing.assert_allclose(answer.boxes_unit, [[0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0]])
    assert read("[[300, 200, 100, 400], [0, 1000]]").status == "malformed"  # nothing valid
    assert read("[[1, 2, 3, 4], 1, 2, 3]").status == "too_many"
    assert read("[[1, 2, 3, 4], [1, 2").status == "malformed"


def test_empty_list_is_its_own_status() -> None:
    answer = parse("There is no difference: []")
    assert answer.status == "empty"
    assert answer.boxes_unit is not None
    assert answer.boxes_unit.shape == (0, 4)


def test_order_and_copies_are_kept_as_written() -> None:
    text = "[[500, 500, 600, 600], [1, 2, 3, 4], [500, 500, 600, 600]]"
    assert boxes_norm1000(text) == json.loads(text)


def test_little_beyond_the_range_is_clipped() -> None:
    assert boxes_norm1000("[[-2, -1.5, 1002, 1000.5]]") == [[0, 0, 1000, 1000]]


def test_how_little_and_how_long_are_settings() -> None:
    strict = RewardConfig(clip_tolerance=0, max_answer_characters=21)
    assert parse("[[0, 0, 1000, 1000]]", strict).status == "ok"
    assert parse("[[0, 0, 1000, 1e3]]  ", strict).status == "ok"
    assert parse("[[0, 0, 1000, 1e3]]   ", strict).status == "too_long"
    assert parse("[[0, 0, 1000, 1000.1]]", RewardConfig(clip_tolerance=0)).status == "malformed"
    assert boxes_norm1000("[[0, -9, 1, 9]]", config=RewardConfig(clip_tolerance=9)) == [[0, 0, 1, 9]]


def test_deep_array_before_the_answer_does_not_disturb_it() -> None:
    assert boxes_norm1000("[" * 3000 + "]" * 3000 + "[[1, 2, 3, 4]]") == [[1, 2, 3, 4]]


def test_thinking_must_be_closed() -> None:
    assert parse("<think>hm [[1, 2, 3, 4]]", thinking=True).status == "unfinished_thinking"
    assert parse("[[1, 2, 3, 4]]", thinking=True).status == "unfinished_thinking"
    assert boxes_norm1000("<think>[[5, 6, 7, 8]]</think>\n[[1, 2, 3, 4]]", thinking=True) == [[1, 2, 3, 4]]


def test_only_the_answer_after_thinking_has_a_length_limit() -> None:
    answer = "[[1, 2, 3, 4]]"
    padding = " " * (DEFAULTS.max_answer_characters - len(answer))
    assert parse(padding + answer).status == "ok"
    assert parse(padding + " " + answer).status == "too_long"
    assert parse(padding * 3 + "</think>" + answer, thinking=True).status == "ok"
    assert parse("</think>" + "[" * 1_000_000, thinking=True).status == "too_long"


def test_more_boxes_than_allowed_is_too_many_whatever_they_are() -> None:
    box = "[1, 2, 3, 4]"
    assert parse(f"[{', '.join([box] * 32)}]").status == "ok"
    assert parse(f"[{', '.join([box] * 33)}]").status == "too_many"
    assert parse(f"[{', '.join(['1'] * 33)}]").status == "too_many"


def test_pixels_of_the_resized_image() -> None:
    answer = parse("[[20, 10, 201.5, 102]]", frame="absolute_px")  # image 200 x 100, range plus 2
    np.testing.assert_allclose(answer.boxes_unit, [[0.1, 0.1, 1.0, 1.0]])
    assert parse("[[20, 10, 203, 100]]", frame="absolute_px").status == "malformed"
    assert parse("[[20, 10, 200, 103]]", frame="absolute_px").status == "malformed"


def test_families_declare_their_coordinates() -> None:
    assert (frame_of("qwen3_vl"), frame_of("qwen2_5_vl")) == ("norm1000", "absolute_px")
    with pytest.raises(PolicyError, match=r"llava.*qwen2_5_vl, qwen3_vl"):
        frame_of("llava")


side = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).filter(lambda ends: ends[0] != ends[1]).map(sorted)
box = st.tuples(side, side).map(lambda sides: [sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
prose = st.text("ab c\n.:,'(0)é", max_size=20)


@given(st.lists(st.lists(box, max_size=6), min_size=1, max_size=3), prose, st.booleans())
def test_last_list_is_read_exactly_from_any_prose(lists: list[list[list[int]]], words: str, as_objects: bool) -> None:
    written: list[Any] = [[{"bbox_2d": box} for box in boxes] if as_objects else boxes for boxes in lists]
    answer = parse(words.join(["", *map(json.dumps, written), ""]))
    assert answer.status == ("ok" if lists[-1] else "empty")
    assert answer.boxes_unit is not None
    np.testing.assert_array_equal(answer.boxes_unit, np.array(lists[-1], dtype=np.float64).reshape(-1, 4) / 1000)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    )
)
def test_any_json_has_a_status(value: Any) -> None:
    answer = parse(json.dumps(value))
    assert answer.status in STATUSES
    assert (answer.boxes_unit is None) == (answer.status not in ("ok", "empty"))


def test_fuzzed_text_never_raises_and_boxes_stay_inside() -> None:
    generator = random.Random(0)
    pieces = [
        *'[[]]{}",:\\ -+.eE\n',
        "[[1, 2, 3, 4]]",
        "10,",
        "999",
        "1e9",
        "NaN",
        "true",
        '{"bbox_2d":',
        "</think>",
        "１",
        "\ud800",
    ]
    for _ in range(20_000):
        text = "".join(generator.choices(pieces, k=generator.randrange(40)))
        answer = parse(text, thinking=generator.random() < 0.1)
        assert answer.status in STATUSES
        if answer.status == "ok":
            assert answer.boxes_unit is not None
            low, high = answer.boxes_unit[:, :2], answer.boxes_unit[:, 2:]
            assert ((low >= 0) & (low < high) & (high <= 1)).all()


@pytest.mark.parametrize(
    "piece",
    [
        "[",
        "[]",
        "[1,",
        "[[]],",
        '["',
        '[\\"',
        "[x",
        "{",
        '{"',
        "[ ",
        "[-",
        "]",
        "[t",
        "[}",
        "[[1,2,3,4]]",
        "{a:",
        "{a",
        "{ ",
        "{'",
        "[{a:",
        "{a:}",
    ],
)
def test_reading_takes_linear_time(piece: str) -> None:
    def executed_lines(text: str) -> int:
        count = 0

        def tracer(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            count += event == "line"
            return tracer

        sys.settrace(tracer)
        try:
            parse(text)
        finally:
            sys.settrace(None)
        return count

    once, twice = executed_lines(piece * 500), executed_lines(piece * 1000)
    assert twice < 2.2 * once + 100
