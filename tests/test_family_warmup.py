"""Batches drawn on the fly are right, and training on them goes on where it stopped as if it had not."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dig_rl.boxes import px_to_unit
from dig_rl.config import PolicyConfig
from dig_rl.datagen.family_shards import FamilyShard
from dig_rl.errors import DataError
from dig_rl.family_batches import IGNORED, FamilyCollator, PairPool, covered_squares
from dig_rl.muon import MuonWithAdamW
from dig_rl.policy.load import load_frontend
from dig_rl.prompts import format_answer
from dig_rl.types import Example

WIDTH, HEIGHT = 96, 64
RED, BLUE = (200, 10, 20), (30, 40, 250)


RED_PX, BLUE_PX = (10.0, 8.0, 30.0, 24.0), (50.0, 40.0, 80.0, 60.0)


def painted_shard() -> FamilyShard:
    """Three grey pictures: plain, with a red block, with the red and a blue block."""
    images = np.full((3, HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    images[1:, 8:24, 10:30] = RED
    images[2, 40:60, 50:80] = BLUE
    red, blue, nothing, unseen = RED_PX, BLUE_PX, (0, 0, 0, 0), (np.nan,) * 4
    return FamilyShard(
        images=images,
        states=np.array([[1, 1, -1], [0, 1, -1], [0, 0, -1]], dtype=np.int8),  # and one place that no object has
        objects_xyxy_px=np.array([[unseen] * 3, [red, unseen, unseen], [red, blue, unseen]], dtype=np.float32),
        pairs=np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32),
        num_boxes=np.array([1, 1, 2], dtype=np.int8),
        boxes_xyxy_px=np.array([[red, nothing], [blue, nothing], [red, blue]], dtype=np.float32),
        places_m=np.zeros((2, 2)),
    )


def test_every_augmentation_keeps_boxes_on_what_changed() -> None:
    pool = PairPool([painted_shard(), painted_shard()])
    assert len(pool) == 6
    assert pool.counts == (1, 2)
    looks = set()
    for seed in range(600):
        pair = pool.draw(np.random.default_rng(seed), 2)
        images, boxes = pair.images, pair.changed_xyxy_px
        changed = (images[0] != images[1]).any(axis=2)
        boxed = np.zeros_like(changed)
        for x0, y0, x1, y1 in boxes.astype(int):
            boxed[y0:y1, x0:x1] = True
        assert np.array_equal(changed, boxed)
        plain_first = bool((images[0] == 90).all())
        picture = images[int(plain_first)]
        mirrored = bool((picture[10, 70] != 90).any())
        red = picture[10, 70 if mirrored else 20]
        assert sorted(red.tolist()) == sorted(RED)
        looks.add((plain_first, mirrored, tuple(red.tolist())))
        assert len(pair.unchanged_xyxy_px) == 0  # both blocks are new
        assert pair.first_xyxy_px.tolist() == ([] if plain_first else boxes.tolist())
    assert len(looks) == 2 * 2 * 6  # swapped or not, mirrored or not, any order of channels


def test_a_pair_tells_what_did_not_change_and_what_its_first_image_shows() -> None:
    pool, seen = PairPool([painted_shard()]), set()
    for seed in range(200):
        pair = pool.draw(np.random.default_rng(seed), 1)
        mirrored = [[WIDTH - x1, y0, WIDTH - x0, y1] for x0, y0, x1, y1 in (RED_PX, BLUE_PX)]
        boxes = {tuple(box): name for name, box in zip(("red", "blue"), (RED_PX, BLUE_PX), strict=True)}
        boxes |= {tuple(box): name for name, box in zip(("red", "blue"), mirrored, strict=True)}
        named = [
            sorted(boxes[tuple(box)] for box in part.tolist())
            for part in (pair.changed_xyxy_px, pair.unchanged_xyxy_px)
        ]
        first = sorted(boxes[tuple(box)] for box in pair.first_xyxy_px.tolist())
        seen.add(" | ".join(" ".join(part) for part in (*named, first)))
    assert seen == {"red |  | ", "red |  | red", "blue | red | red", "blue | red | blue red"}


def test_a_pool_without_pairs_is_refused() -> None:
    shard = painted_shard()
    nothing = {name: getattr(shard, name)[:0] for name in ("pairs", "num_boxes", "boxes_xyxy_px")}
    empty = replace(shard, **nothing)
    with pytest.raises(DataError, match="hold no pair"):
        PairPool([empty])


def test_covered_squares_by_hand() -> None:
    boxes = np.array([[8.0, 0.0, 32.0, 16.0], [16.0, 8.0, 20.0, 24.0]])
    shares = covered_squares(boxes, (48, 32), (2, 3))
    # Squares of 16 px. The first box fills half of the first and all of the second; the second box covers
    # 4 x 8 of 16 x 16 pixels below, and what it covers above is covered better by the first.
    assert shares.tolist() == [[0.5, 1.0, 0.0], [0.0, 0.125, 0.0]]
    assert covered_squares(np.zeros((0, 4)), (48, 32), (2, 3)).tolist() == [[0.0] * 3] * 2


@pytest.fixture
def validation(tmp_path: Path) -> list[Example]:
    from PIL import Image

    images = painted_shard().images
    for name, index in (("a", 0), ("b", 2)):
        Image.fromarray(images[index]).save(tmp_path / f"{name}.png")
    boxes = ((10.0, 8.0, 30.0, 24.0), (50.0, 40.0, 80.0, 60.0))
    paths = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    return [Example("one", *paths, (WIDTH, HEIGHT), boxes, ("add", "add"), "validation", (1.0, 1.0))]


def collator(policy: Path, validation: list[Example], **changes: Any) -> FamilyCollator:
    settings = {
        "levels": 50,
        "batch_size": 2,
        "single_steps": 1,
        "imagined": 0.0,
        "blind": 0.0,
        "hints": True,
        "seed": 7,
    } | changes
    frontend = load_frontend(PolicyConfig(path=str(policy)), "union")
    return FamilyCollator(frontend, PairPool([painted_shard()]), validation, **settings)


def test_a_batch_says_what_the_processor_would_say(random_policy: Path, validation: list[Example]) -> None:
    made = collator(random_policy, validation)
    batch = made([{"example": 0}])
    frontend = load_frontend(PolicyConfig(path=str(random_policy)), "union")
    encoded = frontend.encode(validation[0])
    prompt = encoded["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(prompt)], prompt)
    assert torch.equal(batch["pixel_values"], encoded["pixel_values"])
    assert torch.equal(batch["image_grid_thw"], encoded["image_grid_thw"])
    assert torch.equal(batch["mm_token_type_ids"][0, : len(prompt)], encoded["mm_token_type_ids"][0].int())
    answer = batch["labels"][0][batch["labels"][0] != IGNORED]
    boxes = px_to_unit(np.array(validation[0].target_boxes_px), (WIDTH, HEIGHT))
    expected = format_answer(boxes, frontend.frame, (WIDTH, HEIGHT), 50)
    assert frontend.processor.tokenizer.decode(answer) == expected + frontend.processor.tokenizer.eos_token
    assert torch.equal(batch["input_ids"][0, -len(answer) :], answer)


def test_hints_say_which_squares_of_the_second_image_changed(random_policy: Path, validation: list[Example]) -> None:
    made = collator(random_policy, validation, single_steps=0)
    batch = made([{"item": 0}, {"item": 1}])  # one change, two changes
    frontend = load_frontend(PolicyConfig(path=str(random_policy)), "union")
    vocabulary = frontend.processor.tokenizer
    images = torch.nonzero(batch["mm_token_type_ids"][1]).flatten()
    assert len(images) == 48
    labels = batch["labels"][1]
    assert (labels[images[:24] + 1] == IGNORED).sum() == 24  # the first image is not asked about
    hints = [vocabulary.convert_ids_to_tokens(int(token)) for token in labels[images[24:] + 1]]
    assert set(hints) == {"[[", "[]"}
    pixels = batch["pixel_values"].reshape(4, 24, -1)
    differs = (pixels[2] != pixels[3]).float().mean(dim=1)  # by square, of the pair with two changes
    assert [hint == "[[" for hint in hints] == (differs >= 0.25).tolist()


def test_labels_can_name_what_did_not_change_and_all_that_is_seen_before_a_gray_image(
    random_policy: Path, validation: list[Example]
) -> None:
    rows = [{"item": item} for item in range(0, 40, 2)]  # one change each
    tokenizer = load_frontend(PolicyConfig(path=str(random_policy)), "union").processor.tokenizer

    first_images: list[torch.Tensor] = []

    def answers(**habit: float) -> list[list[list[int]]]:
        batch = collator(random_policy, validation, hints=False, **habit)(rows)
        texts = [tokenizer.decode(row[row != IGNORED], skip_special_tokens=True) for row in batch["labels"]]
        first, second = batch["pixel_values"].reshape(len(rows), 2, 24, -1).unbind(dim=1)
        assert bool((second == second[0, 0, 0]).all()) == (habit.get("blind") == 1.0)
        first_images.append(first)
        return [json.loads(text) for text in texts]

    plain, imagined, blind = answers(), answers(imagined=1.0), answers(blind=1.0)
    assert {len(boxes) for boxes in plain} == {1}
    # Blue comes or goes beside red, or red comes or goes alone.
    assert {len(boxes) for boxes in imagined} == {1, 2} and {len(boxes) for boxes in blind} == {0, 1, 2}
    for changed, told, seen in zip(plain, imagined, blind, strict=True):
        assert all(box in told for box in changed) and all(box in told for box in seen)
    assert all(torch.equal(first, first_images[0]) for first in first_images)
    assert any(answers(imagined=0.5)[row] != imagined[row] for row in range(len(rows)))


def test_items_alone_decide_and_the_first_steps_have_one_change(random_policy: Path, validation: list[Example]) -> None:
    rows = [{"item": item} for item in range(8)]
    whole = collator(random_policy, validation)(rows)
    parts = [collator(random_policy, validation)([row]) for row in rows]
    boxes_written = []
    for index, part in enumerate(parts):
        length = part["input_ids"].shape[1]
        assert torch.equal(whole["input_ids"][index, :length], part["input_ids"][0])
        assert torch.equal(whole["pixel_values"].chunk(8)[index], part["pixel_values"])
        boxes_written.append((length - min(other["input_ids"].shape[1] for other in parts)) > 0)
    assert boxes_written == [False, False, False, True, False, True, False, True]


def test_both_optimisers_step_and_come_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "linear": torch.nn.Linear(4, 4)})

    def make() -> MuonWithAdamW:
        return MuonWithAdamW(model, muon_lr=0.1, adamw_lr=0.01, weight_decay=0.0, adamw_beta2=0.99)

    optimizer = make()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model["linear"](model["embed"](torch.arange(5))).square().sum().backward()
    optimizer.step()
    scheduler.step()
    moved = {name: (weight.detach() - before[name]).norm() for name, weight in model.named_parameters()}
    # Muon's step on a 4 x 4 matrix is near orthogonal (singular values of 0.7 to 1.2), scaled by 0.2 * sqrt(4).
    assert 0.7 < moved["linear.weight"] / (0.05 * 0.4 * 2) < 1.2
    # AdamW's first step is lr in every entry: five rows of four, and the bias of four.
    assert moved["embed.weight"] == pytest.approx(0.005 * 20**0.5, rel=0.01)
    assert moved["linear.bias"] == pytest.approx(0.005 * 2, rel=0.01)
    again = make()
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [0.05, 0.005, 0.005]
    again.param_groups[0]["lr"] = 0.0  # what a scheduler writes reaches the part
    frozen = model["linear"].weight.detach().clone()
    again.step()
    assert torch.equal(model["linear"].weight, frozen)


@pytest.mark.slow
def test_stopped_and_continued_equals_uninterrupted(
    random_policy: Path, validation: list[Example], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from dig_rl.family_warmup import FamilyWarmupConfig, last_tenth_gain, read_history, warm_up_on_families

    settings = FamilyWarmupConfig(
        steps=6, batch_size=4, lr_warmup_steps=1, single_steps=2, evaluate_every=2, bfloat16=False
    )
    pool = PairPool([painted_shard()])

    def train(out: Path) -> Path:
        return warm_up_on_families(settings, random_policy, pool, validation, 50, out)

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    whole = train(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        init = SFTTrainer.__init__

        def with_stop(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self.add_callback(Stop())

        patch.setattr(SFTTrainer, "__init__", with_stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "pieces")
    assert [path.name for path in (tmp_path / "pieces" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    pieces = train(tmp_path / "pieces")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, pieces))
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [entry["eval_loss"] for entry in read_history(tmp_path / "pieces") if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert last_tenth_gain(read_history(tmp_path / "pieces")) == pytest.approx((losses[1] - losses[2]) / losses[1])
