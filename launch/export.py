"""`make export`: any checkpoint of a run as a Hugging Face folder, without starting an engine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dig_rl.actors.learner_files import consolidated_weights
from dig_rl.checkpoint import find_damage
from dig_rl.config import Config, load_config
from dig_rl.errors import CheckpointError, ConfigError
from dig_rl.next_command import next_command
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.records import name_differences
from dig_rl.policy.save import save_policy
from dig_rl.policy.trainable import merged_parameters, merged_state
from launch.checkpoints import run_config_of, step_folder
from launch.next_steps import print_next
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, export, say what to do with it."""
    parser = argparse.ArgumentParser(prog="make export", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="runs/x/checkpoints/step-12, or .../best (CHECKPOINT=)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist (OUT=)")
    arguments = parser.parse_args()
    folder = step_folder(Path(arguments.checkpoint))
    settings = run_config_of(folder)
    export(folder, load_config([settings]), arguments.out)
    print(f"policy of {folder} written to {arguments.out}")
    print_next(next_command("eval", CHECKPOINT=arguments.out, CONFIG=[settings]))


def export(checkpoint: Path, config: Config, out: Path) -> None:
    """Write the policy of a checkpoint as a Hugging Face folder.

    Architecture, tokenizer and image processor are those of the policy that the run began with.

    Args:
        checkpoint: `step-N` folder.
        config: of the run.
        out: must not exist.

    Raises:
        ConfigError: `out` exists or cannot be written.
        CheckpointError: the checkpoint is damaged, or does not fit the policy of the config.
        PolicyError: the policy that the run began with is gone.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; name another OUT=, or remove it")
    if damage := find_damage(checkpoint):
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: {damage}; name another one")
    frontend = load_frontend(config.policy, config.data.box_target)
    model = load_model(config.policy)
    weights = consolidated_weights(checkpoint / "learner", getattr(torch, config.policy.dtype))
    weights = merged_state(weights, config.learner.lora)
    shapes = {name: tuple(parts[0].shape) for name, parts, _ in merged_parameters(model)}
    tied = model.state_dict().keys() - shapes.keys()
    wrong = name_differences(shapes, weights.keys() - tied)
    if not wrong and (reshaped := [name for name in shapes if tuple(weights[name].shape) != shapes[name]]):
        wrong = f"{len(reshaped)} weights are of another shape, first {reshaped[0]}"
    if wrong:
        raise CheckpointError(
            f"checkpoint {checkpoint} does not fit {config.policy.path}, the policy that its run began with: {wrong}; "
            "restore that policy"
        )
    try:
        save_policy(model, frontend, {name: weights[name] for name in shapes}, out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error}; make room or make its folder writable") from error


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
