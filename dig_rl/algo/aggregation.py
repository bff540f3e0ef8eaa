"""From tokens to completions, and from completions to one number: what a token's loss is divided by.

Shapes: N completion tokens.
"""

from __future__ import annotations

import torch

from dig_rl.config import Loss


def completion_means(values_N: torch.Tensor, completion_N: torch.Tensor) -> torch.Tensor:
    """`[N]`: for each token the mean of `values_N` over its completion.

    Args:
        values_N: one value a token.
        completion_N: int64 index of each token's completion.
    """
    counts = torch.bincount(completion_N)
    sums = values_N.new_zeros(len(counts)).index_add(0, completion_N, values_N)
    return (sums / counts)[completion_N]


def aggregate(
    loss_N: torch.Tensor,
    sequence_weight_N: torch.Tensor,
    loss: Loss,
    *,
    num_completions: int,
    num_tokens: int,
    max_completion_tokens: int,
) -> torch.Tensor:
    """This part's share of the loss of a whole mini-batch.

        grpo, gspo  mean over completions of the mean over their tokens
        dapo        mean over all tokens
        dr_grpo     sum over tokens / (completions * max_completion_tokens)

    Args:
        loss_N: loss of each token of this part.
        sequence_weight_N: 1 / length of the token's completion.
        loss: which of the three.
        num_completions: of the whole mini-batch, all ranks together.
        num_tokens: completion tokens of the whole mini-batch, all ranks together.
        max_completion_tokens: token budget of one completion.

    Returns:
        A scalar. Shares of all parts and ranks add up to the loss.

    Source:
        grpo: DeepSeekMath (arXiv 2402.03300), equation 3. dapo: DAPO (arXiv 2503.14476), equation 12. dr_grpo:
        Dr. GRPO (arXiv 2503.20783), section 3.2 and its code, which divides by the token budget. gspo: GSPO
        (arXiv 2507.18071), equation 5.
    """
    if loss == "dapo":
        return loss_N.sum() * (1 / num_tokens)
    if loss == "dr_grpo":
        return loss_N.sum() * (1 / (num_completions * max_completion_tokens))
    return (loss_N * sequence_weight_N).sum() * (1 / num_completions)
