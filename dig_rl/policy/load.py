"""Open a policy folder the same way for sampler and learner: one prompt, one resize rule, one list of banned tokens.

The loading path is Hugging Face's own (`from_pretrained` on a local folder or a hub name); nothing here knows whether
the weights are a few million random parameters or a downloaded Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from dig_rl.config import Config, PolicyConfig
from dig_rl.errors import ConfigError, DataError, PolicyError
from dig_rl.finite import describe_weights
from dig_rl.image_files import DAMAGE, read_stored
from dig_rl.looks import apply_look
from dig_rl.parsing import CoordinateFrame, frame_of
from dig_rl.policy.weights import examine_weights
from dig_rl.prompts import chat_messages
from dig_rl.types import BoxTarget, Example, Look, Question

IMAGE_MARKER = "<|image_pad|>"
"""Stands for one image in a chat-formatted prompt."""

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_MARKER, "<|video_pad|>")
"""A completion never contains these: the learner would look for images that are not there."""

BAN_BIAS = -100.0
"""Added to the logits of banned tokens by sampler and learner alike; vLLM clamps a bias to this size."""


# A name with "flex_attention" in it is refused for Qwen3-VL, for masks that transformers makes; ours come ready made.
FLEX_ATTENTION = "flex_with_ready_masks"
AttentionInterface.register(FLEX_ATTENTION, flex_attention_forward)


@dataclass(frozen=True)
class PolicyFrontend:
    """Everything of a policy but its weights: how a pair becomes tokens and pixels."""

    processor: ProcessorMixin
    frame: CoordinateFrame
    """Coordinate convention of the model family."""
    prompt: str
    """Chat-formatted prompt with one marker for each image."""
    resize_area_px: dict[str, int]
    """`shortest_edge` and `longest_edge`: smallest and largest area of a resized image (transformers' names)."""
    vision_token_ids: tuple[int, ...]
    """Tokens that stand for images or mark them."""
    banned_token_ids: tuple[int, ...]
    """Never sampled: the vision tokens, and ids beyond the tokenizer."""
    end_token_ids: tuple[int, ...]
    """Each of them ends an answer: the tokenizer's, which supervised answers end with, then those of
    generation_config.json; Qwen's are `<|im_end|>` and `<|endoftext|>`."""
    pad_token_id: int

    @property
    def image_factor_px(self) -> int:
        """Side of the square that one image token covers."""
        image_processor = self.processor.image_processor
        return int(image_processor.patch_size * image_processor.merge_size)

    def model_image_size_px(self, image_size_px: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of an image after the resize rule."""
        width, height = image_size_px
        low, high = self.resize_area_px["shortest_edge"], self.resize_area_px["longest_edge"]
        resized_height, resized_width = smart_resize(height, width, self.image_factor_px, low, high)
        return int(resized_width), int(resized_height)

    def num_prompt_tokens(self, image_size_px: tuple[int, int]) -> int:
        """Prompt length of a pair of this image size, image tokens included."""
        width, height = self.model_image_size_px(image_size_px)
        per_image = (width // self.image_factor_px) * (height // self.image_factor_px)
        num_text = len(self.processor.tokenizer(self.prompt, add_special_tokens=False).input_ids)
        return num_text - 2 + 2 * per_image

    def question_prompt(self, question: Question, config: Config) -> str:
        """Chat-formatted prompt of a question about one picture.

        Raises:
            ConfigError: the prompt and the longest answer do not fit the context.
            PolicyError: the text holds image markers of its own.
        """
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
        prompt = str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        if prompt.count(IMAGE_MARKER) != 1:
            raise PolicyError(f"expected one {IMAGE_MARKER} in the prompt of a question, found {prompt!r:.300}")
        width, height = self.model_image_size_px(question.image_size_px)
        num_image = (width // self.image_factor_px) * (height // self.image_factor_px)
        num_tokens = len(self.processor.tokenizer(prompt, add_special_tokens=False).input_ids) - 1 + num_image
        room = config.rollout.max_model_len - config.rollout.max_completion_tokens
        if num_tokens > room:
            raise ConfigError(
                f"the question about {question.image_path} takes {num_tokens} tokens, but rollout.max_model_len - "
                f"rollout.max_completion_tokens leaves {room}; raise max_model_len or lower policy.max_pixels"
            )
        return prompt

    def encode(self, example: Example) -> dict[str, torch.Tensor]:
        """Prompt ids and pixels of one pair.

        Returns:
            `input_ids` and `mm_token_type_ids` `[1, P]`, `pixel_values` `[patches, values]`, `image_grid_thw` `[2, 3]`.

        Raises:
            DataError: an image cannot be read.
        """
        encoded = self.processor(text=[self.prompt], images=list(load_images(example)), return_tensors="pt")
        return dict(encoded)


def load_frontend(policy: PolicyConfig, box_target: BoxTarget) -> PolicyFrontend:
    """Open processor and prompt of a policy.

    Raises:
        PolicyError: the folder is missing, not a policy, or of a family whose coordinates are not declared.
    """
    model_config = _load(AutoConfig, policy)
    _check_tie_flag(policy, model_config)
    frame = frame_of(model_config.model_type)
    processor = _load(AutoProcessor, policy)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise PolicyError(
            f"policy {policy.path} has no image processor and tokenizer; expected a Qwen-VL folder with "
            f"processor and tokenizer files beside config.json"
        )
    size = processor.image_processor.size
    area = {"shortest_edge": int(size["shortest_edge"]), "longest_edge": int(size["longest_edge"])}
    if policy.min_pixels is not None:
        area["shortest_edge"] = policy.min_pixels
    if policy.max_pixels is not None:
        area["longest_edge"] = policy.max_pixels
    processor.image_processor.size = area
    prompt = _chat_prompt(policy.path, processor, model_config.image_token_id, chat_messages(box_target, frame))
    vocabulary_size = model_config.get_text_config().vocab_size
    vision = {tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS if token in tokenizer.get_vocab()}
    banned = vision | set(range(len(tokenizer), vocabulary_size))
    return PolicyFrontend(
        processor=processor,
        frame=frame,
        prompt=prompt,
        resize_area_px=area,
        vision_token_ids=tuple(sorted(vision)),
        banned_token_ids=tuple(sorted(banned)),
        end_token_ids=_end_token_ids(policy, model_config, tokenizer.eos_token_id),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )


def load_model(policy: PolicyConfig, *, flex_attention: bool = False) -> PreTrainedModel:
    """Open the weights of a policy in its compute type.

    Args:
        policy: folder or hub name, and type.
        flex_attention: whether the text model takes block-sparse masks; the vision tower never does.

    Raises:
        PolicyError: the folder is missing, is not a vision-language policy, or lacks weights.
    """
    model, found = _load(
        AutoModelForImageTextToText,
        policy,
        dtype=getattr(torch, policy.dtype),
        attn_implementation={"": "sdpa", "text_config": FLEX_ATTENTION if flex_attention else "sdpa"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, with names
    )
    # transformers fills these with random numbers and a warning.
    unusable = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if unusable:
        raise PolicyError(
            f"policy {policy.path}: {len(unusable)} weights are missing or of another shape than config.json says, "
            f"first {unusable[0]}; config.json and the weight files must come from one model"
        )
    # These it leaves out, and so would every export.
    if unknown := sorted(found["unexpected_keys"]):
        raise PolicyError(
            f"policy {policy.path}: {len(unknown)} weights in its files belong to no part of {type(model).__name__}, "
            f"first {unknown[0]}; config.json and the weight files must come from one model"
        )
    broken, largest = examine_weights(model.named_parameters())
    if broken:
        raise PolicyError(
            f"policy {policy.path}: {describe_weights(broken, largest)}. Its answers would mean nothing; take "
            "the policy of an earlier checkpoint, or get its files again"
        )
    return model.eval()


def load_structure(policy: PolicyConfig) -> PreTrainedModel:
    """The model of a policy without weights, from its config alone.

    Raises:
        PolicyError: there is no config, or it is not that of a vision-language policy.
    """
    config = _load(AutoConfig, policy)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        raise PolicyError(f"cannot open policy {policy.path}: {error}") from error


def uses_flex_attention(model: PreTrainedModel) -> bool:
    """Whether the text model was loaded with FlexAttention."""
    return model.config.get_text_config()._attn_implementation == FLEX_ATTENTION


def load_images(example: Example) -> tuple[Image.Image, Image.Image]:
    """Both images of a pair as its look shows them, in order, RGB."""
    images = [load_image(path, f"pair {example.pair_id}") for path in (example.image_a_path, example.image_b_path)]
    if example.look != Look():
        images = [Image.fromarray(image) for image in apply_look(np.stack([*map(np.asarray, images)]), example.look)]
    return images[0], images[1]


def load_image(path: str, where: str) -> Image.Image:
    """One image as it is stored, RGB; `where` begins the message if it cannot be read."""
    try:
        return read_stored(path)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot read image {path}: {error}") from None


def check_token_budget(frontend: PolicyFrontend, examples: Sequence[Example], config: Config) -> None:
    """Make sure that every pair's prompt and the longest answer fit the context.

    Raises:
        ConfigError: a pair is too long; names it and both numbers.
    """
    room = config.rollout.max_model_len - config.rollout.max_completion_tokens
    lengths = {size: frontend.num_prompt_tokens(size) for size in {example.image_size_px for example in examples}}
    for example in examples:
        if lengths[example.image_size_px] > room:
            raise ConfigError(
                f"pair {example.pair_id}: its prompt takes {lengths[example.image_size_px]} tokens (two images of "
                f"{example.image_size_px[0]}x{example.image_size_px[1]} px), but rollout.max_model_len - "
                f"rollout.max_completion_tokens leaves {room}; raise max_model_len or lower policy.max_pixels"
            )


def _check_tie_flag(policy: PolicyConfig, model_config: Any) -> None:
    """Refuse a folder without an output head whose config says at the wrong place that it needs none."""
    flags = [getattr(config, "tie_word_embeddings", False) for config in (model_config, model_config.get_text_config())]
    if flags != [False, True]:
        return
    names: set[str] = set()
    for path in Path(policy.path).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names.update(file.keys())
    if names and "lm_head.weight" not in names:
        raise PolicyError(
            f"policy {policy.path}: its files have no lm_head.weight, and config.json says tie_word_embeddings = true "
            'in text_config alone, where it does not count for a whole model; write "tie_word_embeddings": true '
            "beside text_config"
        )


def _chat_prompt(path: str, processor: Any, image_token_id: int, messages: list[dict[str, Any]]) -> str:
    try:
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:
        raise PolicyError(f"policy {path}: its chat template is missing or broken: {error}") from None
    marker_id = processor.tokenizer.get_vocab().get(IMAGE_MARKER)
    if marker_id != image_token_id or prompt.count(IMAGE_MARKER) != 2:
        raise PolicyError(
            f"policy {path}: expected {IMAGE_MARKER} to be token {image_token_id} (image_token_id of config.json) and "
            f"twice in the prompt of a pair, found token {marker_id}, {prompt.count(IMAGE_MARKER)} times; tokenizer, "
            "chat template and config.json must come from one model"
        )
    return prompt


def _end_token_ids(policy: PolicyConfig, model_config: Any, end_of_text: int) -> tuple[int, ...]:
    try:
        generation = GenerationConfig.from_pretrained(policy.path, local_files_only=not policy.hub)
    except OSError:  # the folder has no such file
        generation = GenerationConfig.from_model_config(model_config)
    listed = generation.eos_token_id or ()
    return tuple(dict.fromkeys([end_of_text, *([listed] if isinstance(listed, int) else listed)]))


def _load(loader: Any, policy: PolicyConfig, **options: Any) -> Any:
    if not policy.hub and not (Path(policy.path) / "config.json").is_file():
        raise PolicyError(
            f"no policy at {policy.path}: expected a Hugging Face folder with config.json; `make warmup` makes a small "
            "one there, policy.path names another, and policy.hub = true allows a hub name"
        )
    try:
        return loader.from_pretrained(policy.path, local_files_only=not policy.hub, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise PolicyError(f"cannot open policy {policy.path}: {error}") from error
