"""The nouns: frozen records that travel between the parts of a run.

Only the standard library and numpy may be imported here, so every process can open these. Boxes carry their frame in
the name: `_px` pixels of the stored image, `_unit` fractions of each side in [0, 1], `_norm1000` the model's 0-1000
coordinates; all are `[N, 4]` xyxy, half-open, origin top-left.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

ParseStatus = Literal["ok", "empty", "malformed", "unfinished_thinking", "too_long", "too_many"]
"""Outcome of reading one answer; `ok` is a non-empty list of valid boxes, `empty` a valid list without boxes."""

BoxTarget = Literal["union", "a", "b"]
"""Which image a box refers to: what either shows of the change, the reference, or the changed image."""

FinishReason = Literal["stop", "length", "abort"]
"""Why the sampler stopped: end-of-text token, token budget, or the engine gave up."""


@dataclass(frozen=True)
class Look:
    """How the images of a pair are shown; see `dig_rl/looks.py`."""

    swap: bool = False
    """The images change places, so what was added is removed."""
    mirror: bool = False
    """Both are mirrored left to right."""
    channels: tuple[int, ...] = (0, 1, 2)
    """Order in which both show the stored colour channels."""


@dataclass(frozen=True)
class Example:
    """One image pair with its labels, as read from a data folder."""

    pair_id: str
    image_a_path: str
    """Absolute path of the reference image."""
    image_b_path: str
    """Absolute path of the changed image; same size as the reference."""
    image_size_px: tuple[int, int]
    """(width, height) of both images."""
    target_boxes_px: tuple[tuple[float, float, float, float], ...]
    """M true boxes, `box` of each difference (see `box_target` in docs/data.md)."""
    kinds: tuple[str, ...]
    """M kinds of change, aligned with `target_boxes_px`."""
    split: str
    """`train`, `validation` or `test`."""
    visible_fractions: tuple[float | None, ...] = ()
    """M fractions of the changed object that its picture shows, in [0, 1]: the lower one where both pictures show it,
    None where the data do not say. Empty if nothing was read."""
    look: Look = Look()
    """How the images are shown; boxes and kinds are those of this look."""

    @property
    def num_differences(self) -> int:
        """M, the number of true changes; never shown to the policy."""
        return len(self.target_boxes_px)

    @property
    def area_shares(self) -> tuple[float, ...]:
        """M areas of the true boxes over the area of the picture, in (0, 1]."""
        area = self.image_size_px[0] * self.image_size_px[1]
        return tuple((x_max - x_min) * (y_max - y_min) / area for x_min, y_min, x_max, y_max in self.target_boxes_px)


@dataclass(frozen=True)
class Completion:
    """What the sampler wrote for one prompt."""

    token_ids: tuple[int, ...]
    """T sampled ids, the end-of-text token included when it was sampled."""
    logprobs_rollout: tuple[float, ...]
    """T natural-log probabilities of those ids under the distribution that was sampled from."""
    text: str
    finish_reason: FinishReason
    seed: int
    """Seed of this completion's random generator."""


@dataclass(frozen=True)
class SampledGroup:
    """G completions of one pair by one version of the policy, before scoring."""

    example: Example
    prompt_token_ids: tuple[int, ...]
    """Prompt ids with every image token expanded, as the engine used them."""
    completions: tuple[Completion, ...]
    policy_version: int
    """Number of optimiser steps contained in the weights that sampled."""
    model_image_size_px: tuple[int, int]
    """(width, height) of both images after the policy's resize rule."""
    num_cached_tokens: int
    """Prompt tokens that the completion which finished last took from the prefix cache."""


@dataclass(frozen=True)
class PolicyInput:
    """What the pictures of one pair are when they reach the policy, short enough to compare between processes."""

    sha256: str
    """Of all pixel values and of the grid."""
    shape: tuple[int, ...]
    """Of the pixel values: patches of both pictures, values of a patch."""
    grid: tuple[tuple[int, ...], ...]
    """Patches of each picture: frames, rows, columns."""
    dtype: str
    """Of the pixel values: `uint8` where the policy itself turns levels into numbers, else what it computes in."""
    level_scale: tuple[float, ...] = ()
    """With `uint8`: what a level is multiplied by in each channel, then what is added, to six decimals."""


@dataclass(frozen=True)
class Question:
    """A free question about one picture, as benchmarks ask it."""

    text: str
    image_path: str
    image_size_px: tuple[int, int]
    """(width, height)."""


@dataclass(frozen=True)
class Reply:
    """The most likely answer to a question."""

    text: str
    model_image_size_px: tuple[int, int]
    """(width, height) of the picture after the policy's resize rule."""
    num_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True)
class Score:
    """Reward of one completion with its parts."""

    total: float
    """Weighted sum of the terms, in [0, 1]."""
    terms: dict[str, float]
    """Raw value of each term by its name in the config, in [0, 1]."""
    status: ParseStatus
    boxes_unit: tuple[tuple[float, ...], ...] = ()
    """N boxes read from the answer, in the order written; none unless the status is `ok`."""


@dataclass(frozen=True)
class ScoreFailure:
    """A completion that has no reward because a plugin broke on it; never the same as a reward of 0."""

    reason: str
    """One sentence: plugin, what it did, pair, excerpt."""


@dataclass(frozen=True)
class RolloutGroup:
    """A sampled group with its scores: the unit that GRPO compares within."""

    sampled: SampledGroup
    scores: tuple[Score | None, ...]
    """G scores; None where the completion is masked: its plugin broke, so nothing is known about it."""
    stage: str

    @property
    def scored(self) -> tuple[Score, ...]:
        """The K <= G scores that there are, in order."""
        return tuple(score for score in self.scores if score is not None)

    @property
    def rewards(self) -> np.ndarray:
        """`[K]` float64 total rewards of `scored`."""
        return np.array([score.total for score in self.scored], dtype=np.float64)

    def without_masked(self) -> RolloutGroup:
        """This group with its K scored completions alone."""
        if None not in self.scores:
            return self
        pairs = zip(self.sampled.completions, self.scores, strict=True)
        completions = tuple(completion for completion, score in pairs if score is not None)
        return replace(self, sampled=replace(self.sampled, completions=completions), scores=self.scored)


@dataclass(frozen=True)
class RewardInput:
    """Everything a reward plugin may look at; a plugin sees nothing else and keeps no state."""

    pair_id: str
    prompt: str
    completion: str
    status: ParseStatus
    predicted_boxes_unit: np.ndarray | None
    """`[N, 4]` in the order written; None unless the status is `ok` or `empty`."""
    target_boxes_unit: np.ndarray
    """`[M, 4]` true boxes."""
    assignment: tuple[tuple[int, int, float], ...]
    """(predicted index, target index, IoU) of each assigned pair, min(N, M) of them."""
    image_size_px: tuple[int, int]
    """(width, height) of the stored images."""
    model_image_size_px: tuple[int, int]
    """(width, height) after the policy's resize rule, the frame of absolute-pixel policies."""
    finish_reason: FinishReason
    num_tokens: int
    metadata: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    stage: str = ""
