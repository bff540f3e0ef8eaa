"""`make replay RUN= STEP=`: score recorded rollouts again, and compute their loss and gradient, without an engine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dig_rl.config import Config
from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError
from dig_rl.metrics import read_metrics
from dig_rl.recording import Recording, read_recording
from dig_rl.replay import ScoreChange, loss_figures, score_again, score_changes
from dig_rl.run_folder import CONFIG_FILE
from launch.arguments import add_settings
from launch.checkpoints import find_policy, settings_over_run
from launch.terminal import end_with_message

_SHOWN = 10


def main() -> None:
    """Parse arguments, score, compute, compare, print, write."""
    parser = argparse.ArgumentParser(prog="make replay", description=__doc__)
    parser.add_argument("--run", default="demo", help="name of the run (RUN=; default: %(default)s)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--step", required=True, type=int, help="recorded step (STEP=)")
    parser.add_argument("--checkpoint", help="weights of the loss (CHECKPOINT=; default: those that sampled)")
    parser.add_argument("--no-loss", action="store_true", help="scores only, no model is loaded (NO_LOSS=1)")
    add_settings(parser, "TOML files over the run's settings, later ones win")
    parser.add_argument("--out", type=Path, help="folder to write (OUT=; default: runs/<run>/replay)")
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    run: Path = options.runs_dir / options.run
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"no run at {run}: expected a folder with {CONFIG_FILE}; RUN= names a run of {run.parent}")
    config, _ = settings_over_run(run / CONFIG_FILE, options.config, options.set)
    recording = read_recording(run / "rollouts", options.step)
    groups = score_again(recording, config, Path.cwd())
    changes = score_changes(recording.groups, groups)
    num_completions = sum(len(group.scores) for group in groups)
    print(f"step {recording.step}, stage {recording.stage}: {len(groups)} groups, {num_completions} completions")
    print(f"{len(changes)} completions are paid otherwise than they were")
    print("".join(map(_describe, changes[:_SHOWN])), end="")
    figures: dict[str, float] = {}
    if not options.no_loss:
        weights, note = choose_weights(run, recording, config, options.checkpoint)
        print(f"loss at the weights of {weights}{note}", flush=True)
        of_weights = config.model_copy(update={"policy": config.policy.model_copy(update={"path": weights})})
        figures = loss_figures(recording, groups, of_weights, reference_path=config.policy.path)
        recorded = next((line for line in read_metrics(run) if line["step"] == recording.step and line["stage"]), {})
        print(_table(figures, recorded))
    out: Path = options.out or run / "replay"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"step-{recording.step}.json"
    write_durably(path, json.dumps({"changes": list(map(_to_json, changes)), "figures": figures}, indent=2) + "\n")
    print(f"written to {path}")


def choose_weights(run: Path, recording: Recording, config: Config, checkpoint: str | None) -> tuple[str, str]:
    """Policy folder for the loss, and what the user should know about it.

    Args:
        run: the run folder.
        recording: tells how many optimiser steps the weights that sampled had made.
        config: of the run.
        checkpoint: what the user names instead; None looks for the weights that sampled.

    Raises:
        PolicyError, CheckpointError: there is no such policy.
    """
    if checkpoint is not None:
        return find_policy(checkpoint, may_download=lambda: config.policy.hub).path, ""
    version = recording.policy_version
    if version == 0:
        return config.policy.path, ", which sampled them"
    for same in _steps_with_the_weights_of(run, version, recording.step):
        step = run / "checkpoints" / f"step-{same}"
        if step.is_dir():
            return find_policy(str(step)).path, ", which sampled them"
    return find_policy(str(run)).path, (
        f"; there is no checkpoint of step {version}, which sampled them, so ratios and mismatch compare two policies"
    )


def _steps_with_the_weights_of(run: Path, version: int, before: int) -> list[int]:
    """Steps from `version` on, before step `before`, after which the weights are still those: none of them learned."""
    learned = [line["step"] for line in read_metrics(run) if line["step"] > version and "learner/loss" in line]
    return list(range(version, min([before, *learned])))


def _describe(change: ScoreChange) -> str:
    before = "masked" if change.before is None else f"{change.before.total:.3f} {change.before.terms}"
    after = f"{change.after.total:.3f} {change.after.terms}"
    return f"  pair {change.pair_id}, sample {change.sample}: {before} -> {after}  {change.text[-80:]!r}\n"


def _to_json(change: ScoreChange) -> dict[str, object]:
    before = None if change.before is None else vars(change.before)
    return {"pair_id": change.pair_id, "sample": change.sample, "before": before, "after": vars(change.after)}


def _table(figures: dict[str, float], recorded: dict[str, object]) -> str:
    lines = [f"{'figure':34} {'now':>12} {'then':>12}"]
    for name, value in figures.items():
        then = recorded.get(name)
        lines.append(f"{name:34} {value:12.6g} {then:12.6g}" if isinstance(then, float) else f"{name:34} {value:12.6g}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
