"""Controls: does the policy look at what it is asked about?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dig_rl.actors.fleet import Rollouts
from dig_rl.evaluation.subset import representative_pairs
from dig_rl.image_files import gray_image
from dig_rl.types import Example

NUM_PAIRS = 16


def same_answer_frac(rollouts: Rollouts, examples: Sequence[Example], folder: Path) -> float:
    """Share of pairs whose greedy answer stays the same, letter by letter, when the changed image is an even gray.

    Args:
        rollouts: workers that hold the weights to be tested.
        examples: pairs; `NUM_PAIRS` of those with changes are asked about, at least one.
        folder: where the gray images are written, one for each size.
    """
    chosen = representative_pairs([example for example in examples if example.num_differences], NUM_PAIRS)
    blanked = [replace(example, image_b_path=str(gray_image(folder, example.image_size_px))) for example in chosen]
    seen, unseen = rollouts.answer(chosen), rollouts.answer(blanked)
    same = [a.completions[0].text == b.completions[0].text for a, b in zip(seen, unseen, strict=True)]
    return sum(same) / len(same)
