"""Write a policy as a Hugging Face folder: complete, or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dig_rl.durable import sync_to_disk
from dig_rl.errors import PolicyError
from dig_rl.policy.load import PolicyFrontend
from dig_rl.policy.records import differences, name_differences, records_of
from dig_rl.policy.trainable import merged_parameters
from dig_rl.policy.weight_files import written_records


def save_policy(model: PreTrainedModel, frontend: PolicyFrontend, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write config, weights, tokenizer and image processor, replacing a folder that is there.

    Args:
        model: of the policy's architecture; its own weights are not written.
        frontend: processor files.
        weights: by Hugging Face name, tied ones once, in the type they are to have.
        path: folder that `AutoModelForImageTextToText.from_pretrained` and vLLM then open.

    Raises:
        OSError: the disk is full or the place cannot be written; what was there is then still there.
        PolicyError: what was written, read back, is not these weights, or these are not the policy's; as with OSError.
    """
    expected = records_of(weights.items())  # before writing, which takes them out of the dictionary
    _refuse(
        path, "it would not be the policy", name_differences([name for name, *_ in merged_parameters(model)], expected)
    )
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with torch.device("meta"):  # a plain model: one with adapters would write these alone
            plain = type(model)(model.config)
        plain.generation_config = model.generation_config
        try:
            plain.save_pretrained(partial, state_dict=weights)
        except SafetensorError as error:  # how safetensors says that there is no room
            raise OSError(str(error)) from error
        frontend.processor.save_pretrained(partial)
        for file in partial.iterdir():
            sync_to_disk(file)
        _refuse(
            path,
            "read back, it is not the policy that was to be written",
            differences(expected, written_records(partial, model)),
        )
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_to_disk(path.parent)


def _refuse(path: Path, clause: str, wrong: str | None) -> None:
    if wrong:
        raise PolicyError(
            f"{path} was not written: {clause}: {wrong}. Checkpoints are as they were; the same command tries again"
        )
