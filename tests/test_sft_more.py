"""The control `sft_more`: the very pairs of GRPO, for as long as asked, and on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.config import Config
from dig_rl.data import load_examples
from dig_rl.errors import ConfigError, DataError
from dig_rl.family_batches import PairPool
from dig_rl.sft_more import _measure, shard_of_pairs, training_settings
from tests.data_folders import line_of, write_folder
from tests.tiny import ROOT

pytestmark = pytest.mark.slow  # TRL takes long to import

COUNTS = [1, 2, 1, 3]
NANO = ROOT / "nano/data"


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


def test_scenes_tell_what_did_not_change() -> None:
    examples = load_examples(NANO, "validation")[::20]
    shard = shard_of_pairs(examples, NANO)
    for row, example in enumerate(examples):
        first, second = shard.pairs[row]
        there = shard.states[first] >= 0
        changed = there & (shard.states[first] != shard.states[second])
        both = shard.objects_xyxy_px[[first, second]][:, changed]
        union = np.concatenate([np.nanmin(both[..., :2], axis=0), np.nanmax(both[..., 2:], axis=0)], axis=-1)
        # Cycles and our rays may differ by a pixel at an outline.
        nearest = np.abs(union[:, None] - np.array(example.target_boxes_px)).max(axis=2)
        assert (nearest.min(axis=0) <= 1).all() and (nearest.min(axis=1) <= 1).all()
        assert len(union) == example.num_differences
        assert not np.isnan(shard.objects_xyxy_px[[first, second]][:, there & ~changed]).any()
    counts = {len(PairPool([shard]).draw(np.random.default_rng(seed), 1).unchanged_xyxy_px) for seed in range(20)}
    assert min(counts) > 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("[]", "does not have the layout of a scene file"),
        ('{"pair_id": "pair-00000"}', "belongs to pair 'pair-00000'"),
        ('"version": 1', "scene version 7: this dig-rl reads version 1"),
    ],
)
def test_missing_and_wrong_scenes_are_told(text: str | None, problem: str, tmp_path: Path) -> None:
    examples = load_examples(NANO, "validation")[:1]
    (tmp_path / "scenes").mkdir()
    (tmp_path / "metadata.jsonl").symlink_to(NANO / "metadata.jsonl")
    name = f"scenes/{examples[0].pair_id}.json"
    if text == '"version": 1':
        text = (NANO / name).read_text().replace(text, '"version": 7')
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}:? {problem}"):
        shard_of_pairs(examples, tmp_path)


def test_settings_are_checked_before_anything_is_read() -> None:
    wrong: dict[str, Any]
    for wrong, told in [
        ({"imagined": 2.0}, "imagined: Input should be less than or equal to 1"),
        ({"blind": -0.1, "hints": False}, "blind: Input should be greater than or equal to 0"),
        ({"imagined": 0.5}, "with imagined or blind, set hints = false"),
        ({"imagind": 0.5}, "imagind: no such key; did you mean imagined"),
        ({"steps": 3}, "training.steps is set by the control itself"),
        ({"seed": 3}, "training.seed is set by the control itself"),
        ({"coordinate_levels": "x"}, "coordinate_levels must be a whole number from 1 on, found 'x'"),
        ({"coordinate_levels": 0}, "coordinate_levels must be a whole number from 1 on, found 0"),
    ]:
        with pytest.raises(ConfigError, match=f"arm x.*(\n.*)*{told}"):
            training_settings(wrong, Config(), where="arm x")
    settings, levels = training_settings({"lr": 0.5, "coordinate_levels": 25}, Config(seed=3), where="arm x")
    assert (settings.lr, settings.seed, levels) == (0.5, 3, 25)
    assert training_settings({}, Config(), where="arm x")[1] == Config().warmup.coordinate_levels


def test_number_of_supervised_steps_fills_the_time(tmp_path: Path) -> None:
    def run(steps: int, folder: Path, evaluate_every: int) -> None:
        """As if a start took 3 s, a step 0.25 s and a look at the validation loss 9 s."""
        folder.mkdir()
        history = [{"loss": 1.0}, {"train_runtime": 3 + 0.25 * steps + 9 * (steps // evaluate_every)}]
        (folder / "history.json").write_text(json.dumps(history))

    found = _measure(run, tmp_path / "probe", seconds=600)
    assert (found["steps"], found["step_seconds"]) == (2400, 0.25)
    assert not (tmp_path / "probe").exists()
