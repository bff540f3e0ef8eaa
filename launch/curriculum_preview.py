"""`make curriculum-preview CONFIG=`: what a run would draw from its data, stage by stage, without running it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from dig_rl.config import load_config
from dig_rl.curriculum import open_curriculum, stage_config
from dig_rl.data import load_examples
from dig_rl.errors import ConfigError
from dig_rl.reporting.curriculum_preview import (
    count_table,
    draw_everything,
    kind_table,
    notes,
    plot_preview,
    stage_table,
)
from launch.arguments import add_settings
from launch.next_steps import print_next, training_with
from launch.terminal import end_with_message

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse arguments, draw, print, write the picture."""
    parser = argparse.ArgumentParser(prog="make curriculum-preview", description=__doc__)
    add_settings(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs", "curriculum-preview"), help="folder of the picture (OUT=)"
    )
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    data = config.data
    examples = load_examples(
        data.path,
        data.train_split,
        allow_no_change=data.allow_no_change,
        box_target=data.box_target,
        check_images=False,
    )
    curriculum = open_curriculum(config, examples, ROOT)
    for stage in curriculum.stages:
        stage_config(config, stage)
    bound = "at most " if curriculum.is_open else ""
    title = f"{config.curriculum} on {data.path}: {bound}{curriculum.total_steps} steps of "
    title += f"{config.rollout.prompts_per_step} pairs, from {len(examples)}"
    drawn = draw_everything(curriculum)
    console = Console(highlight=False)
    console.print(title, markup=False, soft_wrap=True)
    console.print(stage_table(drawn), count_table(drawn), kind_table(drawn), sep="")
    for note in notes(drawn):
        console.print(f"- {note}", markup=False, soft_wrap=True)
    picture = arguments.out / f"{Path(config.curriculum).stem}.png"
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        plot_preview(drawn, picture, title)
    except OSError as error:
        raise ConfigError(f"cannot write {picture}: {error.strerror}; name another folder with OUT=") from error
    console.print(f"picture: {picture}", markup=False, soft_wrap=True)
    print_next(training_with(arguments.config, arguments.set))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
