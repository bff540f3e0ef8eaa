"""What the learner is handed: groups with advantages, cut into optimiser steps and shares of the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        """Prompt once, and all completions."""
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
    return select_completions(whole, [index for index, row in enumerate(completions) if row.finish_reason != "length"])


def select_completions(group: TrainingGroup, indices: Sequence[int]) -> TrainingGroup:
    """The same prompt with some of the completions."""
    return TrainingGroup(
        example=group.example,
        prompt_token_ids=group.prompt_token_ids,
        completion_token_ids=tuple(group.completion_token_ids[index] for index in indices),
        logprobs_rollout=tuple(group.logprobs_rollout[index] for index in indices),
        advantages=tuple(group.advantages[index] for index in indices),
    )


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
