"""Checksums of tensors, by which processes find out whether they hold the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from dig_rl.types import PolicyInput


def tensors_sha256(*tensors: torch.Tensor) -> str:
    """One checksum of the types, shapes and values of tensors, to the last bit."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def policy_input(
    pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, level_scale: Sequence[float] = ()
) -> PolicyInput:
    """Describe the pictures of one pair.

    Args:
        pixel_values: `[patches, values]`, as the policy is given them.
        image_grid_thw: `[2, 3]`.
        level_scale: factors and offsets of the three channels, where the values are levels.
    """
    grid = image_grid_thw.to(torch.int64)
    return PolicyInput(
        sha256=tensors_sha256(pixel_values, grid),
        shape=tuple(pixel_values.shape),
        grid=tuple(map(tuple, grid.tolist())),
        dtype=str(pixel_values.dtype).removeprefix("torch."),
        level_scale=tuple(round(value, 6) for value in level_scale),
    )


def as_sampled(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, dtype: str, processor: Any) -> PolicyInput:
    """Describe pixel values of Hugging Face's image processor as a sampler has them that gives the policy `dtype`.

    Args:
        pixel_values: float32 `[patches, values]`, channels side by side in a patch.
        image_grid_thw: `[2, 3]`.
        dtype: `uint8` for levels, which are found again exactly; else what the policy computes in.
        processor: that image processor.
    """
    if dtype != "uint8":
        return policy_input(pixel_values.to(getattr(torch, dtype)), image_grid_thw)
    std, mean = (torch.tensor(values, dtype=torch.float64) for values in (processor.image_std, processor.image_mean))
    factor, offset = processor.rescale_factor / std, -mean / std
    by_channel = pixel_values.reshape(len(pixel_values), len(std), -1)
    # Float32 is off by some hundred-thousandths of a level.
    levels = ((by_channel - offset.float()[:, None]) / factor.float()[:, None]).round().to(torch.uint8)
    return policy_input(levels.reshape(pixel_values.shape), image_grid_thw, [*factor.tolist(), *offset.tolist()])
