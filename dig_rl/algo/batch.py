"""One group as one sequence: the prompt with both images once, then its completions side by side.

A completion sees the prompt and itself, never its siblings (a tree mask), and its positions start right after the
prompt, so every log-probability equals that of the completion on its own. The long prompt is computed once for G
completions instead of G times.

Shapes: G completions, L packed tokens, P prompt tokens, N completion tokens of all completions together.

Source: the idea for text models is Prefix Grouper (arXiv 2506.05433); here with M-RoPE positions and image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from dig_rl.algo.advantages import group_advantages
from dig_rl.config import Config
from dig_rl.types import Example, RolloutGroup


@dataclass(frozen=True)
class TrainingGroup:
    """What the learner needs of one group; small arrays and paths, so it travels cheaply."""

    example: Example
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[tuple[int, ...], ...]
    """G completions."""
    logprobs_rollout: tuple[tuple[float, ...], ...]
    """Of each completion token, as the sampler had it."""
    advantages: tuple[float, ...]
    """G values, one a completion."""

    @property
    def num_completion_tokens(self) -> int:
        """N, completion tokens of all completions together."""
        return sum(map(len, self.completion_token_ids))

    @property
    def num_tokens(self) -> int:
        """Packed length L."""
        return len(self.prompt_token_ids) + self.num_completion_tokens


@dataclass(frozen=True)
class MiniBatch:
    """What one rank contributes to one optimiser step."""

    groups: tuple[TrainingGroup, ...]
    """This rank's share; may be empty if other ranks have some."""
    num_completions: int
    """Of all ranks together."""
    num_tokens: int
    """Completion tokens of all ranks together."""


@dataclass(frozen=True)
class PackedGroup:
    """A group laid out as one sequence."""

    example: Example
    token_ids_L: torch.Tensor
    """int64 `[L]`: prompt, then each completion."""
    num_prompt_tokens: int
    segment_L: torch.Tensor
    """int64 `[L]`: -1 in the prompt, else the index of the completion."""
    offset_L: torch.Tensor
    """int64 `[L]`: position within the prompt or within the completion."""
    predictor_N: torch.Tensor
    """int64 `[N]`: where in the sequence the hidden state that predicts each completion token stands."""
    target_N: torch.Tensor
    """int64 `[N]`: the completion tokens."""
    completion_N: torch.Tensor
    """int64 `[N]`: which completion each belongs to."""
    logprobs_rollout_N: torch.Tensor
    """float32 `[N]`."""
    advantage_N: torch.Tensor
    """float32 `[N]`: each token's completion's advantage."""
    token_weight_N: torch.Tensor
    """float32 `[N]`: 1 / length of the token's completion, so that a weighted sum is a sum of sequence means."""
    num_completions: int


def training_group(group: RolloutGroup, config: Config) -> TrainingGroup:
    """What is learned from a group: its scored completions, without truncated ones where these are masked."""
    group = group.without_masked()
    completions = group.sampled.completions
    whole = TrainingGroup(
        example=group.sampled.example,
        prompt_token_ids=group.sampled.prompt_token_ids,
        completion_token_ids=tuple(completion.token_ids for completion in completions),
        logprobs_rollout=tuple(completion.logprobs_rollout for completion in completions),
        advantages=tuple(group_advantages(group, config).tolist()),
    )
    if not config.learner.mask_truncated_completions:
        return whole
    return _select(whole, [index for index, row in enumerate(completions) if row.finish_reason != "length"])


def split_by_tokens(group: TrainingGroup, max_tokens: int) -> Iterator[TrainingGroup]:
    """Cut a group over the token budget into parts that repeat the prompt, each with one completion or more."""
    part: list[int] = []
    used = len(group.prompt_token_ids)
    for index, completion in enumerate(group.completion_token_ids):
        if part and used + len(completion) > max_tokens:
            yield _select(group, part)
            part, used = [], len(group.prompt_token_ids)
        part.append(index)
        used += len(completion)
    yield _select(group, part)


