"""Read boxes out of what a policy wrote: every outcome is a named status, no text raises, time is linear.

A policy is trained on whatever this reader pays, so it is strict and its rules are few: the answer is the text after
the last `</think>`; its last top-level JSON array must be a list of boxes. A code fence or prose around it is ignored;
a list inside an object is not top-level.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dig_rl.boxes import norm1000_to_unit, px_to_unit
from dig_rl.config import RewardConfig
from dig_rl.errors import PolicyError
from dig_rl.types import ParseStatus

CoordinateFrame = Literal["norm1000", "absolute_px"]
"""What a policy's coordinates mean: thousandths of each image side, or pixels of the image after the resize rule."""

FAMILY_FRAMES: dict[str, CoordinateFrame] = {"qwen3_vl": "norm1000", "qwen2_5_vl": "absolute_px"}
"""Coordinate convention of each model family by `model_type`; declared, never guessed from the size of a number."""

_MAX_NESTING = 8
_NOWHERE = (0.0, 0.0, 0.0, 0.0)
END_OF_THINKING = "</think>"
# A bracket opens an array only if what follows could: "[above]" is prose.
_OPENING = re.compile(r'\[(?=[ \t\r\n]*(?:[\[\]{"\-0-9]|true|false|null|NaN|Infinity))')
_SURE_OPENINGS = frozenset(f"[{following}" for following in '[]{"-0123456789')
"""Beginnings that need no look further ahead; where white space or a letter follows the bracket, some do."""
_UNSURE_OPENINGS = frozenset(f"[{following}" for following in " \t\r\ntfnNI")
_WHITE_SPACE = " \t\r\n"
# Behind a brace: a quotation mark of either kind begins a key, or a colon ends one, whatever quotes stand in it.
# "{red, blue}" is prose, and so are braces right around a list, as in "\boxed{[[...]]}".
_KEY = re.compile(r"""[ \t\r\n]*+(?:["']|[^\[\]{},:"'][^\[\]{},:]*+:)""")
_NO_KEY = frozenset("[]{},:")
"""Where one of these follows a brace, no key does; this is the quick answer to most of a text of braces."""
_FIRST = re.compile(rf"{_OPENING.pattern}|\{{{_KEY.pattern}")
_OUTSIDE_STRINGS = frozenset('0123456789+-.eE,:[]{}" \t\r\n' + "truefalsenullNaNInfinity")
_NUMBERS = r"[0-9+\-.eE, \t\r\n]*+"
# Most answers are one list of lists of numbers with no other bracket around it; nothing here backtracks.
_USUAL_ANSWER = re.compile(
    rf"[^\[{{]*+(\[(?=[ \t\r\n]*[\[\]\-0-9])(?:{_NUMBERS}\[{_NUMBERS}\])*+{_NUMBERS}\])[^\[{{]*+\Z"
)
# Every number becomes a float: digits beyond Python's limit for integers then end as infinity, out of any range.
_DECODER = json.JSONDecoder(parse_int=float)


@dataclass(frozen=True)
class ParsedAnswer:
    """What one completion says."""

    status: ParseStatus
    boxes_unit: np.ndarray | None
    """`[N, 4]` float64 in [0, 1], in the order written; None unless the status is `ok` or `empty`.

    Areas are positive, but for malformed boxes that were to be counted.
    """


def frame_of(model_type: str) -> CoordinateFrame:
    """Coordinate convention of a model family.

    Args:
        model_type: the `model_type` of the policy's `config.json`.

    Raises:
        PolicyError: the family is not declared.
    """
    if model_type not in FAMILY_FRAMES:
        raise PolicyError(
            f'no coordinate convention is declared for model_type "{model_type}"; known: '
            f"{', '.join(sorted(FAMILY_FRAMES))}. Add it to FAMILY_FRAMES in dig_rl/parsing.py"
        )
    return FAMILY_FRAMES[model_type]


