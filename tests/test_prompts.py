"""The instruction never gives the number away, and the canonical answer reads back as what was written."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_rl.config import RewardConfig
from dig_rl.parsing import CoordinateFrame, parse_answer
from dig_rl.prompts import BoxTarget, chat_messages, format_answer, instruction

TARGETS: tuple[BoxTarget, ...] = ("union", "a", "b")
FRAMES: tuple[CoordinateFrame, ...] = ("norm1000", "absolute_px")
SIZE = (96, 64)


def read(text: str, frame: CoordinateFrame, size: tuple[int, int] = SIZE) -> np.ndarray:
    answer = parse_answer(text, RewardConfig(), thinking=False, frame=frame, model_image_size_px=size)
    assert answer.boxes_unit is not None, (answer.status, text)
    return answer.boxes_unit


@pytest.mark.parametrize("box_target", TARGETS)
@pytest.mark.parametrize("frame", FRAMES)
def test_instruction_is_short_and_its_only_numbers_are_the_coordinate_range(
    box_target: BoxTarget, frame: CoordinateFrame
) -> None:
    text = instruction(box_target, frame)
    assert len(text.split()) <= 60
    assert re.findall(r"\d+", text) == (["0", "1000"] if frame == "norm1000" else [])
    assert "[[x_min, y_min, x_max, y_max], ...]" in text


def test_each_box_target_and_frame_has_its_own_instruction() -> None:
    assert len({instruction(box_target, frame) for box_target in TARGETS for frame in FRAMES}) == 6


def test_chat_shows_both_images_before_the_instruction() -> None:
    (message,) = chat_messages("union", "norm1000")
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert message["content"][2]["text"] == instruction("union", "norm1000")


def test_answer_in_thousandths_pixels_and_levels() -> None:
    boxes_unit = np.array([[0.5, 0.25, 0.75, 0.5], [0.111, 0.2, 0.319, 1.0]])
    assert format_answer(boxes_unit, "norm1000", SIZE) == "[[111, 200, 319, 1000], [500, 250, 750, 500]]"
    assert format_answer(boxes_unit, "absolute_px", SIZE) == "[[11, 13, 31, 64], [48, 16, 72, 32]]"
    assert format_answer(boxes_unit, "norm1000", SIZE, levels=50) == "[[120, 200, 320, 1000], [500, 240, 760, 500]]"


def test_answer_without_boxes_is_the_empty_list() -> None:
    assert format_answer(np.empty((0, 4)), "norm1000", SIZE) == "[]"


def test_box_smaller_than_a_step_keeps_an_area_inside_the_image() -> None:
    slivers = np.array([[0.5, 0.5, 0.501, 0.501], [0.999, 0.999, 1.0, 1.0]])
    assert format_answer(slivers, "norm1000", SIZE, levels=10) == "[[500, 500, 600, 600], [900, 900, 1000, 1000]]"


corner, extent = st.floats(0, 0.8), st.floats(1e-4, 0.2)
boxes = st.lists(
    st.tuples(corner, corner, extent, extent).map(lambda p: [p[0], p[1], p[0] + p[2], p[1] + p[3]]), max_size=6
).map(lambda rows: np.array(rows).reshape(-1, 4))
sizes = st.tuples(st.integers(16, 2000), st.integers(16, 2000))


@given(boxes, st.sampled_from(FRAMES), sizes, st.sampled_from([10, 30, 50, 100, 1000]))
def test_written_boxes_read_back_within_a_step(
    boxes_unit: np.ndarray, frame: CoordinateFrame, size: tuple[int, int], levels: int
) -> None:
    text = format_answer(boxes_unit, frame, size, levels)
    back = read(text, frame, size)
    assert len(back) == len(boxes_unit)
    # A step for a box that would lose its area; rounding to whole units of the frame adds half a unit.
    sides = (1000, 1000) if frame == "norm1000" else size
    tolerance = [1 / min(levels, side) + 0.5 / side + 1e-9 for side in sides] * 2
    for box in back:
        assert (np.abs(boxes_unit - box) <= tolerance).all(axis=1).any()


@given(boxes, st.sampled_from(FRAMES), st.sampled_from([10, 50, 1000]))
def test_canonical_text_is_stable_and_ignores_the_order_of_boxes(
    boxes_unit: np.ndarray, frame: CoordinateFrame, levels: int
) -> None:
    text = format_answer(boxes_unit, frame, SIZE, levels)
    assert format_answer(boxes_unit[::-1], frame, SIZE, levels) == text
    assert format_answer(read(text, frame), frame, SIZE, levels) == text
