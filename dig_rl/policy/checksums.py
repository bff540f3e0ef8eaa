"""Checksums of tensors, by which processes find out whether they hold the same ones."""

from __future__ import annotations

import hashlib

import torch

from dig_rl.types import PolicyInput


def tensors_sha256(*tensors: torch.Tensor) -> str:
    """One checksum of the types, shapes and values of tensors, to the last bit."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def policy_input(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> PolicyInput:
    """Describe the pictures of one pair.

    Args:
        pixel_values: `[patches, values]`, in the type that the policy computes in.
        image_grid_thw: `[2, 3]`.
    """
    grid = image_grid_thw.to(torch.int64)
    rows, dtype = tuple(map(tuple, grid.tolist())), str(pixel_values.dtype).removeprefix("torch.")
    return PolicyInput(tensors_sha256(pixel_values, grid), tuple(pixel_values.shape), rows, dtype)
