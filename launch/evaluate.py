"""`make eval`: answer the held-out pairs of a data folder greedily with vLLM and print the figures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import launch_rollouts
from dig_rl.config import load_config
from dig_rl.data import load_examples
from dig_rl.durable import write_durably
from dig_rl.evaluate import evaluate_greedily
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, answer, print, write."""
    parser = argparse.ArgumentParser(prog="make eval", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="policy folder, e.g. runs/demo/policy (CHECKPOINT=)")
    parser.add_argument("--data", help="data folder (DATA=; default: data.path of the config)")
    parser.add_argument("--config", nargs="*", default=[], help="TOML files, later ones win (CONFIG=)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides (SET=)")
    parser.add_argument("--out", help="folder for figures and answers (OUT=; default: runs/eval/<name of checkpoint>)")
    arguments = parser.parse_args()
    overrides = [*arguments.set, f"policy.path={json.dumps(arguments.checkpoint)}"]
    if arguments.data:
        overrides.append(f"data.path={json.dumps(arguments.data)}")
    config = load_config(arguments.config, overrides)
    data = config.data
    examples = load_examples(
        data.path, data.heldout_split, allow_no_change=data.allow_no_change, box_target=data.box_target
    )[: config.evaluation.max_pairs]
    out = Path(arguments.out or Path("runs", "eval", "-".join(Path(arguments.checkpoint).parts[-2:])))
    with Cluster(config.cluster, out / "logs", config.rollout.num_workers) as cluster:
        rollouts, policy = launch_rollouts(cluster, config)
        figures = evaluate_greedily(rollouts, policy, examples, config, out / "predictions.jsonl")
    write_durably(out / "figures.json", json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:16} {value:.4g}")
    print(f"written to {out}")


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
