"""What is reported of an update, summed over passes and ranks and divided once at the end."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from dig_rl.algo.loss import LossTerms

_NUM_TOKENS, _LOSS = "tokens", "learner/loss"


class UpdateStatistics:
    """Sums over the completion tokens that one rank has learned from."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, terms: LossTerms, entropy_N: torch.Tensor, loss: float) -> None:
        """Count one pass.

        Args:
            terms: of the pass.
            entropy_N: nats.
            loss: the pass's share of its mini-batch's loss.
        """
        importance = terms.importance
        sums = {
            _NUM_TOKENS: float(len(terms.loss_N)),
            _LOSS: loss,
            "learner/entropy": float(entropy_N.sum()),
            "learner/clip_low_frac": float(terms.clipped_low_N.sum()),
            "learner/clip_high_frac": float(terms.clipped_high_N.sum()),
            "learner/clip_dual_frac": float(terms.clipped_dual_N.sum()),
            "rollout/mismatch_kl": float(terms.mismatch_kl_N.sum()),
            "rollout/importance_mean": float(importance.token_N.sum()),
            "rollout/importance_cut_frac": float(importance.cut_N.sum()),
        }
        if terms.kl_N is not None:
            sums["learner/kl"] = float(terms.kl_N.sum())
        extremes = {
            "learner/ratio_max": float(terms.ratio_N.max()),
            "rollout/importance_max": float(importance.token_N.max()),
            "rollout/sequence_importance_max": float(importance.sequence_N.max()),
            "rollout/sequence_importance_min": float(importance.sequence_N.min()),
        }
        self.sums = _merge([self.sums, sums | extremes])


def reduce_statistics(ranks: Iterable[dict[str, float]], num_updates: int) -> dict[str, float]:
    """Means over the completion tokens of all ranks; the loss is a mean over updates.

    Args:
        ranks: `UpdateStatistics.sums` of each rank; empty for a rank without groups.
        num_updates: optimiser steps that were made.

    Returns:
        Keys as in `dig_rl.metrics`.
    """
    merged = _merge(ranks)
    num_tokens = merged.pop(_NUM_TOKENS)
    return {
        key: value if _is_extreme(key) else value / (num_updates if key == _LOSS else num_tokens)
        for key, value in merged.items()
    }


# Python's own max and min lose a NaN that comes second.
_EXTREMES: dict[str, Callable[[float, float], Any]] = {"_max": np.maximum, "_min": np.minimum}


def _merge(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            combine = _EXTREMES.get(key[-4:], operator.add)
            merged[key] = float(combine(merged[key], value)) if key in merged else value
    return merged


def _is_extreme(key: str) -> bool:
    return key.endswith(("_max", "_min"))
