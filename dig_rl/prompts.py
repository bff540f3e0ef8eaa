"""What the policy is asked, and the canonical text of an answer (for supervised warm-up and tests)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dig_rl.boxes import px_to_unit, unit_to_px
from dig_rl.parsing import CoordinateFrame
from dig_rl.types import BoxTarget

_WHERE = {
    "union": "Each box covers what either image shows of the object.",
    "a": "Boxes refer to the first image; box what is missing there where the second image shows it.",
    "b": "Boxes refer to the second image; box what is missing there where the first image shows it.",
}
_SCALE = {
    "norm1000": "integers from 0 to 1000 relative to image width and height",
    "absolute_px": "integer pixels",
}


def instruction(box_target: BoxTarget, frame: CoordinateFrame) -> str:
    """The one question that every stage asks; it never tells the number of changes.

    Args:
        box_target: which image a box refers to.
        frame: coordinate convention of the policy's family.
    """
    return (
        "Compare the two images and box every change. Answer only with a JSON list, one box for each change: "
        f"[[x_min, y_min, x_max, y_max], ...], in {_SCALE[frame]}. {_WHERE[box_target]}"
    )


def chat_messages(box_target: BoxTarget, frame: CoordinateFrame) -> list[dict[str, Any]]:
    """The question as chat messages of transformers: the reference image, the changed image, the instruction."""
    text = instruction(box_target, frame)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}]}]


def format_answer(
    boxes_unit: np.ndarray, frame: CoordinateFrame, model_image_size_px: tuple[int, int], levels: int = 1000
) -> str:
    """Canonical answer text: integer boxes, sorted, so that one set of boxes has one text.

    Each coordinate is rounded to the nearest of the positions that divide its side into `levels` equal steps (at most
    one step a unit of the frame). A side that would lose its length becomes the step that holds its centre.

    Args:
        boxes_unit: `[N, 4]` in [0, 1], positive area.
        frame: coordinate convention of the policy's family.
        model_image_size_px: (width, height) after the policy's resize rule; used by `absolute_px`.
        levels: steps a side, at least 1; small policies have one token a step.

    Returns:
        `[[x_min, y_min, x_max, y_max], ...]`, `[]` for no boxes; `parse_answer` reads it back.
    """
    range_of_frame = (1000, 1000) if frame == "norm1000" else model_image_size_px
    steps = (min(levels, range_of_frame[0]), min(levels, range_of_frame[1]))
    # The grid of positions is treated as an image with one pixel a step.
    exact = unit_to_px(boxes_unit, steps)
    low, high = np.rint(exact[:, :2]), np.rint(exact[:, 2:])
    without_area = low == high
    step_below_centre = np.minimum(np.floor((exact[:, :2] + exact[:, 2:]) / 2), np.array(steps) - 1)
    low = np.where(without_area, step_below_centre, low)
    high = np.where(without_area, step_below_centre + 1, high)
    boxes_steps = np.concatenate([low, high], axis=1)
    integers = np.rint(unit_to_px(px_to_unit(boxes_steps, steps), range_of_frame)).astype(np.int64)
    return str(sorted(integers.tolist()))
