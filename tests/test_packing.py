"""Packed groups mean the same as their completions one by one: who sees whom, values, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from dig_rl.algo.batch import TrainingGroup
from dig_rl.algo.packing import BLOCK_TOKENS, micro_batches, pack, split_by_tokens, tree_block_mask, tree_mask
from dig_rl.config import Config, load_config
from dig_rl.errors import PolicyError
from dig_rl.policy.load import BAN_BIAS, PolicyFrontend, load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.types import Example
from tests.groups import make_group, make_pair, tiny_group

Compute = Callable[[PolicyScorer, PolicyFrontend, list[TrainingGroup]], torch.Tensor]
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def config(random_policy: Path) -> Config:
    return load_config([], [f'policy.path="{random_policy}"', f"rollout.temperature={TEMPERATURE}"])


@pytest.fixture(scope="module")
def frontend(config: Config) -> PolicyFrontend:
    return load_frontend(config.policy, "union")


@pytest.fixture(scope="module")
def scorer(config: Config, frontend: PolicyFrontend) -> PolicyScorer:
    return PolicyScorer(load_model(config.policy), frontend, config)


@pytest.fixture(scope="module")
def groups(frontend: PolicyFrontend, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    """Images of different sizes, 1 to 16 completions, some of one token."""
    folder = tmp_path_factory.mktemp("pairs")
    made = [((96, 64), [5, 12, 1, 20]), ((64, 64), [1]), ((48, 80), [3] * 16), ((96, 64), [40, 1])]
    return [
        make_group(frontend, make_pair(folder, size, seed), lengths, seed) for seed, (size, lengths) in enumerate(made)
    ]


def one_by_one(scorer: PolicyScorer, frontend: PolicyFrontend, groups: list[TrainingGroup]) -> torch.Tensor:
    """Each completion in a forward pass of its own, through transformers' ordinary call."""
    rows = []
    for group in groups:
        for completion in group.completion_token_ids:
            encoded = frontend.encode(group.example)
            num_prompt = encoded["input_ids"].shape[1]
            tail = torch.tensor([completion])
            encoded["input_ids"] = torch.cat([encoded["input_ids"], tail], dim=1)
            encoded["attention_mask"] = torch.ones_like(encoded["input_ids"])
            encoded["mm_token_type_ids"] = torch.cat([encoded["mm_token_type_ids"], torch.zeros_like(tail)], dim=1)
            logits = scorer.model(**encoded, use_cache=False).logits[0, num_prompt - 1 : -1].float()
            logits[:, list(frontend.banned_token_ids)] += BAN_BIAS
            logprobs = torch.log_softmax(logits / TEMPERATURE, dim=-1)
            rows.append(logprobs[torch.arange(len(completion)), tail[0]])
    return torch.cat(rows)


def shared_prefix(scorer: PolicyScorer, _: PolicyFrontend, groups: list[TrainingGroup]) -> torch.Tensor:
    packed = [pack([group]) for group in groups]
    return torch.cat([scorer(one, scorer.encode(one)).logprobs_N for one in packed])


def rows_of_a_batch(scorer: PolicyScorer, _: PolicyFrontend, groups: list[TrainingGroup]) -> torch.Tensor:
    packed = pack(groups)
    return scorer(packed, scorer.encode(packed)).logprobs_N


def all_in_one_row(scorer: PolicyScorer, _: PolicyFrontend, groups: list[TrainingGroup]) -> torch.Tensor:
    packed = pack(groups, one_row=True)
    return scorer(packed, scorer.encode(packed)).logprobs_N


def repeated_prefix(scorer: PolicyScorer, _: PolicyFrontend, groups: list[TrainingGroup]) -> torch.Tensor:
    packed = pack([part for group in groups for part in split_by_tokens(group, 0)])
    return scorer(packed, scorer.encode(packed)).logprobs_N


@pytest.mark.parametrize("compute", [shared_prefix, rows_of_a_batch, all_in_one_row, repeated_prefix])
def test_values_and_gradients_equal_those_of_separate_passes(
    scorer: PolicyScorer, frontend: PolicyFrontend, groups: list[TrainingGroup], compute: Compute
) -> None:
    packed = pack(groups)
    weight = packed.token_weight_N * packed.advantage_N
    values, gradients = [], []
    for way in (compute, one_by_one):
        scorer.zero_grad()
        logprobs = way(scorer, frontend, groups)
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


def test_tree_mask_of_two_prompt_tokens_two_completions_and_padding() -> None:
    two, one = tiny_group([2, 1]), tiny_group([1])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second completion sees the prompt and itself, not its sibling
    ]
    short = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],  # padding sees padding alone, and is seen by nothing else
        [0, 0, 0, 1, 1],
    ]
    assert tree_mask(pack([two, one]))[:, 0].int().tolist() == [expected, short]


def test_trees_of_one_row_do_not_see_each_other() -> None:
    mask = tree_mask(pack([tiny_group([2, 1]), tiny_group([1])], one_row=True))[0, 0]
    assert mask.shape == (BLOCK_TOKENS, BLOCK_TOKENS)
    assert not mask[:5, 5:].any() and not mask[5:, :5].any()
    assert mask[5:8, 5:8].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_block_mask_is_the_dense_mask(lengths: list[list[int]]) -> None:
    packed = pack([tiny_group(row) for row in lengths], one_row=True)
    block_mask = tree_block_mask(packed, torch.device("cpu"))
    length = packed.token_ids_BL.shape[1]
    dense = create_mask(block_mask.mask_mod, 1, 1, length, length, device="cpu")
    torch.testing.assert_close(dense, tree_mask(packed))
    blocks = dense[0, 0].unfold(0, BLOCK_TOKENS, BLOCK_TOKENS).unfold(1, BLOCK_TOKENS, BLOCK_TOKENS).any(-1).any(-1)
    assert (block_mask.to_dense()[0, 0].bool() == blocks).all()  # blocks left out are those that nobody looks into


