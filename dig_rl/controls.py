"""Controls: does the policy look at what it is asked about?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from dig_rl.actors.fleet import Rollouts
from dig_rl.types import Example

NUM_PAIRS = 16
_GRAY = (128, 128, 128)


def same_answer_frac(rollouts: Rollouts, examples: Sequence[Example], folder: Path) -> float:
    """Share of pairs whose greedy answer stays the same, letter by letter, when the changed image is an even gray.

    Args:
        rollouts: workers that hold the weights to be tested.
        examples: pairs with changes; the first `NUM_PAIRS` of those are asked about, at least one.
        folder: where the gray images are written, one for each size.
    """
    chosen = [example for example in examples if example.num_differences][:NUM_PAIRS]
    folder.mkdir(parents=True, exist_ok=True)
    blanked = [replace(example, image_b_path=str(_gray_image(folder, example.image_size_px))) for example in chosen]
    seen, unseen = rollouts.answer(chosen), rollouts.answer(blanked)
    same = [a.completions[0].text == b.completions[0].text for a, b in zip(seen, unseen, strict=True)]
    return sum(same) / len(same)


def _gray_image(folder: Path, size_px: tuple[int, int]) -> Path:
    path = folder / f"gray_{size_px[0]}x{size_px[1]}.png"
    if not path.exists():
        Image.new("RGB", size_px, _GRAY).save(path)
    return path
