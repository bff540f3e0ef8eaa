"""Batches of pairs drawn from families, made on the fly: swapped, with other colours, never twice the same.

A batch depends on the seed and on the numbers of its items alone, so a continued run sees what an uninterrupted one
would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from dig_rl.boxes import px_to_unit
from dig_rl.datagen.family_shards import FamilyShard
from dig_rl.errors import DataError
from dig_rl.image_files import GRAY
from dig_rl.looks import LookKind, apply_look, draw_look
from dig_rl.policy.load import PolicyFrontend, load_images
from dig_rl.prompts import format_answer
from dig_rl.types import Example, Look

IGNORED = -100
"""Label of a token without loss."""
HINT_SHARE = 0.25
"""An image token is hinted as changed when a box covers at least this share of its square."""


@dataclass(frozen=True)
class DrawnPair:
    """A pair under a look; all boxes `[N, 4]`."""

    images: np.ndarray
    """`[2, H, W, 3]` uint8 sRGB."""
    changed_xyxy_px: np.ndarray
    unchanged_xyxy_px: np.ndarray
    """Objects seen in both images as they were, around what either shows of them."""
    first_xyxy_px: np.ndarray
    """Everything that the first image shows."""


class PairPool:
    """All pairs of some families, by their number of changes."""

    def __init__(self, shards: Iterable[FamilyShard]) -> None:
        """Keep every picture in memory.

        Raises:
            DataError: there is no pair.
        """
        self._shards = list(shards)
        owners = [np.full(len(shard.pairs), index) for index, shard in enumerate(self._shards)]
        if not sum(len(owner) for owner in owners):
            raise DataError("the families hold no pair; make more of them")
        self._owner = np.concatenate(owners)
        self._row = np.concatenate([np.arange(len(shard.pairs)) for shard in self._shards])
        counts = np.concatenate([shard.num_boxes for shard in self._shards])
        self._by_count = {int(count): np.flatnonzero(counts == count) for count in np.unique(counts)}
        self.counts = tuple(sorted(self._by_count))
        """Numbers of changes that occur."""

    def __len__(self) -> int:
        """Pairs, swaps and mirror images not counted."""
        return len(self._row)

    def draw(self, rng: np.random.Generator, count: int) -> DrawnPair:
        """A random pair with `count` changes, swapped, mirrored and with its colour channels reordered at random."""
        candidates = self._by_count[count]
        chosen = candidates[int(rng.integers(len(candidates)))]
        shard, row = self._shards[self._owner[chosen]], self._row[chosen]
        pictures = shard.pairs[row]
        images = shard.images[pictures]
        look = draw_look(rng, get_args(LookKind))
        states, objects = shard.states[pictures], shard.objects_xyxy_px[pictures]
        seen = ~np.isnan(objects).any(axis=2)
        unchanged = objects[:, (states[0] == states[1]) & seen.all(axis=0)]
        around = np.concatenate([unchanged[..., :2].min(axis=0), unchanged[..., 2:].max(axis=0)], axis=-1)
        first = int(look.swap)
        return DrawnPair(
            images=np.ascontiguousarray(apply_look(images, look)),
            changed_xyxy_px=_under_look(shard.boxes_xyxy_px[row, :count], look, images.shape[2]),
            unchanged_xyxy_px=_under_look(around, look, images.shape[2]),
            first_xyxy_px=_under_look(objects[first, seen[first]], look, images.shape[2]),
        )


class FamilyCollator:
    """Turns item numbers into padded batches for the trainer: training items from pools, others from examples."""

    def __init__(
        self,
        frontend: PolicyFrontend,
        pool: PairPool,
        examples: Sequence[Example],
        *,
        levels: int,
        batch_size: int,
        single_steps: int,
        imagined: float,
        blind: float,
        hints: bool,
        seed: int,
    ) -> None:
        """Prepare.

        Args:
            frontend: processor and prompt of the policy.
            pool: what training items are drawn from; all pictures have one size, that of `examples`.
            examples: labelled pairs for evaluation, asked for by `example` instead of `item`.
            levels: answers are rounded to multiples of 1000 / levels.
            batch_size: items of one step.
            single_steps: in the first steps pairs have one change, then 1, 2, 3, ... in turn.
            imagined: chance of each object that did not change to be in the label too.
            blind: chance of a training pair to have a gray second image, and all that the first one shows as its label.
            hints: label the second image's tokens as changed or not, beside the answer.
            seed: decides all draws.
        """
        self._frontend, self._pool, self._examples = frontend, pool, examples
        self._levels, self._batch_size, self._single_steps = levels, batch_size, single_steps
        self._imagined, self._blind, self._hints, self._seed = imagined, blind, hints, seed
        self._prompt = frontend.encode(examples[0])["input_ids"][0]
        tokenizer = frontend.processor.tokenizer
        self._end, self._pad = tokenizer.eos_token, frontend.pad_token_id
        self._image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._unchanged, self._changed = tokenizer.convert_tokens_to_ids(["[]", "[["])

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        """A batch; every row has either `item`, a number counted from the start of training, or `example`."""
        drawn = [self._example(row["example"]) if "example" in row else self._draw(row["item"]) for row in rows]
        hinted = self._hints and "item" in rows[0]
        images = [image for pair, _ in drawn for image in pair]
        encoded = self._frontend.processor.image_processor(images=images, return_tensors="pt")
        size = (images[0].shape[1], images[0].shape[0])
        answers = [self._answer_ids(boxes, size) for _, boxes in drawn]
        longest = max(len(answer) for answer in answers)
        num_prompt = len(self._prompt)
        input_ids = torch.full((len(drawn), num_prompt + longest), self._pad)
        labels = torch.full_like(input_ids, IGNORED)
        input_ids[:, :num_prompt] = self._prompt
        for index, answer in enumerate(answers):
            end = num_prompt + len(answer)
            input_ids[index, num_prompt:end] = labels[index, num_prompt:end] = answer
        if hinted:
            self._add_hints(labels, [boxes for _, boxes in drawn], size, encoded["image_grid_thw"][1].tolist())
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < num_prompt + _lengths(answers)[:, None]).long(),
            "labels": labels,
            "mm_token_type_ids": (input_ids == self._image_token).int(),
            "pixel_values": encoded["pixel_values"],
            "image_grid_thw": encoded["image_grid_thw"],
        }

    def _draw(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        counts = self._pool.counts
        count = counts[0] if item < self._single_steps * self._batch_size else counts[item % len(counts)]
        rng = np.random.default_rng([self._seed, item])
        pair = self._pool.draw(rng, count)
        imagined = pair.unchanged_xyxy_px[rng.random(len(pair.unchanged_xyxy_px)) < self._imagined]
        if rng.random() < self._blind:
            return np.stack([pair.images[0], np.full_like(pair.images[1], GRAY)]), pair.first_xyxy_px
        return pair.images, np.concatenate([pair.changed_xyxy_px, imagined])

    def _example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        example = self._examples[index]
        images = np.stack([np.array(image) for image in load_images(example)])
        return images, np.array(example.target_boxes_px, dtype=np.float64).reshape(-1, 4)

    def _answer_ids(self, boxes_px: np.ndarray, size_px: tuple[int, int]) -> torch.Tensor:
        frontend = self._frontend
        model_size = frontend.model_image_size_px(size_px)
        text = format_answer(px_to_unit(boxes_px, size_px), frontend.frame, model_size, self._levels) + self._end
        return torch.tensor(frontend.processor.tokenizer(text, add_special_tokens=False).input_ids)

    def _add_hints(
        self, labels: torch.Tensor, boxes_px: Sequence[np.ndarray], size_px: tuple[int, int], grid: list[int]
    ) -> None:
        # The label of a position is the token that the position before it predicts.
        places = torch.nonzero(self._prompt == self._image_token).flatten()
        after_second_image = places[len(places) // 2 :] + 1
        merge = self._frontend.processor.image_processor.merge_size
        shape = (grid[1] // merge, grid[2] // merge)
        for index, boxes in enumerate(boxes_px):
            changed = torch.from_numpy(covered_squares(boxes, size_px, shape) >= HINT_SHARE)
            labels[index, after_second_image] = torch.where(changed.flatten(), self._changed, self._unchanged)


def _under_look(boxes_xyxy_px: np.ndarray, look: Look, width_px: int) -> np.ndarray:
    x0, y0, x1, y1 = boxes_xyxy_px.astype(np.float64).T
    return np.stack([width_px - x1, y0, width_px - x0, y1] if look.mirror else [x0, y0, x1, y1], axis=-1)


def covered_squares(boxes_px: np.ndarray, size_px: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Share of each square of a grid that the box which covers most of it covers.

    Args:
        boxes_px: `[N, 4]` in pixels.
        size_px: (width, height) of the picture.
        grid: (rows, columns).

    Returns:
        `[rows, columns]` in [0, 1].
    """
    overlaps = []
    for side, low, high, parts in ((size_px[1], 1, 3, grid[0]), (size_px[0], 0, 2, grid[1])):
        edges = np.linspace(0, side, parts + 1)
        inside = np.minimum(edges[1:], boxes_px[:, high, None]) - np.maximum(edges[:-1], boxes_px[:, low, None])
        overlaps.append(np.maximum(inside, 0) / (side / parts))
    shares: np.ndarray = (overlaps[0][:, :, None] * overlaps[1][:, None, :]).max(axis=0, initial=0.0)
    return shares


def _lengths(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([len(answer) for answer in answers])
