"""Weights by name with a checksum each: what the learner has is compared with what others say that they hold.

Names are those of parameters in transformers; a tied weight counts once, under its first name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from dig_rl.policy.checksums import tensors_sha256

_NUM_NAMED = 3
"""Weights that a message names before it counts the rest."""


class WeightRecord(NamedTuple):
    """What one weight is known by."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    """Of its bytes; zeros of both signs are the same."""


@dataclass(frozen=True)
class HeldWeights:
    """What an engine holds."""

    records: dict[str, WeightRecord] = field(default_factory=dict)
    """By the learner's names; engine parameters that none of these stands for have vLLM's own."""
    unread: str | None = None
    """Why weights cannot be compared; None if all could be read."""


def record_of(weight: torch.Tensor) -> WeightRecord:
    """The record of a weight on any device."""
    dtype = str(weight.dtype).removeprefix("torch.")
    return WeightRecord(dtype, tuple(weight.shape), tensors_sha256(weight.detach().cpu() + 0.0))


def records_of(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, WeightRecord]:
    """Records by name; of weights that come one after the other, one is in memory."""
    return {name: record_of(weight) for name, weight in weights}


def differences(expected: Mapping[str, WeightRecord], found: Mapping[str, WeightRecord]) -> str | None:
    """One clause that names what is missing, not expected or different; None if all is the same."""
    shared = sorted(expected.keys() & found.keys())
    reshaped = [
        f"{name} ({_form(found[name])} for {_form(expected[name])})"
        for name in shared
        if _form(found[name]) != _form(expected[name])
    ]
    changed = [
        name
        for name in shared
        if _form(found[name]) == _form(expected[name]) and found[name].sha256 != expected[name].sha256
    ]
    parts = [*_name_clauses(expected, found)]
    parts += [f"{len(reshaped)} of another shape or type: {_listed(reshaped)}"] if reshaped else []
    parts += [f"{len(changed)} with other values: {_listed(changed)}"] if changed else []
    return f"of {len(expected)} weights, {'; '.join(parts)}" if parts else None


def name_differences(expected: Collection[str], found: Collection[str]) -> str | None:
    """One clause that names what is missing or not expected; None if the names are the same."""
    parts = _name_clauses(expected, found)
    return f"of {len(expected)} weights, {'; '.join(parts)}" if parts else None


def _name_clauses(expected: Collection[str], found: Collection[str]) -> list[str]:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    return [
        f"{len(names)} {what}: {_listed(names)}"
        for names, what in ((missing, "missing"), (unknown, "not expected"))
        if names
    ]


def _form(record: WeightRecord) -> str:
    return f"{record.dtype} {list(record.shape)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
