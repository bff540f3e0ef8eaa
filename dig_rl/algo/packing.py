"""Groups of one forward pass, each prompt with both images once, its completions side by side behind it.

A completion sees the prompt and itself, never its siblings (a tree mask), and its positions start right after the
prompt, so every log-probability equals that of the completion on its own. The long prompt is computed once for G
completions instead of G times. A batch holds several such trees: one a row, padded to the longest (dense masks cost the
square of a row), or all in one row (block-sparse masks leave out what no token sees).

Shapes: T trees, B rows, L tokens a row, P prompt tokens of a tree, N completion tokens of all trees together.

Source: the idea for text models is Prefix Grouper (arXiv 2506.05433); here with M-RoPE positions and image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dig_rl.algo.batch import TrainingGroup, select_completions

PADDING_TOKEN_ID = 0
"""Seen by no token that counts."""

BLOCK_TOKENS = 128
"""Side of a block of the sparse mask; a row is padded to a multiple, so that few lengths are compiled for."""


@dataclass(frozen=True)
class PackedBatch:
    """Groups laid out for one forward pass."""

    groups: tuple[TrainingGroup, ...]
    """T groups or parts of groups; their prompts stand in this order in the rows."""
    token_ids_BL: torch.Tensor
    """int64 `[B, L]`."""
    tree_BL: torch.Tensor
    """int64 `[B, L]`: index of the token's group, -1 for padding."""
    segment_BL: torch.Tensor
    """int64 `[B, L]`: -1 in a prompt, else the index of the completion within its group."""
    offset_BL: torch.Tensor
    """int64 `[B, L]`: position within the prompt or within the completion."""
    predictor_N: torch.Tensor
    """int64 `[N]`: where in the flattened `[B * L]` the hidden state that predicts each completion token stands."""
    target_N: torch.Tensor
    """int64 `[N]`: the completion tokens, group by group."""
    completion_N: torch.Tensor
    """int64 `[N]`: which completion of the batch each belongs to."""
    logprobs_rollout_N: torch.Tensor
    """float32 `[N]`."""
    advantage_N: torch.Tensor
    """float32 `[N]`: each token's completion's advantage."""
    token_weight_N: torch.Tensor
    """float32 `[N]`: 1 / length of the token's completion, so that a weighted sum is a sum of sequence means."""


def split_by_tokens(group: TrainingGroup, max_tokens: int) -> Iterator[TrainingGroup]:
    """Cut a group over the token budget into parts that repeat the prompt, each with one completion or more."""
    part: list[int] = []
    used = len(group.prompt_token_ids)
    for index, completion in enumerate(group.completion_token_ids):
        if part and used + len(completion) > max_tokens:
            yield select_completions(group, part)
            part, used = [], len(group.prompt_token_ids)
        part.append(index)
        used += len(completion)
    yield select_completions(group, part)


def micro_batches(
    groups: Sequence[TrainingGroup], *, max_tokens: int, shared_prefix: bool, one_row: bool
) -> list[list[TrainingGroup]]:
    """Deal groups to forward passes under a token budget, longest first, so that little is padding.

    Args:
        groups: of one rank and one optimiser step.
        max_tokens: B * L of one pass, padding included; a single completion with its prompt may exceed it.
        shared_prefix: whether the completions of a group share its prompt; otherwise each repeats it.
        one_row: whether the groups of a pass stand in one row.
    """
    budget = max_tokens if shared_prefix else 0  # each completion is over a budget of 0: a part of its own
    parts = [part for group in groups for part in split_by_tokens(group, budget)]
    batches: list[list[TrainingGroup]] = []
    used = 0
    for part in sorted(parts, key=lambda part: -part.num_tokens):
        cost = part.num_tokens if one_row or not batches else batches[-1][0].num_tokens
        if batches and used + cost <= max_tokens:
            batches[-1].append(part)
            used += cost
        else:
            batches.append([part])
            used = part.num_tokens
    return batches


