"""Learner speed and memory at a real policy's size: `python -m launch.bench_gpu`, on a GPU.

Qwen3-VL-4B's architecture with random weights, one group of two images and G completions a step: throughput, model
FLOPs utilisation and peak memory, with the prompt shared by the group and with a prompt for every completion. Through
DeepSpeed where it is installed, else plain PyTorch, and the output says which.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from dig_rl.algo.batch import TrainingGroup
from dig_rl.algo.packing import micro_batches, pack
from dig_rl.config import Config, load_config
from dig_rl.deepspeed_table import learner_table
from dig_rl.errors import ConfigError
from dig_rl.policy.build import SmallPolicyConfig, build_processor
from dig_rl.policy.load import FLEX_ATTENTION, PolicyFrontend, load_frontend
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.prompts import instruction
from dig_rl.types import Example
from launch.terminal import end_with_message

SIZES: dict[str, dict[str, Any]] = {
    "4b": {
        "text": {
            **{"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151936},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144},
        },
        "vision": {
            **{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16},
            **{"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]},
        },
        "mrope_section": [24, 20, 20],
    },
    "tiny": {
        "text": {
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2048},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 32768},
        },
        "vision": {
            **{"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2},
            **{"num_position_embeddings": 256, "deepstack_visual_indexes": [0]},
        },
        "mrope_section": [6, 5, 5],
    },
}
"""The published sizes of Qwen3-VL-4B, and one to try the program with."""


def main() -> None:
    """Parse arguments, measure both layouts, print one JSON line each."""
    parser = argparse.ArgumentParser(prog="python -m launch.bench_gpu", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="4b")
    parser.add_argument("--group-size", type=int, default=8, help="completions of the pair (default 8)")
    parser.add_argument("--completion-tokens", type=int, default=256, help="of each (default 256: 2K a group)")
    parser.add_argument("--image", type=int, nargs=2, default=(640, 480), metavar=("W", "H"), help="pixels")
    parser.add_argument("--attention", choices=("sdpa", "flex_attention"), help="default: flex_attention on a GPU")
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after 3 that are not (default 8)")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="in bfloat16 (default: H100 SXM)")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and arguments.size != "tiny":
        raise ConfigError("no GPU was found, and 4 billion parameters need one; --size tiny runs anywhere")
    flex = (arguments.attention or ("flex_attention" if on_gpu else "sdpa")) == "flex_attention"
    device = torch.device("cuda" if on_gpu else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        for shared in (True, False):
            print(json.dumps(measure(arguments, Path(folder), device, flex=flex, shared_prefix=shared)), flush=True)


def measure(
    arguments: argparse.Namespace, folder: Path, device: torch.device, *, flex: bool, shared_prefix: bool
) -> dict[str, Any]:
    """Time steps of one layout."""
    model, frontend, config = build(arguments.size, tuple(arguments.image), folder, device, flex=flex)
    group = make_group(frontend, folder, tuple(arguments.image), arguments.group_size, arguments.completion_tokens)
    scorer = PolicyScorer(model, frontend, config).to(device)
    forward, backward_and_step, engine_name = make_engine(scorer, config)
    passes = micro_batches([group], max_tokens=arguments.micro_batch_tokens, shared_prefix=shared_prefix, one_row=flex)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(3 + arguments.steps):
        started = time.perf_counter()
        for index, batch in enumerate(passes):
            packed = pack(batch, one_row=flex)
            logprobs_N = forward(packed, scorer.encode(packed)).logprobs_N
            loss = -(logprobs_N * packed.advantage_N.to(device)).mean()
            backward_and_step(loss, index + 1 == len(passes))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    step_s = median(seconds[3:])
    num_tokens = sum(part.num_tokens for batch in passes for part in batch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # 2 FLOPs a weight and token forward, 4 backward, as is customary: an estimate. Attention and recomputation are not
    # counted; the vision tower and the head are, at every token, though few pass them.
    tflops = 6 * parameters * num_tokens / step_s / 1e12
    return {
        "layout": "shared prefix" if shared_prefix else "a prompt for every completion",
        "engine": engine_name,
        "attention": "flex_attention" if flex else "sdpa",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": parameters,
        "prompt_tokens": len(group.prompt_token_ids),
        "completions": f"{arguments.group_size} x {arguments.completion_tokens}",
        "tokens_of_a_step": num_tokens,
        "step_s": round(step_s, 4),
        "completion_tokens_per_s": round(group.num_completion_tokens / step_s, 1),
        "mfu": round(tflops / arguments.peak_tflops, 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
    }


def build(
    size: str, image_px: tuple[int, int], folder: Path, device: torch.device, *, flex: bool
) -> tuple[PreTrainedModel, PolicyFrontend, Config]:
    """A policy of the given size with random weights on the device, in bfloat16, with gradient checkpointing."""
    sizes = SIZES[size]
    processor = build_processor(
        SmallPolicyConfig(patch_px=16, max_pixels=max(256, image_px[0] * image_px[1])),
        [instruction("union", "norm1000")],
    )
    token = processor.tokenizer.convert_tokens_to_ids
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_interleaved": True,
        "mrope_section": sizes["mrope_section"],
    }
    model_config = Qwen3VLConfig(
        text_config={**sizes["text"], "rope_parameters": rope, "tie_word_embeddings": True},
        vision_config={
            **sizes["vision"],
            **{"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2},
            "out_hidden_size": sizes["text"]["hidden_size"],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = load_config([], [f"policy.path={json.dumps(str(folder))}", "policy.dtype=bfloat16"])
    torch.manual_seed(0)
    with device:
        model = Qwen3VLForConditionalGeneration._from_config(
            model_config,
            dtype=torch.bfloat16,
            attn_implementation={"": "sdpa", "text_config": FLEX_ATTENTION if flex else "sdpa"},
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(), load_frontend(config.policy, "union"), config


def make_group(
    frontend: PolicyFrontend, folder: Path, image_px: tuple[int, int], group_size: int, num_tokens: int
) -> TrainingGroup:
    """Pictures of noise and answers of random tokens."""
    rng = np.random.default_rng(0)
    paths = [folder / "a.png", folder / "b.png"]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (image_px[1], image_px[0], 3), dtype=np.uint8)).save(path)
    example = Example("bench", str(paths[0]), str(paths[1]), image_px, (), (), "train")
    allowed = np.setdiff1d(np.arange(len(frontend.processor.tokenizer)), frontend.banned_token_ids)
    tokens = rng.choice(allowed, (group_size, num_tokens)).tolist()
    return TrainingGroup(
        example=example,
        prompt_token_ids=tuple(frontend.encode(example)["input_ids"][0].tolist()),
        completion_token_ids=tuple(map(tuple, tokens)),
        logprobs_rollout=((-1.0,) * num_tokens,) * group_size,
        advantages=tuple(rng.normal(size=group_size).tolist()),
    )


def make_engine(
    scorer: PolicyScorer, config: Config
) -> tuple[Callable[..., Any], Callable[[torch.Tensor, bool], None], str]:
    """What computes forward, what takes a loss backward (and a step after the last pass), and its name."""
    parameters = list(scorer.parameters())
    if importlib.util.find_spec("deepspeed") is None:
        adam = torch.optim.AdamW(parameters, lr=1e-6, fused=parameters[0].is_cuda)

        def plain(loss: torch.Tensor, is_last: bool) -> None:
            loss.backward()
            if is_last:
                adam.step()
                adam.zero_grad()

        name = f"torch {torch.__version__} alone: DeepSpeed is not installed, weights and Adam are bfloat16"
        return scorer, plain, name
    import deepspeed

    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    table = learner_table(config, world_size=1)
    engine, *_ = deepspeed.initialize(model=scorer, model_parameters=parameters, config=table)

    def with_deepspeed(loss: torch.Tensor, is_last: bool) -> None:
        engine.backward(loss, scale_wrt_gas=False)
        if is_last:
            engine.step()

    return engine, with_deepspeed, f"deepspeed {deepspeed.__version__}, ZeRO 1, float32 master weights and sums"


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was measured"))
