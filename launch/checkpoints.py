"""What CHECKPOINT= and PREDICTIONS= may name, and the settings that belong to it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from dig_rl.config import Config, load_config
from dig_rl.durable import read_json_object
from dig_rl.errors import PolicyError
from dig_rl.run_folder import CONFIG_FILE
from dig_rl.summary import read_summary

SETTINGS_FILE = "settings.json"
"""Resolved config that an evaluation leaves beside its answers."""

FALLBACK_CONFIG = "launch/configs/demo.toml"


class FoundPolicy(NamedTuple):
    """A policy and where it comes from."""

    path: str
    """Hugging Face folder or hub name."""
    description: str
    """What was found, for the user."""
    run_config: Path | None
    """`config.json` of the run that trained it."""


def find_policy(checkpoint: str, *, hub: bool = False) -> FoundPolicy:
    """Say which policy is meant.

    Args:
        checkpoint: a Hugging Face folder, or a run folder, whose trained policy is taken.
        hub: a name that is no folder is one of the model hub.

    Raises:
        PolicyError: there is nothing of the kind, or a run without a policy yet.
    """
    path = Path(checkpoint)
    if _is_run(path):
        if not _is_policy(path / "policy"):
            status = (read_summary(path) or {}).get("status", "not yet started")
            raise PolicyError(
                f"run {path} has no policy yet: it is written when training ends, and the run is {status}; continue it "
                f"with `make train` and the same RUN=, or name the policy it began with"
            )
        return FoundPolicy(str(path / "policy"), f"the trained policy of run {path.name}", path / CONFIG_FILE)
    if _is_policy(path):
        run = path.absolute().parent
        if path.name == "policy" and _is_run(run):
            return FoundPolicy(checkpoint, f"the trained policy of run {run.name}", path.parent / CONFIG_FILE)
        return FoundPolicy(checkpoint, "a policy folder", None)
    if re.fullmatch(r"step-\d+", path.name) and (path / "learner").is_dir():
        run = path.parent.parent
        raise PolicyError(
            f"{path} is the learner's state, from which run {run.name} continues, and not a policy; name the run "
            f"({run}) once it has finished: its policy is then in {run / 'policy'}"
        )
    if hub and not path.exists():
        return FoundPolicy(checkpoint, "a policy of the model hub", None)
    raise PolicyError(
        f"no policy at {checkpoint}: expected a Hugging Face folder with config.json, or a run folder such as "
        "runs/demo; SET=policy.hub=true allows a hub name"
    )


def load_checkpoint_config(checkpoint: str, config_paths: list[str], overrides: list[str]) -> tuple[Config, str]:
    """The settings to run a checkpoint with, and a sentence that says which policy and settings were found.

    Without a config named by the user, those of the run that trained the policy are used, else `FALLBACK_CONFIG`.

    Raises:
        PolicyError: there is no such checkpoint.
        ConfigError: a config is wrong.
    """
    found = find_policy(checkpoint, hub=load_config(config_paths, overrides).policy.hub)
    paths = config_paths or [str(found.run_config or FALLBACK_CONFIG)]
    config = load_config(paths, [*overrides, f"policy.path={json.dumps(found.path)}"])
    return config, f"{found.description} ({found.path}), settings of {', '.join(paths)}"


def load_predictions_config(predictions: Path, config_paths: list[str], overrides: list[str]) -> tuple[Config, str]:
    """The settings that stored answers were given under, and a sentence that says where they were found.

    Raises:
        ConfigError: a config is wrong.
    """
    folder = predictions.parent
    beside = [folder / SETTINGS_FILE] if (folder / SETTINGS_FILE).is_file() else []
    of_run = [folder.parent / CONFIG_FILE] if _is_run(folder.parent) else []
    paths = config_paths or [str(path) for path in (*beside, *of_run, Path(FALLBACK_CONFIG))][:1]
    return load_config(paths, overrides), f"stored answers, settings of {', '.join(paths)}"


def _is_policy(path: Path) -> bool:
    return "model_type" in (_config_of(path) or {})


def _is_run(path: Path) -> bool:
    return {"rollout", "learner"} <= (_config_of(path) or {}).keys()


def _config_of(path: Path) -> dict[str, object] | None:
    return read_json_object(path / "config.json", "restore it, or name another CHECKPOINT=") if path.is_dir() else None
