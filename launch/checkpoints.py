"""What CHECKPOINT= and PREDICTIONS= may name, and the settings that belong to it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dig_rl.checkpoint import BEST_FILE
from dig_rl.config import Config, load_config
from dig_rl.durable import read_json_object
from dig_rl.errors import CheckpointError, PolicyError
from dig_rl.layers import build, merge_tables, read_layers, with_overrides
from dig_rl.overrides import override
from dig_rl.policy_limits import check_policy_limits
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


def find_policy(checkpoint: str, *, may_download: Callable[[], bool] = lambda: False) -> FoundPolicy:
    """Say which policy is meant.

    Args:
        checkpoint: a Hugging Face folder; a run folder, whose trained policy is taken; or a checkpoint of a run, which
            is exported into its own folder on first use.
        may_download: whether a name that is no folder is one of the model hub; asked only then.

    Raises:
        PolicyError: there is nothing of the kind, or a run without a policy yet.
        CheckpointError: the checkpoint is not there or cannot be exported.
    """
    path = Path(checkpoint)
    if _is_run(path):
        if not _is_policy(path / "policy"):
            status = (read_summary(path) or {}).get("status", "not yet started")
            raise PolicyError(
                f"run {path} has no policy yet: it is written when training ends, and the run is {status}; continue it "
                f"with `make train` and the same RUN=, or name one of its checkpoints, as {path}/checkpoints/step-10"
            )
        return FoundPolicy(str(path / "policy"), f"the trained policy of run {path.name}", path / CONFIG_FILE)
    if _is_policy(path):
        run = path.absolute().parent
        if path.name == "policy" and _is_run(run):
            return FoundPolicy(checkpoint, f"the trained policy of run {run.name}", path.parent / CONFIG_FILE)
        return FoundPolicy(checkpoint, "a policy folder", None)
    if path.parent.name == "checkpoints" and _is_run(path.parent.parent):
        folder = step_folder(path)
        return FoundPolicy(
            str(_exported(folder)), f"{folder.name} of run {path.parent.parent.name}", run_config_of(folder)
        )
    if not path.exists() and may_download():
        return FoundPolicy(checkpoint, "a policy of the model hub", None)
    raise PolicyError(
        f"no policy at {checkpoint}: expected a Hugging Face folder with config.json, or a run folder such as "
        "runs/demo, or a checkpoint such as runs/demo/checkpoints/best; SET=policy.hub=true allows a hub name"
    )


def step_folder(checkpoint: Path) -> Path:
    """Folder of a checkpoint: `.../checkpoints/step-N`, or `.../checkpoints/best` for what `best.json` names.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if checkpoint.name == "best":
        pointer = read_json_object(checkpoint.with_name(BEST_FILE), "name the checkpoint itself, as step-10")
        if pointer is None:
            raise CheckpointError(
                f"{checkpoint.parent} has no {BEST_FILE}: a run has a best checkpoint once it was evaluated on "
                "validation pairs (evaluation.every_steps); name one by its number, as step-10"
            )
        checkpoint = checkpoint.with_name(str(pointer.get("folder")))
    if not re.fullmatch(r"step-\d+", checkpoint.name) or not (checkpoint / "learner").is_dir():
        there = sorted(path.name for path in checkpoint.parent.glob("step-*"))
        raise CheckpointError(
            f"no checkpoint at {checkpoint}: expected a folder step-N of a run's checkpoints; there are: "
            f"{', '.join(there) or 'none'}"
        )
    return checkpoint


def run_config_of(step: Path) -> Path:
    """`config.json` of the run that a checkpoint belongs to.

    Raises:
        CheckpointError: the checkpoint lies outside its run.
    """
    path = step.absolute().parent.parent / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: a checkpoint is read with the config of its run; leave it in its run"
        )
    return path


def _exported(step: Path) -> Path:
    """Policy of a checkpoint, kept inside its folder, so that it goes when the checkpoint goes."""
    policy = step / "policy"
    if not _is_policy(policy):
        print(f"exporting {step} to {policy}", flush=True)
        # A process of its own: the weights leave memory before an engine is started.
        command = [sys.executable, "-m", "launch.export", "--checkpoint", str(step), "--out", str(policy)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise CheckpointError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    return policy


def load_checkpoint_config(checkpoint: str, config_paths: list[str], overrides: list[str]) -> tuple[Config, str]:
    """The settings to run a checkpoint with, and a sentence that says which policy and settings were found.

    They are those of the run that trained the policy, under the config that the user names; for a policy of no run,
    that config alone, or else `FALLBACK_CONFIG`.

    Raises:
        PolicyError: there is no such checkpoint.
        ConfigError: a config is wrong.
    """
    # A name that is no folder belongs to no run: only then is a setting asked for before the run is known.
    found = find_policy(checkpoint, may_download=lambda: settings_over_run(None, config_paths, overrides)[0].policy.hub)
    of_policy = [*overrides, override("policy.path", found.path)]
    config, files = settings_over_run(found.run_config, config_paths, of_policy)
    check_policy_limits(config)
    return config, f"{found.description} ({found.path}), settings of {files}"


def load_predictions_config(predictions: Path, config_paths: list[str], overrides: list[str]) -> tuple[Config, str]:
    """The settings that stored answers were given under, and a sentence that says where they were found.

    Raises:
        ConfigError: a config is wrong.
    """
    folder = predictions.parent
    beside = [folder / SETTINGS_FILE] if (folder / SETTINGS_FILE).is_file() else []
    of_run = [folder.parent / CONFIG_FILE] if _is_run(folder.parent) else []
    config, files = settings_over_run(next(iter([*beside, *of_run]), None), config_paths, overrides)
    return config, f"stored answers, settings of {files}"


def settings_over_run(run_config: Path | None, config_paths: list[str], overrides: list[str]) -> tuple[Config, str]:
    """The settings of a run with the user's words over them, judged together, and the files that they come from.

    Reward terms that the user's files name stand in place of the run's, as in training in place of the defaults.

    Args:
        run_config: `config.json` of the run; None where there is none.
        config_paths: TOML files of the user.
        overrides: `section.key=value` strings.

    Raises:
        ConfigError: a config is wrong.
    """
    if run_config is None:
        paths = config_paths or [FALLBACK_CONFIG]
        return load_config(paths, overrides), ", ".join(paths)
    of_run, of_user = read_layers([run_config], []), read_layers(config_paths, [])
    if "terms" in of_user.get("reward", {}):
        of_run["reward"].pop("terms", None)
    files = ", ".join(map(str, [run_config, *config_paths]))
    return build(Config, with_overrides(merge_tables(of_run, of_user), overrides), where=files), files


def _is_policy(path: Path) -> bool:
    return "model_type" in (_config_of(path) or {})


def _is_run(path: Path) -> bool:
    return {"rollout", "learner"} <= (_config_of(path) or {}).keys()


def _config_of(path: Path) -> dict[str, object] | None:
    return read_json_object(path / "config.json", "restore it, or name another CHECKPOINT=") if path.is_dir() else None
