"""A small real policy: Qwen3-VL's architecture from a config with random weights, and a tokenizer to match.

What makes it small is the config alone: the model class, the processor, the special tokens and the chat markers are
Qwen3-VL's, so the folder opens wherever a downloaded Qwen3-VL folder opens. Coordinates are one token a level, and an
image token covers about the size of an object, because that is what lets a few million parameters learn the task.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dig_rl.bounds import Seed

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's own special tokens, in Qwen's order."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""Chat markers as Qwen3-VL writes them; plain, without tools or system text."""

ANSWER_PIECES = ("[[", ", ", "], [", "]]", "[]")
"""Punctuation of an answer, one token each."""


class SmallPolicyConfig(BaseModel):
    """Size of a small Qwen3-VL."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    text_hidden: int = Field(192, ge=32)
    text_layers: int = Field(4, ge=1)
    text_heads: int = Field(6, ge=1)
    head_dim: int = Field(32, ge=16)
    """Width of one text attention head; vLLM's CPU attention takes multiples of 32."""
    vision_hidden: int = Field(128, ge=32)
    vision_layers: int = Field(2, ge=2)
    vision_heads: int = Field(4, ge=1)
    patch_px: int = Field(8, ge=4)
    """Side of one patch; an image token covers 2 x 2 patches."""
    max_pixels: int = Field(96 * 64, ge=256)
    """Largest image area after the resize rule."""
    coordinate_levels: Literal[10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000] = 50
    """Coordinates are multiples of 1000 / levels, one token each, with the comma that follows where one does."""
    whole_prompt: bool = False
    """The instruction is a single token: it is the same in every prompt, and a third of all tokens otherwise."""
    rope_theta: float = Field(10000.0, gt=1)
    """Base of the text model's rotary positions; a small one tells near positions better apart."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the random weights."""
    seed: Seed = 0


def build_small_policy(config: SmallPolicyConfig, prompt_texts: list[str], folder: str | Path) -> Path:
    """Write a randomly initialised policy as an ordinary Hugging Face folder.

    Args:
        config: sizes.
        prompt_texts: texts whose words should be short in tokens (the instruction).
        folder: where to write; created when missing.

    Returns:
        The folder.
    """
    folder = Path(folder)
    processor = build_processor(config, prompt_texts)
    torch.manual_seed(config.seed)
    model = Qwen3VLForConditionalGeneration(_model_config(config, processor.tokenizer)).float()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_processor(config: SmallPolicyConfig, prompt_texts: list[str]) -> Qwen3VLProcessor:
    """Tokenizer, image and video processor that fit `config`."""
    area = {"shortest_edge": (2 * config.patch_px) ** 2, "longest_edge": config.max_pixels}
    image_processor = Qwen2VLImageProcessor(
        patch_size=config.patch_px,
        merge_size=2,
        size=area,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    video_processor = Qwen3VLVideoProcessor(patch_size=config.patch_px, merge_size=2, size=area)
    return Qwen3VLProcessor(
        image_processor=image_processor,
        tokenizer=_build_tokenizer(config, prompt_texts),
        video_processor=video_processor,
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer(config: SmallPolicyConfig, prompt_texts: list[str]) -> Qwen2Tokenizer:
    # Byte-level BPE as Qwen's, so any text can be written; trained on the prompt, so its words are one token each.
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    roles = ["system\n", "user\n", "assistant\n"]
    trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*prompt_texts, *roles] * 2, trainer)
    state = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    coordinates = [str(level * 1000 // config.coordinate_levels) for level in range(config.coordinate_levels + 1)]
    tokenizer.add_tokens([*coordinates, *(f"{coordinate}, " for coordinate in coordinates), *ANSWER_PIECES])
    if config.whole_prompt:
        tokenizer.add_tokens(prompt_texts)
    return tokenizer


def _model_config(config: SmallPolicyConfig, tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    half = config.head_dim // 2
    height = half // 3
    return Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": config.text_hidden,
            "intermediate_size": 3 * config.text_hidden,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "num_key_value_heads": config.text_heads // 2 if config.text_heads % 2 == 0 else config.text_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_interleaved": True,
                "mrope_section": [half - 2 * height, height, height],
            },
            "initializer_range": config.initializer_range,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": config.vision_layers,
            "hidden_size": config.vision_hidden,
            "intermediate_size": 3 * config.vision_hidden,
            "num_heads": config.vision_heads,
            "patch_size": config.patch_px,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": config.text_hidden,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [config.vision_layers - 2],
            "initializer_range": config.initializer_range,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