def test_flex_attention_gives_the_values_of_the_dense_mask(
    config: Config, frontend: PolicyFrontend, scorer: PolicyScorer, groups: list[TrainingGroup]
) -> None:
    """Values only, uncompiled: on CPUs FlexAttention has no backward pass, and its compiler refuses such masks."""
    flex = PolicyScorer(load_model(config.policy, flex_attention=True), frontend, config)
    packed = pack(groups[:2], one_row=True)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = scorer(packed, scorer.encode(packed)).logprobs_N
        found = flex(packed, flex.encode(packed)).logprobs_N
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_packing_says_where_each_token_is_predicted() -> None:
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    first = TrainingGroup(example, (7, 8, 9), ((1, 2), (3,)), ((-0.1, -0.2), (-0.3,)), (1.0, -1.0))
    second = TrainingGroup(example, (7, 8), ((4,),), ((-0.4,),), (0.5,))
    packed = pack([first, second])
    assert packed.token_ids_BL.tolist() == [[7, 8, 9, 1, 2, 3], [7, 8, 4, 0, 0, 0]]
    assert packed.predictor_N.tolist() == [2, 3, 2, 7]
    assert packed.target_N.tolist() == [1, 2, 3, 4]
    assert packed.completion_N.tolist() == [0, 0, 1, 2]
    assert packed.advantage_N.tolist() == [1.0, 1.0, -1.0, 0.5]
    assert packed.token_weight_N.tolist() == [0.5, 0.5, 1.0, 1.0]
    in_one_row = pack([first, second], one_row=True)
    assert in_one_row.token_ids_BL[0, :9].tolist() == [7, 8, 9, 1, 2, 3, 7, 8, 4]
    assert in_one_row.predictor_N.tolist() == [2, 3, 2, 7]


def test_a_completion_over_the_budget_still_gets_its_own_pass() -> None:
    group = tiny_group([50, 1])
    assert [part.completion_token_ids for part in split_by_tokens(group, 10)] == [((1,) * 50,), ((1,),)]


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), max_size=6),
    st.integers(1, 120),
    st.booleans(),
    st.booleans(),
)
def test_micro_batches_keep_the_budget_and_lose_nothing(
    lengths: list[list[int]], max_tokens: int, share: bool, one_row: bool
) -> None:
    groups = [
        replace(tiny_group(row), advantages=tuple(1000.0 * index + at for at in range(len(row))))
        for index, row in enumerate(lengths)
    ]
    batches = micro_batches(groups, max_tokens=max_tokens, shared_prefix=share, one_row=one_row)
    dealt = [advantage for batch in batches for part in batch for advantage in part.advantages]
    assert sorted(dealt) == sorted(advantage for group in groups for advantage in group.advantages)
    for batch in batches:
        assert share or all(len(part.completion_token_ids) == 1 for part in batch)
        sizes = [part.num_tokens for part in batch]
        cost = sum(sizes) if one_row else len(sizes) * max(sizes)
        assert cost <= max_tokens or (len(batch) == 1 and len(batch[0].completion_token_ids) == 1)


def test_groups_of_like_length_share_a_pass() -> None:
    groups = [tiny_group([length]) for length in (10, 2, 9, 1)]  # with 2 prompt tokens: 12, 4, 11, 3
    batches = micro_batches(groups, max_tokens=24, shared_prefix=True, one_row=False)
    assert [[part.num_tokens for part in batch] for batch in batches] == [[12, 11], [4, 3]]


def test_a_completion_with_vision_tokens_breaks_nothing_and_changes_no_other(
    scorer: PolicyScorer, frontend: PolicyFrontend, groups: list[TrainingGroup]
) -> None:
    group = groups[0]
    rows = group.completion_token_ids
    hostile = (*rows[0][:2], *frontend.vision_token_ids, rows[0][-1])
    rollout = ((-1.0,) * len(hostile), *group.logprobs_rollout[1:])
    attacked = replace(group, completion_token_ids=(hostile, *rows[1:]), logprobs_rollout=rollout)
    scorer.zero_grad()
    found = shared_prefix(scorer, frontend, [attacked])
    found.sum().backward()
    assert found.isfinite().all() and (found[2 : 2 + len(frontend.vision_token_ids)] < -50).all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in scorer.parameters())
    expected = shared_prefix(scorer, frontend, [group])
    torch.testing.assert_close(found[len(hostile) :], expected[len(rows[0]) :], atol=1e-5, rtol=0)


def test_a_sampler_that_saw_another_prompt_stops_the_learner(
    scorer: PolicyScorer, frontend: PolicyFrontend, tmp_path: Path
) -> None:
    group = make_group(frontend, make_pair(tmp_path, (96, 64)), [3])
    other = replace(group, prompt_token_ids=group.prompt_token_ids[:-1])
    with pytest.raises(PolicyError, match=r"pair-0: .* one resize rule"):
        scorer.encode(pack([other]))
