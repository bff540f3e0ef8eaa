"""The weights that a running vLLM engine computes with, read back under the names that the learner knows them by.

vLLM fuses projections that read the same input, and on CPUs it keeps packed copies of matrices in place of them. Fused
ones are cut apart by the model's own table. A packed one is read by multiplying the identity with it, which is exact:
every other product is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from dig_rl.policy.records import HeldWeights, record_of

_ROWS = 512
"""Of the identity, in one multiplication."""


@torch.inference_mode()
def held_weights(worker: Any, names: Sequence[str], dtype: str) -> HeldWeights:
    """Read every weight back; for `collective_rpc`.

    Args:
        worker: of vLLM.
        names: weights of the learner; a tied output head among them is read as what it multiplies with.
        dtype: of the policy.
    """
    config = worker.vllm_config
    if config.model_config.dtype != getattr(torch, dtype):
        return HeldWeights(unread=f"the engine holds them as {config.model_config.dtype}, policy.dtype is {dtype}")
    if config.model_config.quantization is not None:
        return HeldWeights(unread=f"the engine holds them quantised ({config.model_config.quantization})")
    if config.parallel_config.world_size > 1:
        return HeldWeights(unread=f"the engine divides them among {config.parallel_config.world_size} devices")
    model = worker.get_model()
    records, claimed = {}, set()
    for name in names:
        place = _find(model, name)
        if place is not None:
            module_name, leaf, part = place
            module = model.get_submodule(module_name)
            records[name] = record_of(_value(module, leaf, part).to(getattr(torch, dtype)))
            claimed.add(getattr(module, leaf))
    records |= {name: record_of(value) for name, value in model.named_parameters() if value not in claimed}
    return HeldWeights(records)


def _find(model: torch.nn.Module, name: str) -> tuple[str, str, int | None] | None:
    """Module and parameter that hold a weight, and which part of these it is; None if there is no such place."""
    mapped = model.hf_to_vllm_mapper.get_rename_mapper().map_name(name)
    if mapped is None:
        return None
    module_name, _, leaf = mapped.rpartition(".")
    parent, _, last = module_name.rpartition(".")
    candidates = [(module_name, leaf, None)]
    for whole, parts in model.packed_modules_mapping.items():
        if last in parts and last != whole:
            candidates.append((f"{parent}.{whole}", leaf, parts.index(last)))
    for module, parameter, part in candidates:
        try:
            if getattr(model.get_submodule(module), parameter) is not None:
                return module, parameter, part
        except AttributeError:
            continue
    return None


def _value(module: torch.nn.Module, leaf: str, part: int | None) -> torch.Tensor:
    held = getattr(module, leaf)
    is_head = isinstance(module, ParallelLMHead)
    if (
        leaf == "weight"
        and hasattr(module, "cpu_linear")
        and (is_head or not isinstance(module, VocabParallelEmbedding))
    ):
        width = module.embedding_dim if is_head else module.input_size
        held = _multiplied(module, width, held.dtype)
    if isinstance(module, VocabParallelEmbedding):
        held = held[: module.org_vocab_size]  # without the rows that fill it up
    if part is not None:
        held = held.split(list(module.output_sizes))[part]
    return held


def _multiplied(module: Any, width: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix that a layer multiplies with, `[outputs, width]`."""
    identity = torch.eye(width, dtype=dtype)
    products = [module.quant_method.apply(module, rows) for rows in identity.split(_ROWS)]
    return torch.cat(products).t()
