"""What is computed in float32 where the policy is bfloat16: sums of gradients, and logits.

A bfloat16 number has 8 significant bits. A sum in it stops growing where a summand is below 1/512 of it, and logits
around 20 stand 1/8 apart. DeepSpeed and vLLM use float32 for both when told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16"]

_FLOAT32 = ("fp32", "float32", "float", "torch.float32")
_BFLOAT16 = ("bf16", "bfloat16", "torch.bfloat16")
"""DeepSpeed's names."""

_SUMS = "learner.deepspeed.data_types.grad_accum_dtype"
_ON_REQUEST = f'or {_SUMS} = "bf16" for sums that are off by about a percent'


def sums_table(dtype: Dtype) -> dict[str, Any]:
    """What DeepSpeed is told about types: the policy's, that of sums over passes, and that of sums over ranks."""
    if dtype == "float32":
        return {}
    return {
        # With it stage 1 adds gradients up as they come; without it, what it has not cleared since the pass before.
        "bf16": {"enabled": True, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",  # otherwise finished sums are rounded to bfloat16, on one rank as well
    }


def head_overrides(dtype: Dtype) -> dict[str, Any]:
    """What vLLM is told over the policy's config: one family of models reads the outer config, another the inner."""
    head = {} if dtype == "float32" else {"head_dtype": "float32"}
    return head and head | {"text_config": head}


def check_precision(dtype: Dtype, deepspeed: Mapping[str, Any], vllm: Mapping[str, Any]) -> None:
    """Refuse tables under which engines would compute in another type, or add up wrongly or in bfloat16 unasked.

    A bfloat16 policy may ask for bfloat16 sums over passes (`grad_accum_dtype`) and, by itself, for bfloat16 between
    ranks (`communication_data_type`); a float32 policy may not.

    Args:
        dtype: compute type of the policy.
        deepspeed: `learner.deepspeed` without "auto".
        vllm: `rollout.vllm`.

    Raises:
        ValueError: which key, what was expected and found, what to write.
    """
    _check_compute_type(dtype, deepspeed, vllm)
    _check_head(dtype, vllm)
    found = _table(deepspeed, "data_types").get("grad_accum_dtype", "fp32")
    if dtype == "float32" and found not in _FLOAT32:
        raise ValueError(f'{_SUMS}: expected "fp32" with policy.dtype = float32, found {found!r}; remove it')
    if found not in (*_FLOAT32, *_BFLOAT16):
        raise ValueError(f'{_SUMS}: expected "fp32", {_ON_REQUEST}; found {found!r}')
    if dtype == "bfloat16" and found in _FLOAT32:
        _check_float32_sums(deepspeed)
    _check_exchange(dtype, deepspeed.get("communication_data_type", "fp32"))


def _check_compute_type(dtype: Dtype, deepspeed: Mapping[str, Any], vllm: Mapping[str, Any]) -> None:
    if "bfloat16" in deepspeed:
        raise ValueError("learner.deepspeed.bfloat16: DeepSpeed does not read it beside bf16, its new name; write bf16")
    on = "true" if dtype == "bfloat16" else "false"
    stated: dict[str, tuple[str, str]] = {"rollout.vllm.dtype": (dtype, str(vllm.get("dtype", dtype)))}
    for key, expected in (("bf16", on), ("fp16", "false"), ("amp", "false"), ("torch_autocast", "false")):
        found = _table(deepspeed, key).get("enabled", expected)
        stated[f"learner.deepspeed.{key}.enabled"] = (expected, str(found).lower())
    for where, (expected, found) in stated.items():
        if found != expected:
            raise ValueError(
                f"{where}: expected {expected} with policy.dtype = {dtype}, in which sampler and learner both compute, "
                f"found {found}; remove it, policy.dtype chooses float32 or bfloat16 for both"
            )


def _check_head(dtype: Dtype, vllm: Mapping[str, Any]) -> None:
    overrides = _table(vllm, "hf_overrides")
    for where, table in (("", overrides), ("text_config.", _table(overrides, "text_config"))):
        found = table.get("head_dtype", "float32")
        if found not in ("float32", "model") or (found == "model" and dtype == "bfloat16"):
            raise ValueError(
                f'rollout.vllm.hf_overrides.{where}head_dtype: expected "float32", in which the learner computes '
                f"logits as well, found {found!r}; remove it"
            )


def _check_exchange(dtype: Dtype, found: object) -> None:
    taken = ("fp32",) if dtype == "float32" else ("fp32", "bf16")
    if str(found).lower() not in taken:
        expected = " or ".join(f'"{name}"' for name in taken)
        raise ValueError(
            f"learner.deepspeed.communication_data_type: expected {expected} with policy.dtype = {dtype}, found "
            f"{found!r}; remove it"
        )


def _check_float32_sums(table: Mapping[str, Any]) -> None:
    zero, bf16 = _table(table, "zero_optimization"), _table(table, "bf16")
    stage = zero.get("stage", 1)
    if stage == 0:
        raise ValueError(
            "learner.deepspeed.zero_optimization.stage: expected 1, 2 or 3 with policy.dtype = bfloat16, found 0, with "
            f"which DeepSpeed adds gradients up in bfloat16; write stage = 1, {_ON_REQUEST}"
        )
    if bf16.get("bf16_master_weights_and_grads"):
        raise ValueError(
            "learner.deepspeed.bf16.bf16_master_weights_and_grads: expected false, found true, with which float32 sums "
            f"are rounded to bfloat16; remove it, {_ON_REQUEST}"
        )
    offloads = _table(zero, "offload_optimizer").get("device", "none") != "none"
    if stage == 1 and not offloads and not bf16.get("immediate_grad_update", True):
        raise ValueError(
            "learner.deepspeed.bf16.immediate_grad_update: expected true with ZeRO stage 1 and float32 sums, found "
            "false, with which DeepSpeed adds the gradient of a pass again after every later pass (a norm 72 times too "
            f"large after 128 passes); remove it, write zero_optimization.stage = 2, {_ON_REQUEST}"
        )


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What is under a key, if that is a table; DeepSpeed and vLLM say what is wrong with anything else."""
    value = table.get(key)
    return value if isinstance(value, Mapping) else {}
