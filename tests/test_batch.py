"""A packed group means the same as its completions one by one: who sees whom, values, gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dig_rl.algo.batch import (
    TrainingGroup,
    make_minibatches,
    pack_group,
    shard_groups,
    split_by_tokens,
    training_group,
    tree_mask,
)
from dig_rl.config import Config, load_config
from dig_rl.errors import PolicyError
from dig_rl.policy.load import BAN_BIAS, PolicyFrontend, load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.types import Completion, Example, RolloutGroup, SampledGroup, Score


def make_pair(folder: Path, size: tuple[int, int], seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    paths = []
    for name in ("a", "b"):
        path = folder / f"{size[0]}x{size[1]}-{seed}-{name}.png"
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return Example(f"pair-{seed}", paths[0], paths[1], size, ((1.0, 1.0, 9.0, 9.0),), ("color",), "train")


def make_group(frontend: PolicyFrontend, example: Example, lengths: list[int], seed: int = 0) -> TrainingGroup:
    rng = np.random.default_rng(seed)
    allowed = [t for t in range(len(frontend.processor.tokenizer)) if t not in frontend.banned_token_ids]
    completions = tuple(tuple(int(t) for t in rng.choice(allowed, length)) for length in lengths)
    prompt = tuple(frontend.encode(example)["input_ids"][0].tolist())
    rollout = tuple((-1.0,) * length for length in lengths)
    return TrainingGroup(example, prompt, completions, rollout, tuple(rng.normal(size=len(lengths)).tolist()))


@pytest.fixture(scope="module")
def config(random_policy: Path) -> Config:
    return load_config([], [f'policy.path="{random_policy}"', "rollout.temperature=0.7"])


@pytest.fixture(scope="module")
def frontend(config: Config) -> PolicyFrontend:
    return load_frontend(config.policy, "union")


@pytest.fixture(scope="module")
def scorer(config: Config, frontend: PolicyFrontend) -> PolicyScorer:
    return PolicyScorer(load_model(config.policy), frontend, config)


def separate_logprobs(scorer: PolicyScorer, frontend: PolicyFrontend, group: TrainingGroup, t: float) -> torch.Tensor:
    """Each completion in a forward pass of its own, through transformers' ordinary call."""
    rows = []
    for completion in group.completion_token_ids:
        encoded = frontend.encode(group.example)
        num_prompt = encoded["input_ids"].shape[1]
        tail = torch.tensor([completion])
        encoded["input_ids"] = torch.cat([encoded["input_ids"], tail], dim=1)
        encoded["attention_mask"] = torch.ones_like(encoded["input_ids"])
        encoded["mm_token_type_ids"] = torch.cat([encoded["mm_token_type_ids"], torch.zeros_like(tail)], dim=1)
        logits = scorer.model(**encoded, use_cache=False).logits[0, num_prompt - 1 : -1].float()
        logits[:, list(frontend.banned_token_ids)] += BAN_BIAS
        rows.append(torch.log_softmax(logits / t, dim=-1)[torch.arange(len(completion)), tail[0]])
    return torch.cat(rows)


def test_tree_mask_of_two_prompt_tokens_and_two_completions() -> None:
    segment = torch.tensor([-1, -1, 0, 0, 1])
    offset = torch.tensor([0, 1, 0, 1, 0])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second completion sees the prompt and itself, not its sibling
    ]
    assert tree_mask(segment, offset)[0, 0].int().tolist() == expected


def test_packing_says_where_each_token_is_predicted() -> None:
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    group = TrainingGroup(example, (7, 8, 9), ((1, 2), (3,)), ((-0.1, -0.2), (-0.3,)), (1.0, -1.0))
    packed = pack_group(group)
    assert packed.token_ids_L.tolist() == [7, 8, 9, 1, 2, 3]
    assert packed.predictor_N.tolist() == [2, 3, 2]
    assert packed.target_N.tolist() == [1, 2, 3]
    assert packed.advantage_N.tolist() == [1.0, 1.0, -1.0]
    assert packed.token_weight_N.tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("size", "lengths"),
    [((96, 64), [5, 12, 1, 20]), ((64, 64), [1]), ((48, 80), [3] * 16), ((96, 64), [40, 1])],
)
def test_packed_values_and_gradients_equal_separate_ones(
    scorer: PolicyScorer, frontend: PolicyFrontend, tmp_path: Path, size: tuple[int, int], lengths: list[int]
) -> None:
    group = make_group(frontend, make_pair(tmp_path, size), lengths)
    packed = pack_group(group)
    weight = packed.token_weight_N * packed.advantage_N
    gradients = []
    values = []
    for compute in (lambda: scorer(packed).logprobs_N, lambda: separate_logprobs(scorer, frontend, group, 0.7)):
        scorer.zero_grad()
        logprobs = compute()
        (logprobs * weight).sum().backward()
        values.append(logprobs.detach())
        gradients.append({n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None})
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    # What rounding leaves of a gradient that is 0 in exact arithmetic is compared with the largest of all.
    largest = max(float(g.abs().max()) for g in gradients[1].values())
    for name, gradient in gradients[1].items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((gradients[0][name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_splitting_by_tokens_changes_no_value(scorer: PolicyScorer, frontend: PolicyFrontend, tmp_path: Path) -> None:
    group = make_group(frontend, make_pair(tmp_path, (96, 64)), [5, 12, 1, 20, 8])
    parts = list(split_by_tokens(group, len(group.prompt_token_ids) + 21))
    assert [[len(c) for c in part.completion_token_ids] for part in parts] == [[5, 12, 1], [20], [8]]
    with torch.no_grad():
        whole = scorer(pack_group(group)).logprobs_N
        pieces = torch.cat([scorer(pack_group(part)).logprobs_N for part in parts])
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=0)


def test_a_completion_over_the_budget_still_gets_its_own_pass() -> None:
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    group = TrainingGroup(example, (7,), ((1,) * 50, (2,)), ((-1.0,) * 50, (-1.0,)), (1.0, -1.0))
    assert [len(part.completion_token_ids[0]) for part in split_by_tokens(group, 10)] == [50, 1]


def test_shards_balance_tokens_and_lose_nothing() -> None:
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    groups = [TrainingGroup(example, (7,), ((1,) * n,), ((-1.0,) * n,), (0.0,)) for n in (9, 1, 5, 4, 1)]
    shards = shard_groups(groups, 2)
    assert sorted(g.num_tokens for shard in shards for g in shard) == [2, 2, 5, 6, 10]
    assert abs(sum(g.num_tokens for g in shards[0]) - sum(g.num_tokens for g in shards[1])) <= 1


def tiny_group(lengths: list[int]) -> TrainingGroup:
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    rows = tuple((1,) * length for length in lengths)
    return TrainingGroup(example, (7, 7), rows, tuple((-1.0,) * length for length in lengths), (0.0,) * len(rows))


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


def test_a_sampler_that_saw_another_prompt_stops_the_learner(
    scorer: PolicyScorer, frontend: PolicyFrontend, tmp_path: Path
) -> None:
    group = make_group(frontend, make_pair(tmp_path, (96, 64)), [3])
    other = replace(group, prompt_token_ids=group.prompt_token_ids[:-1])
    with pytest.raises(PolicyError, match=r"pair-0: .* one resize rule"):
        scorer(pack_group(other))
