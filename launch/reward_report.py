"""`make reward-report CONFIG=`: what a reward pays scripted policies, and where it pays nonsense."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dig_rl.config import load_config
from dig_rl.durable import write_durably
from dig_rl.reporting.reward_report import draw_table, markdown_table, reward_table, warnings
from launch.arguments import add_settings
from launch.next_steps import print_next, training_with
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, score, print, write the table and its picture."""
    parser = argparse.ArgumentParser(prog="make reward-report", description=__doc__)
    add_settings(parser)
    parser.add_argument("--out", type=Path, default=Path("runs", "reward-report"), help="folder to write (OUT=)")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    rows = reward_table(config.reward, Path.cwd())
    title = ", ".join(map(str, arguments.config)) or "the shipped defaults"
    terms = " + ".join(f"{term.weight:g} * {name}" for name, term in config.reward.terms.items())
    found = [f"warning: {warning}" for warning in warnings(rows)] or ["no nonsense is paid"]
    text = (
        f"# Paid under {title}\n\n{terms}\n\n{markdown_table(rows)}\n" + "\n".join(f"- {line}" for line in found) + "\n"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_durably(arguments.out / "table.md", text)
    draw_table(rows, arguments.out / "table.png", f"{title}: {terms}")
    print(text)
    print(f"written to {arguments.out}/table.md and table.png")
    print_next(training_with(arguments.config, arguments.set))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
