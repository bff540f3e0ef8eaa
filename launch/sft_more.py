"""One run of the control `sft_more` of `make ablations`: supervised training for a given time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dig_rl.config import load_config
from dig_rl.data import load_examples
from dig_rl.layers import read_layers
from dig_rl.run_folder import RunFolder
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, train."""
    parser = argparse.ArgumentParser(prog="python -m launch.sft_more", description=__doc__)
    parser.add_argument("--config", required=True, help="settings; policy.path is where it begins")
    parser.add_argument("--run", required=True, help="name of the run; the same name continues it")
    parser.add_argument("--runs-dir", default="runs", help="folder of all runs")
    parser.add_argument("--seconds", type=float, required=True, help="time to train for")
    parser.add_argument("--training", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training")
    arguments = parser.parse_args()
    config = load_config([arguments.config])
    data = config.data
    with RunFolder.open(arguments.runs_dir, arguments.run, config) as run:
        options: dict[str, Any] = {"allow_no_change": data.allow_no_change, "box_target": data.box_target}
        examples = load_examples(data.path, data.train_split, **options)
        validation = load_examples(data.path, data.validation_split, **options)
        # Imported here: torch and TRL take seconds, and wrong data need neither.
        from dig_rl.sft_more import train_more, training_settings

        settings, levels = training_settings(read_layers([], arguments.training), config, where="--training")
        train_more(
            settings,
            Path(config.policy.path),
            Path(data.path),
            examples,
            validation,
            levels=levels,
            seconds=arguments.seconds,
            out=run.path,
        )


if __name__ == "__main__":
    sys.exit(end_with_message(main, "the same command continues the run"))