def parse_answer(
    text: str,
    reward_config: RewardConfig,
    *,
    thinking: bool,
    frame: CoordinateFrame,
    model_image_size_px: tuple[int, int],
) -> ParsedAnswer:
    """Read the boxes of one completion.

    A box is `[x_min, y_min, x_max, y_max]` or an object with such a list under `bbox_2d`. The range of a coordinate is
    [0, 1000] in `norm1000` and [0, side of the resized image] in `absolute_px`; in both, a value at most
    `clip_tolerance` outside is clipped to it, and any other is malformed. One malformed box makes the whole list
    malformed, or, with `count_malformed_boxes`, becomes a box without area, which no true box overlaps; a list needs
    one valid box all the same.

    Args:
        text: the completion, however long or hostile.
        reward_config: the limits `max_boxes`, `max_answer_characters`, `clip_tolerance`, and `count_malformed_boxes`.
        thinking: the policy must close its thinking with `</think>` before it answers.
        frame: the family's coordinate convention.
        model_image_size_px: (width, height) after the policy's resize rule; used by `absolute_px`.

    Returns:
        The status, with boxes in [0, 1] of each image side.
    """
    _, closed, answer = text.rpartition(END_OF_THINKING)
    if thinking and not closed:
        return ParsedAnswer("unfinished_thinking", None)
    if len(answer) > reward_config.max_answer_characters:
        return ParsedAnswer("too_long", None)
    elements = _last_array(answer)
    if elements is None:
        return ParsedAnswer("malformed", None)
    if not elements:
        return ParsedAnswer("empty", np.empty((0, 4)))
    if len(elements) > reward_config.max_boxes:
        return ParsedAnswer("too_many", None)
    is_norm1000 = frame == "norm1000"
    side_limits = (1000, 1000) if is_norm1000 else model_image_size_px
    boxes = [_read_box(element, side_limits, reward_config.clip_tolerance) for element in elements]
    if None in boxes and not (reward_config.count_malformed_boxes and any(boxes)):
        return ParsedAnswer("malformed", None)
    array = np.array([box or _NOWHERE for box in boxes])
    return ParsedAnswer("ok", norm1000_to_unit(array) if is_norm1000 else px_to_unit(array, side_limits))


def _read_box(element: Any, side_limits: tuple[int, int], tolerance: float) -> tuple[float, float, float, float] | None:
    """One box brought into the range; None if it is no box, further outside (or NaN), swapped or without area."""
    numbers = element.get("bbox_2d") if type(element) is dict else element
    if type(numbers) is not list or len(numbers) != 4:
        return None
    # The decoder makes every number a float, so any other type is true, null, a string or a container.
    if not {float}.issuperset(map(type, numbers)):
        return None
    # Plain arithmetic: for the few boxes of an answer, arrays take three times as long.
    (x_min, y_min, x_max, y_max), (width, height) = numbers, side_limits
    if not (x_min >= -tolerance and x_max <= width + tolerance):
        return None
    if not (y_min >= -tolerance and y_max <= height + tolerance):
        return None
    x_min, y_min, x_max, y_max = max(x_min, 0.0), max(y_min, 0.0), min(x_max, width), min(y_max, height)
    # The area is also zero where a sliver's is below the smallest float.
    has_area = x_min < x_max and y_min < y_max and (x_max - x_min) * (y_max - y_min) > 0.0
    return (x_min, y_min, x_max, y_max) if has_area else None


def _last_array(answer: str) -> list[Any] | None:
    usual = _USUAL_ANSWER.match(answer)
    start, end = usual.span(1) if usual else _last_array_span(answer)
    try:
        return _DECODER.decode(answer[start:end])
    except json.JSONDecodeError:  # of nothing, too, when there is no span
        return None


def _last_array_span(answer: str) -> tuple[int, int]:
    """Start and end of the last top-level array; (0, 0) if there is none or it breaks off, nests too deep or is cut.

    One pass that counts brackets, because a decoder recurses, and does not say where a broken array ends. An array ends
    where JSON does. An object, whatever its quotes and however broken, ends with its brace or the text: what stands in
    it is not top-level.
    """
    first = _FIRST.search(answer)
    if first is None:
        return 0, 0
    start = end = opened_at = depth = deepest = braces = outer_brace = 0
    is_array = escaped = may_begin = False
    quote = ""
    for position, character in enumerate(answer[first.start() :], first.start()):
        if quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif depth == 0:
            if character == "[":
                pair = answer[position : position + 2]
                if pair in _SURE_OPENINGS or (pair in _UNSURE_OPENINGS and _OPENING.match(answer, position)):
                    depth, deepest, braces, opened_at, is_array = 1, 1, 0, position, True
            elif (
                character == "{"
                and answer[position + 1 : position + 2] not in _NO_KEY
                and _KEY.match(answer, position + 1)
            ):
                depth, is_array, may_begin = 1, False, True
        elif not is_array:  # in an object: its braces count, and strings begin where a key or a value may stand
            if character in "{}":
                depth += 1 if character == "{" else -1
                may_begin = character == "{"
            elif character in "\"'" and may_begin:
                quote = character
            elif character not in _WHITE_SPACE:
                may_begin = character in "[,:"
        elif character in "[{":
            depth += 1
            if depth > deepest:
                deepest = depth
            if character == "{":
                outer_brace = outer_brace if braces else position
                braces += 1
        elif character in "]}":
            depth -= 1
            braces -= character == "}" and braces > 0
            if depth == 0:
                start, end = (opened_at, position + 1) if deepest <= _MAX_NESTING else (0, 0)
        elif character == '"':
            quote = character
        elif character not in _OUTSIDE_STRINGS:
            start = end = depth = 0
            key = _KEY.match(answer, outer_brace + 1) if braces else None
            if key:
                depth, is_array, may_begin = braces, False, False
                quote = "'" if character == "'" and position >= key.end() - 1 else ""
    cut_off = depth > 0 and is_array
    return (0, 0) if cut_off else (start, end)
