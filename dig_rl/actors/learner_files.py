"""What a learner's part of a checkpoint holds, and its weights put together without a running engine.

`learner/` is what DeepSpeed writes: weights, optimiser and learning-rate schedule, with ZeRO a part from each rank.
`rank-N.json` beside it is ours: random generators of rank N, and how many ranks there were.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import (
    _get_fp32_state_dict_from_zero2_checkpoint,
    get_fp32_state_dict_from_zero_checkpoint,
    get_model_state_files,
    get_optim_files,
    parse_model_states,
)

from dig_rl.errors import CheckpointError

DEEPSPEED_TAG = "learner"
"""Name of DeepSpeed's own folder."""

_SCORER_PREFIX = "model."
"""The policy is this member of `PolicyScorer`, which is what DeepSpeed trains."""


def rank_file(folder: Path, rank: int) -> Path:
    """Where one rank's own state is."""
    return folder / f"rank-{rank}.json"


def read_rank_state(folder: Path, rank: int) -> dict[str, Any]:
    """State that a rank saved; a rank that was not there then takes that of the first.

    Raises:
        CheckpointError: there is none.
    """
    path = rank_file(folder, rank)
    if not path.is_file():
        path = rank_file(folder, 0)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): the checkpoint is of an earlier version, or damaged; continue with the "
            "version that wrote it, or start a new RUN from its policy"
        ) from None


def check_parts(folder: Path, *, uses_zero: bool) -> None:
    """Refuse a checkpoint without ZeRO's parts where they are needed: weights would be loaded, the optimiser would not.

    Args:
        folder: a learner's part of a checkpoint.
        uses_zero: the engine that is about to load it has a ZeRO stage above 0.

    Raises:
        CheckpointError: there are no such parts.
    """
    if uses_zero and not any((folder / DEEPSPEED_TAG).glob("*_optim_states.pt")):
        raise CheckpointError(
            f"checkpoint {folder} was written without ZeRO, this run has a stage of it (a deepspeed.zero_optimization "
            "without a stage once meant 0, and means 1): the optimiser's state does not fit. Start a new RUN from its "
            "policy, which make export writes"
        )


def consolidated_weights(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The policy's whole weights on the CPU, from the files of all ranks.

    Args:
        folder: a learner's part of a checkpoint, with any ZeRO stage and number of ranks.
        dtype: of the weights that are returned. With ZeRO they are rounded from the optimiser's float32 ones, as
            DeepSpeed does it for the policy after each update.

    Returns:
        Weights by Hugging Face name, tied ones under each of their names; no two share memory.

    Raises:
        CheckpointError: the files are not those of a learner.
    """
    undivided = folder / DEEPSPEED_TAG / "mp_rank_00_model_states.pt"
    found: dict[str, Any] = {}
    try:
        if undivided.exists():  # with ZeRO 0 all there is; with ZeRO 1 frozen weights stand nowhere else
            found = torch.load(undivided, map_location="cpu", mmap=True, weights_only=False)["module"]
        if any((folder / DEEPSPEED_TAG).glob("*_optim_states.pt")):
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of every file
                found |= _float32_weights(folder)
        return {
            name.removeprefix(_SCORER_PREFIX): tensor.contiguous().detach().to(dtype, copy=True)
            for name, tensor in found.items()
        }
    except Exception as error:  # pickle and DeepSpeed raise whatever they stumble over
        raise CheckpointError(
            f"DeepSpeed's files in {folder / DEEPSPEED_TAG} cannot be put together: {type(error).__name__}: {error}; "
            "name another checkpoint"
        ) from error


def _float32_weights(folder: Path) -> dict[str, Any]:
    """DeepSpeed's float32 weights, from the parts of all ranks."""
    files = str(folder / DEEPSPEED_TAG)
    parts = [
        torch.load(file, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        for file in get_optim_files(files)
    ]
    if "zero_stage" in parts[0]:
        weights: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(
            str(folder), tag=DEEPSPEED_TAG, lazy_mode=True
        )
        return weights
    # What sums bfloat16 gradients in float32 under stage 1 writes the same parts and does not say the stage, without
    # which DeepSpeed's tool takes nothing.
    if len(parts) != max(parts[0]["partition_count"]):
        raise ValueError(f"expected files of {max(parts[0]['partition_count'])} ranks, found {len(parts)}")
    weights = _get_fp32_state_dict_from_zero2_checkpoint(
        len(parts),
        [part["single_partition_of_fp32_groups"] for part in parts],
        parse_model_states(get_model_state_files(files)),
        False,
    )
    return weights
