"""The files of the policy folder that a run began with: continued with others, it would be another run.

The reference of the KL term and what is under adapters are read from the folder at every start, and so are tokenizer,
chat template and image processor. sha256 of 1 GB takes about a second of a core, and files are hashed side by side.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dig_rl.checkpoint import STATE_FILE, CheckpointStore
from dig_rl.config import Config
from dig_rl.errors import CheckpointError

STATE_KEY = "policy_files"
"""Of a checkpoint's state: sha256 by name."""

_SETTINGS = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
_SHOWN = 3

_log = logging.getLogger(__name__)


def is_from_hub(config: Config) -> bool:
    """Whether the policy is fetched when it is loaded: which files it has is not known before that."""
    return config.policy.hub and not Path(config.policy.path).is_dir()


def hash_policy_files(config: Config) -> dict[str, str]:
    """sha256 of the files that every start reads, by name; empty where the policy is not (yet) on this machine.

    Weights are among them where a reference or adapters need them; otherwise a checkpoint holds all weights.
    """
    folder = _local_folder(config)
    if folder is None:
        return {}
    weights = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    paths = {path for pattern in _SETTINGS for path in folder.glob(pattern)} - weights
    if _needs_weights(config):
        paths |= weights
    ordered = sorted(path for path in paths if path.is_file())
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return {path.name: digest for path, digest in zip(ordered, pool.map(_sha256, ordered), strict=True)}


def check_policy_files(checkpoints: Path, found: Mapping[str, str], config: Config) -> None:
    """Refuse to continue a run from a policy folder that is not the one it began with.

    A checkpoint without a record was written before there was one: the run goes on, and says what it cannot know.
    What is missing of a hub's policy may be in the cache of the machine that loaded it, so it is not compared.

    Args:
        checkpoints: folder of the run's checkpoints; empty in a new run.
        found: what `hash_policy_files` gives now.
        config: of the run.

    Raises:
        CheckpointError: which files differ.
    """
    from_hub = is_from_hub(config)
    steps = sorted(CheckpointStore(checkpoints, 1).steps(), reverse=True)
    if not steps or (from_hub and not found):
        return
    folders = [checkpoints / f"step-{step}" for step in steps]
    folder, recorded = next(((folder, files) for folder in folders if (files := _recorded(folder))), (folders[0], {}))
    if not recorded:
        if _needs_weights(config):
            _log.warning(
                "checkpoint %s does not say which policy files the run began with, so the reference of the KL term and "
                "what is under adapters are taken from %s as it is now",
                folder.name,
                config.policy.path,
            )
        return
    changed = [
        f"{name}: sha256 {digest[:12]} -> {found[name][:12] if name in found else 'missing'}"
        for name, digest in recorded.items()
        if found.get(name, digest if from_hub else None) != digest
    ]
    if changed:
        more = f"\n  and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise CheckpointError(
            f"policy {config.policy.path} is not the one that the run began with (recorded in {folder} -> "
            "now):\n  " + "\n  ".join(changed[:_SHOWN]) + more + "\nIts reference, adapters and prompt are read from "
            "there. Restore these files to continue, or start another RUN= from the policy as it is"
        )


def _needs_weights(config: Config) -> bool:
    return config.learner.kl_coef > 0 or config.learner.lora is not None


def _local_folder(config: Config) -> Path | None:
    if not is_from_hub(config):
        return Path(config.policy.path)
    from huggingface_hub import try_to_load_from_cache  # takes a while, which no folder need wait for

    cached = try_to_load_from_cache(config.policy.path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _recorded(checkpoint: Path) -> dict[str, str]:
    """What a checkpoint says; empty where it says nothing, or is damaged, which shows when it is read in full."""
    try:
        return dict(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))[STATE_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