def pack_group(group: TrainingGroup) -> PackedGroup:
    """Lay a group out as one sequence."""
    num_prompt = len(group.prompt_token_ids)
    tokens, segment, offset = list(group.prompt_token_ids), [-1] * num_prompt, list(range(num_prompt))
    predictor: list[int] = []
    for index, completion in enumerate(group.completion_token_ids):
        start = len(tokens)
        # The first token is predicted by the last prompt token, every other by the token before it.
        predictor += [num_prompt - 1, *range(start, start + len(completion) - 1)]
        tokens += completion
        segment += [index] * len(completion)
        offset += range(len(completion))
    lengths = torch.tensor([len(completion) for completion in group.completion_token_ids])
    completion_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return PackedGroup(
        example=group.example,
        token_ids_L=torch.tensor(tokens),
        num_prompt_tokens=num_prompt,
        segment_L=torch.tensor(segment),
        offset_L=torch.tensor(offset),
        predictor_N=torch.tensor(predictor),
        target_N=torch.tensor(tokens[num_prompt:]),
        completion_N=completion_N,
        logprobs_rollout_N=torch.tensor([value for row in group.logprobs_rollout for value in row]),
        advantage_N=torch.tensor(group.advantages, dtype=torch.float32)[completion_N],
        token_weight_N=(1.0 / lengths.float())[completion_N],
        num_completions=len(lengths),
    )


def tree_mask(segment_L: torch.Tensor, offset_L: torch.Tensor) -> torch.Tensor:
    """Who may look at whom.

    Returns:
        bool `[1, 1, L, L]`, True where the row's token sees the column's: earlier prompt tokens for everybody, and
        earlier tokens of the same completion.
    """
    same = segment_L[:, None] == segment_L[None, :]
    earlier = offset_L[:, None] >= offset_L[None, :]
    column_in_prompt = (segment_L == -1)[None, :]
    row_in_completion = (segment_L != -1)[:, None]
    return ((same & earlier) | (column_in_prompt & row_in_completion))[None, None]


def packed_positions(prompt_positions_3P: torch.Tensor, packed: PackedGroup) -> torch.Tensor:
    """M-RoPE positions of a packed group.

    Args:
        prompt_positions_3P: `[3, P]` temporal, height and width positions of the prompt.
        packed: the group.

    Returns:
        int64 `[3, 1, L]`; each completion continues after the prompt's largest position, alike on the three axes.
    """
    start = int(prompt_positions_3P.max()) + 1
    completions_L = start + packed.offset_L[packed.num_prompt_tokens :]
    return torch.cat([prompt_positions_3P, completions_L.expand(3, -1)], dim=1)[:, None]


def make_minibatches(groups: Sequence[TrainingGroup], *, num_minibatches: int, num_ranks: int) -> list[list[MiniBatch]]:
    """Cut a rollout batch into optimiser steps, and each of these into the shares of the ranks.

    Args:
        groups: of the whole step, in the order they were drawn.
        num_minibatches: wanted; there are never more than groups.
        num_ranks: of the learner.

    Returns:
        For each rank its mini-batches, in order. Mini-batches differ by at most one group.
    """
    num_minibatches = min(num_minibatches, len(groups))
    bounds = [len(groups) * index // num_minibatches for index in range(num_minibatches + 1)]
    ranks: list[list[MiniBatch]] = [[] for _ in range(num_ranks)]
    for start, end in pairwise(bounds):
        members = groups[start:end]
        num_completions = sum(len(group.completion_token_ids) for group in members)
        num_tokens = sum(group.num_completion_tokens for group in members)
        for rank, shard in zip(ranks, shard_groups(members, num_ranks), strict=True):
            rank.append(MiniBatch(tuple(shard), num_completions, num_tokens))
    return ranks


def shard_groups(groups: Sequence[TrainingGroup], num_ranks: int) -> list[list[TrainingGroup]]:
    """Deal groups to ranks so that token counts are even: largest first, each to the least loaded rank."""
    shards: list[list[TrainingGroup]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for group in sorted(groups, key=lambda group: -group.num_tokens):
        rank = load.index(min(load))
        shards[rank].append(group)
        load[rank] += group.num_tokens
    return shards


def _select(group: TrainingGroup, indices: list[int]) -> TrainingGroup:
    return TrainingGroup(
        example=group.example,
        prompt_token_ids=group.prompt_token_ids,
        completion_token_ids=tuple(group.completion_token_ids[index] for index in indices),
        logprobs_rollout=tuple(group.logprobs_rollout[index] for index in indices),
        advantages=tuple(group.advantages[index] for index in indices),
    )
