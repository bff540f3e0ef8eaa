"""A rollout batch is cut into optimiser steps and shares of the ranks without losing or repeating anything."""

from __future__ import annotations

from dig_rl.algo.batch import TrainingGroup, make_minibatches, shard_groups, training_group
from dig_rl.config import load_config
from dig_rl.types import Completion, Example, RolloutGroup, SampledGroup, Score
from tests.groups import tiny_group


def test_shards_balance_tokens_and_lose_nothing() -> None:
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    groups = [TrainingGroup(example, (7,), ((1,) * n,), ((-1.0,) * n,), (0.0,)) for n in (9, 1, 5, 4, 1)]
    shards = shard_groups(groups, 2)
    assert sorted(g.num_tokens for shard in shards for g in shard) == [2, 2, 5, 6, 10]
    assert abs(sum(g.num_tokens for g in shards[0]) - sum(g.num_tokens for g in shards[1])) <= 1


def test_minibatches_share_out_every_group_once_in_order() -> None:
    groups = [tiny_group([size, 1]) for size in (9, 1, 5, 4, 3)]
    first, second = make_minibatches(groups, num_minibatches=2, num_ranks=2)
    for index, members in enumerate((groups[:2], groups[2:])):
        shared = [*first[index].groups, *second[index].groups]
        assert sorted(map(id, shared)) == sorted(map(id, members))
        for share in (first[index], second[index]):  # both ranks divide by what all have
            assert share.num_completions == 2 * len(members)
            assert share.num_tokens == sum(group.num_completion_tokens for group in members)
    assert [len(share.groups) for share in second] == [1, 2]


def test_there_are_no_more_minibatches_than_groups() -> None:
    ((first, second),) = make_minibatches([tiny_group([1]), tiny_group([2])], num_minibatches=8, num_ranks=1)
    assert (first.num_tokens, second.num_tokens) == (1, 2)


def test_truncated_completions_are_compared_with_and_not_learned_from() -> None:
    completions = tuple(
        Completion((seed,) * 3, (-0.5,) * 3, "", reason, seed) for seed, reason in enumerate(("stop", "length", "stop"))
    )
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    scores = tuple(Score(reward, {}, "ok") for reward in (0.0, 1.0, 0.5))
    group = RolloutGroup(SampledGroup(example, (7,), completions, 0, (32, 32), 0), scores, "single")
    kept = training_group(group, load_config([], ["learner.advantage=group_mean"]))
    assert kept.completion_token_ids == ((0,) * 3, (1,) * 3, (2,) * 3)
    assert kept.advantages == (-0.5, 0.5, 0.0)
    masked = training_group(
        group, load_config([], ["learner.advantage=group_mean", "learner.mask_truncated_completions=true"])
    )
    assert masked.completion_token_ids == ((0,) * 3, (2,) * 3)
    assert masked.advantages == (-0.5, 0.0)  # the mean is still that of all three
