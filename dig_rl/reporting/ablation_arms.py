"""What the page of ablations says of arms, of the paper's claims, and of reasons why these hold or not."""

from __future__ import annotations

from typing import NamedTuple

from dig_rl.ablations.recipe import Axis
from dig_rl.ablations.results import Claim


class Arm(NamedTuple):
    """An arm in the report."""

    name: str
    meaning: str


ARMS: dict[Axis, tuple[Arm, ...]] = {
    "reward": (
        Arm("format", "format 1"),
        Arm("format_iou", "format 0.1, IoU 0.9"),
        Arm("format_f1", "format 0.1, F1 0.9"),
        Arm("all", "format 0.1, F1 0.45, IoU 0.45"),
        Arm("format_iou_matched", "as `format_iou`, with the paper's mean IoU"),
        Arm("all_matched", "as `all`, with the paper's mean IoU"),
    ),
    "curriculum": (
        Arm("mixed_only", "1 to 4 changes from the start"),
        Arm("single_only", "1 change"),
        Arm("single_dual", "1 change, then 2"),
        Arm("staged", "1 change, then 2, then 1 to 4; the run of `all`"),
        Arm("adaptive", "as staged, with promotion, replay and adaptive draws"),
        Arm("many_first", "4 changes, then 3 and 4, then 1 to 4"),
        Arm("mixed_only_sparse", "as `mixed_only`, 0.9 for answers that are all right (`rewards/all_or_nothing.py`)"),
        Arm("staged_sparse", "as `staged`, with that reward"),
        Arm("many_first_sparse", "as `many_first`, with that reward"),
    ),
    "control": (
        Arm("shuffled_labels", "training pairs have the boxes of other pairs"),
        Arm("blank_image_b", "the second image is gray, at test too"),
        Arm("sft_more", "more supervised training, for the minutes of `all`"),
        Arm("sft_exact", "the same with exact labels"),
    ),
}
CLAIMS: dict[Axis, tuple[Claim, ...]] = {
    "reward": (Claim("format", "format_iou"), Claim("format_iou", "format_f1"), Claim("format_f1", "all")),
    "curriculum": (Claim("single_only", "single_dual"), Claim("single_dual", "staged"), Claim("mixed_only", "staged")),
    "control": (),
}


class Reason(NamedTuple):
    """Why an ordering comes out as it does, or not as in the paper, and what must be so if that is why."""

    text: str
    expected: tuple[Claim, ...]
    ledger: str | None = None
    """File beside `ablations.json` with the runs that tell, if these begin with another policy."""


LOOSE_LEDGER = "ablations-loose.json"
REASONS: dict[Axis, tuple[Reason, ...]] = {
    "reward": (
        Reason(
            "the IoU term here counts a missing or surplus box as an IoU of 0 (`rewards/box_iou.py`), so it knows how "
            "many changes there are, as F1 does. The paper's mean over assigned boxes does not. With that one, then:",
            (
                Claim("format", "format_iou_matched"),
                Claim("format_iou_matched", "format_iou"),
                Claim("format_iou_matched", "format_f1"),
                Claim("format_f1", "all_matched"),
            ),
        ),
        Reason(
            "the boxes of this start fit already, since its labels had exact boxes. What is wrong with its answers is "
            "which objects they name, and of that the paper's IoU term says nothing. An earlier start had learned from "
            "boxes whose sides lay too far out, each by up to 0.45 of the box, and from labels that left each change "
            "out with a chance of 0.4. (It ships no more, since part of its gain needs no comparing: "
            "[lab log](lab-log.md).) From there, with the paper's own terms, and all three with ours, then:",
            (
                Claim("format", "format_iou_matched"),
                Claim("format_iou_matched", "format_f1"),
                Claim("format_f1", "all_matched"),
                Claim("format_f1", "all"),
            ),
            ledger=LOOSE_LEDGER,
        ),
    ),
    "curriculum": (
        Reason(
            "nearly every answer is paid something here, so that no reward is sparse, and starting easy has little to "
            "make up for. With a reward for answers that are all right, every change boxed and nothing else, then:",
            (Claim("mixed_only_sparse", "staged_sparse"),),
        ),
        Reason(
            "*starting easy* is not starting with one change here: this start boxes too much, and of its greedy "
            "answers 0 %, 0 %, 24 % and 46 % are all right for one to four changes. With many changes first, then:",
            (
                Claim("mixed_only_sparse", "many_first_sparse"),
                Claim("staged_sparse", "many_first_sparse"),
                Claim("mixed_only", "many_first"),
                Claim("staged", "many_first"),
            ),
        ),
        Reason(
            "for the loose start (above), pairs with one change are the easy ones: 56 %, 18 %, 10 % and 4 % of its "
            "greedy answers are all right for one to four changes. From there, with the shared reward and with the "
            "sparse one, then:",
            (Claim("mixed_only", "staged"), Claim("mixed_only_sparse", "staged_sparse")),
            ledger=LOOSE_LEDGER,
        ),
    ),
}
TITLES: dict[Axis, str] = {
    "reward": "Which reward",
    "curriculum": "Which curriculum",
    "control": "Controls",
}
REASONS_TITLES: dict[Axis, str] = {
    "reward": "Why an ordering may not come out as in the paper",
    "curriculum": "Is it because rewards are sparse?",
}
SUPERVISED = (Claim("sft_more", "all"), Claim("sft_exact", "all"))
"""No claims of the paper: what GRPO is held against."""