def pack(groups: Sequence[TrainingGroup], *, one_row: bool = False) -> PackedBatch:
    """Lay groups out, one a row, or all in one row whose length is a multiple of `BLOCK_TOKENS`."""
    rows = [list(groups)] if one_row else [[group] for group in groups]
    length = max(sum(group.num_tokens for group in row) for row in rows)
    if one_row:
        length = -(-length // BLOCK_TOKENS) * BLOCK_TOKENS
    layout = torch.full((len(rows), length, 4), -1)
    layout[..., 0] = PADDING_TOKEN_ID
    layout[..., 3] = torch.arange(length)
    predictor: list[int] = []
    tree = 0
    for row_index, row in enumerate(rows):
        column = 0
        for group in row:
            layout[row_index, column : column + group.num_tokens] = torch.tensor(_lay_out(group, tree))
            predictor += _predictors(group, row_index * length + column)
            column += group.num_tokens
            tree += 1
    completions = [completion for group in groups for completion in group.completion_token_ids]
    lengths = torch.tensor([len(completion) for completion in completions])
    completion_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    advantages = [advantage for group in groups for advantage in group.advantages]
    rollout = [value for group in groups for row in group.logprobs_rollout for value in row]
    return PackedBatch(
        groups=tuple(groups),
        token_ids_BL=layout[..., 0],
        tree_BL=layout[..., 1],
        segment_BL=layout[..., 2],
        offset_BL=layout[..., 3],
        predictor_N=torch.tensor(predictor),
        target_N=torch.tensor([token for completion in completions for token in completion]),
        completion_N=completion_N,
        logprobs_rollout_N=torch.tensor(rollout),
        advantage_N=torch.tensor(advantages, dtype=torch.float32)[completion_N],
        token_weight_N=(1.0 / lengths.float())[completion_N],
    )


def tree_mask(packed: PackedBatch) -> torch.Tensor:
    """Who may look at whom: earlier prompt tokens for a whole tree, and earlier tokens of the same completion.

    Returns:
        bool `[B, 1, L, L]`, True where the row's token sees the column's. Padding sees padding alone.
    """
    tree, segment, offset = packed.tree_BL, packed.segment_BL, packed.offset_BL
    return _sees(
        (tree[:, :, None], segment[:, :, None], offset[:, :, None]),
        (tree[:, None, :], segment[:, None, :], offset[:, None, :]),
    )[:, None]


def tree_block_mask(packed: PackedBatch, device: torch.device) -> BlockMask:
    """The same for FlexAttention, which leaves out blocks in which nobody sees anybody."""
    tree, segment, offset = (part.to(device) for part in (packed.tree_BL, packed.segment_BL, packed.offset_BL))

    def sees(b: torch.Tensor, _head: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return _sees((tree[b, q], segment[b, q], offset[b, q]), (tree[b, kv], segment[b, kv], offset[b, kv]))

    num_rows, length = tree.shape
    return create_block_mask(sees, num_rows, None, length, length, device=str(device), BLOCK_SIZE=BLOCK_TOKENS)


def packed_positions(prompt_positions: Sequence[torch.Tensor], packed: PackedBatch) -> torch.Tensor:
    """M-RoPE positions of a packed batch.

    Args:
        prompt_positions: for each group `[3, P]`, temporal, height and width positions of its prompt.
        packed: the batch.

    Returns:
        int64 `[3, B, L]`; each completion continues after its prompt's largest position, alike on the three axes.
    """
    positions_3BL = packed.offset_BL.expand(3, -1, -1).clone()
    in_prompt_BL = packed.segment_BL == -1
    for index, of_prompt_3P in enumerate(prompt_positions):
        of_tree_BL = packed.tree_BL == index
        positions_3BL[:, of_tree_BL & in_prompt_BL] = of_prompt_3P
        positions_3BL[:, of_tree_BL & ~in_prompt_BL] += int(of_prompt_3P.max()) + 1
    return positions_3BL


def _lay_out(group: TrainingGroup, tree: int) -> list[tuple[int, int, int, int]]:
    rows = [(-1, group.prompt_token_ids), *enumerate(group.completion_token_ids)]
    return [(token, tree, segment, offset) for segment, tokens in rows for offset, token in enumerate(tokens)]


def _predictors(group: TrainingGroup, start: int) -> list[int]:
    """Where the state that predicts each completion token stands: the first one's is the last prompt token's."""
    last_of_prompt = start + len(group.prompt_token_ids) - 1
    predictors, column = [], last_of_prompt + 1
    for completion in group.completion_token_ids:
        predictors += [last_of_prompt, *range(column, column + len(completion) - 1)]
        column += len(completion)
    return predictors


def _sees(query: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...]) -> torch.Tensor:
    (tree_q, segment_q, offset_q), (tree_k, segment_k, offset_k) = query, key
    in_own_segment = (segment_q == segment_k) & (offset_q >= offset_k)
    into_prompt = (segment_k == -1) & (segment_q != -1)
    return (tree_q == tree_k) & (in_own_segment | into_prompt)
