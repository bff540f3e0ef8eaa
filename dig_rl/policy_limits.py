"""What a policy folder says about its limits, so that settings beyond them end a run before engines load."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from dig_rl.config import Config
from dig_rl.durable import read_json_object
from dig_rl.errors import ConfigError

_REMEDY = "restore the policy folder, or make it again"
_BLOCK_TOKENS = 32
"""vLLM hands out its cache in blocks; `dig_rl/vllm_options.py` sets their size on CPUs."""


def check_policy_limits(config: Config) -> None:
    """Refuse a context that the policy or the key-value cache has no room for, and areas the wrong way round.

    A policy of the model hub, or none at all, is left to the engines.

    Raises:
        ConfigError: which setting, what the policy has, what to write.
    """
    folder = Path(config.policy.path)
    model = read_json_object(folder / "config.json", _REMEDY)
    if model is None:
        return
    text = model.get("text_config", model)
    _check_context(config, text, folder)
    _check_cache(config, text)
    _check_areas(config, folder)


def _check_context(config: Config, text: dict[str, Any], folder: Path) -> None:
    tokenizer = read_json_object(folder / "tokenizer_config.json", _REMEDY) or {}
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    scaled = isinstance(rope, dict) and "factor" in rope  # vLLM multiplies by it, for some kinds of scaling
    longest = min(text.get("max_position_embeddings", math.inf), tokenizer.get("model_max_length", math.inf))
    wanted = config.rollout.max_model_len
    if wanted > longest and not scaled and "VLLM_ALLOW_LONG_MAX_MODEL_LEN" not in os.environ:
        raise ConfigError(
            f"rollout.max_model_len: policy {folder} has positions for {longest} tokens (max_position_embeddings of "
            f"its config.json, or model_max_length of its tokenizer), found {wanted}; set it to {longest} or less"
        )


def _check_cache(config: Config, text: dict[str, Any]) -> None:
    rollout = config.rollout
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads")
    width = text.get("head_dim") or text.get("hidden_size", 0) // (text.get("num_attention_heads") or 1)
    layers = text.get("num_hidden_layers")
    chosen = {"kv_cache_memory_bytes", "kv_cache_dtype", "block_size", "hf_overrides"} & rollout.vllm.keys()
    if rollout.num_gpus or chosen or not (heads and width and layers):
        return
    num_tokens = math.ceil(rollout.max_model_len / _BLOCK_TOKENS) * _BLOCK_TOKENS
    needed_gib = 2 * layers * heads * width * {"float32": 4, "bfloat16": 2}[config.policy.dtype] * num_tokens / 2**30
    if needed_gib > rollout.kv_cache_gib:
        raise ConfigError(
            f"rollout.kv_cache_gib: one answer in a context of rollout.max_model_len = {rollout.max_model_len} tokens "
            f"takes {needed_gib:.1f} GiB, found {rollout.kv_cache_gib}; set it to {math.ceil(needed_gib)} or more, "
            "or max_model_len lower"
        )


def _check_areas(config: Config, folder: Path) -> None:
    processor = _image_processor(folder)
    own = processor.get("size") or {}
    low = config.policy.min_pixels or own.get("shortest_edge")
    high = config.policy.max_pixels or own.get("longest_edge")
    if low is not None and high is not None and low > high:
        raise ConfigError(
            f"policy.min_pixels and max_pixels: the smallest area of a resized image is {low}, the largest {high} "
            f"(what is left out comes from {folder}); set both"
        )
    side = processor.get("patch_size", 0) * processor.get("merge_size", 0)
    if high is not None and high < side**2:
        raise ConfigError(
            f"policy.max_pixels: one image token of {folder} covers {side}x{side} = {side**2} px, found {high}; "
            f"set it to {side**2} or more"
        )


def _image_processor(folder: Path) -> dict[str, Any]:
    """Its settings, as far as they say how large a resized image is; empty if they do not."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        values = read_json_object(folder / name, _REMEDY) or {}
        processor = values.get("image_processor", values)
        if {"shortest_edge", "longest_edge"} <= (processor.get("size") or {}).keys():
            return processor
    return {}
