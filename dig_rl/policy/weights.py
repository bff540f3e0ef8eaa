"""Are a model's weights numbers?"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def examine_weights(named: Iterable[tuple[str, torch.Tensor]], rank: int = 0) -> tuple[list[str], tuple[float, str]]:
    """Look for values that are NaN or infinite.

    Args:
        named: weights by name; under ZeRO-3 this rank's part of each is looked at.
        rank: of this process among those that share a weight under ZeRO-3.

    Returns:
        One clause for each weight that has such values, and the largest size of a value in the others with the name of
        its weight.
    """
    broken: list[str] = []
    largest = (0.0, "none")
    for name, weight in named:
        values = _own_values(weight, rank)
        if not values.numel() or not values.is_floating_point():
            continue
        low, high = (float(bound) for bound in values.aminmax())  # NaN if any value is
        size = max(abs(low), abs(high))
        if size < float("inf"):
            largest = max(largest, (size, name))
        else:
            bad = int((~values.isfinite()).sum())
            broken.append(f"{name} ({bad} of {values.numel()} values)")
    return broken, largest


def _own_values(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """What this rank holds; of ZeRO-3's equal parts the last reach beyond the weight, into memory as it was found."""
    part = getattr(weight, "ds_tensor", None)
    if part is None:
        return weight.detach()
    return part.detach()[: max(0, weight.ds_numel - rank * part.ds_numel)]
