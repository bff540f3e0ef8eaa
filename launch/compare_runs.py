"""`make compare-runs`: several runs side by side in one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dig_rl.next_command import next_command
from dig_rl.reporting.run_comparison import write_run_comparison
from launch.arguments import add_list, split_words
from launch.next_steps import print_next
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, write the page, say where it is."""
    parser = argparse.ArgumentParser(prog="make compare-runs", description=__doc__)
    add_list(parser, "--runs", "names; the first is what others are compared with (RUNS=)", split_words)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--out", type=Path, default=Path("runs", "compare-runs.html"), help="page to write (OUT=)")
    arguments = parser.parse_args()
    page = write_run_comparison([arguments.runs_dir / name for name in arguments.runs], arguments.out)
    print(f"comparison: {page}, to be opened in a browser; one run in full:")
    print_next(next_command("report", RUN=arguments.runs[-1]))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
