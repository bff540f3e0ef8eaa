"""Write a policy as a Hugging Face folder: complete, or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dig_rl.durable import sync_to_disk
from dig_rl.policy.load import PolicyFrontend


def save_policy(model: PreTrainedModel, frontend: PolicyFrontend, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write config, weights, tokenizer and image processor, replacing a folder that is there.

    Args:
        model: of the policy's architecture; its own weights are not written.
        frontend: processor files.
        weights: by Hugging Face name, without tied ones, in the type they are to have.
        path: folder that `AutoModelForImageTextToText.from_pretrained` and vLLM then open.

    Raises:
        OSError: the disk is full or the place cannot be written; what was there is then still there.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with torch.device("meta"):  # a plain model: one with adapters would write these alone
            plain = type(model)(model.config)
        plain.generation_config = model.generation_config
        plain.save_pretrained(partial, state_dict=weights)
        frontend.processor.save_pretrained(partial)
        for file in partial.iterdir():
            sync_to_disk(file)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_to_disk(path.parent)
