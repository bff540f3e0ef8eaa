"""The control `sft_more`: the very pairs of GRPO, for as long as asked, and on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dig_rl.data import load_examples
from dig_rl.errors import DataError
from dig_rl.family_batches import PairPool
from dig_rl.sft_more import _measure, shard_of_pairs
from tests.data_folders import line_of, write_folder

pytestmark = pytest.mark.slow  # TRL takes long to import

COUNTS = [1, 2, 1, 3]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", [_line(index, count) for index, count in enumerate(COUNTS)])


def _line(index: int, count: int) -> dict[str, object]:
    changes = []
    for number in range(count):
        box = [float(index), 2.0 * number, 20.0 + index, 30.0]
        changes.append(line_of("p0")["differences"][0] | {"box": box, "box_a": box, "box_b": box})
    return line_of(f"p{index}", num_differences=count, differences=changes)


def test_training_draws_from_the_very_pairs(source: Path) -> None:
    examples = load_examples(source, "train")
    shard = shard_of_pairs(examples)
    pool = PairPool([shard])
    assert len(pool) == len(COUNTS) and pool.counts == (1, 2, 3)
    for row, example in enumerate(examples):
        assert shard.boxes_xyxy_px[row, : COUNTS[row]].tolist() == [list(box) for box in example.target_boxes_px]
        for side, path in enumerate((example.image_a_path, example.image_b_path)):
            with Image.open(path) as image:
                assert np.array_equal(shard.images[shard.pairs[row, side]], np.array(image))
    with pytest.raises(DataError, match="must have one size"):
        shard_of_pairs([examples[0], replace(examples[1], image_size_px=(8, 8))])


def test_number_of_supervised_steps_fills_the_time(tmp_path: Path) -> None:
    def run(steps: int, folder: Path, evaluate_every: int) -> None:
        """As if a start took 3 s, a step 0.25 s and a look at the validation loss 9 s."""
        folder.mkdir()
        history = [{"loss": 1.0}, {"train_runtime": 3 + 0.25 * steps + 9 * (steps // evaluate_every)}]
        (folder / "history.json").write_text(json.dumps(history))

    found = _measure(run, tmp_path / "probe", seconds=600)
    assert (found["steps"], found["step_seconds"]) == (2400, 0.25)
    assert not (tmp_path / "probe").exists()
