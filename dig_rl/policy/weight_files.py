"""The weights in a policy folder's files, under the names that the model's parameters have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from dig_rl.config import PolicyConfig
from dig_rl.errors import PolicyError
from dig_rl.policy.load import load_structure
from dig_rl.policy.records import WeightRecord, name_differences, record_of


def written_records(folder: Path, model: PreTrainedModel) -> dict[str, WeightRecord]:
    """What the weight files of a policy folder hold.

    Args:
        folder: with one or more files of safetensors.
        model: of the folder's architecture; which names in files are which parameters differs between families.
    """
    return {name: record_of(file.get_tensor(written)) for name, file, written in _weights_in(folder, model)}


def check_names(policy: PolicyConfig) -> None:
    """Hold the names in a policy's files against its architecture, without reading weights; hub names are left alone.

    Raises:
        PolicyError: a weight is missing, or belongs to no part of the model.
    """
    model = load_structure(policy)
    found = {name for name, *_ in _weights_in(Path(policy.path), model)}
    tied = {*model.all_tied_weights_keys} - found
    if found and (wrong := name_differences(model.state_dict().keys() - tied, found)):
        raise PolicyError(
            f"policy {policy.path}: its files are not those of a {type(model).__name__} as config.json says: {wrong}; "
            "config.json and the weight files must come from one model"
        )


def _weights_in(folder: Path, model: PreTrainedModel) -> Iterator[tuple[str, Any, str]]:
    """Name of a parameter, open file, and name in that file."""
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for written in file.keys():  # noqa: SIM118 - it is no dict
                name, _ = rename_source_key(written, renamings, [])
                yield name, file, written
