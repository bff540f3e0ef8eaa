"""`make report RUN=`: rebuild `report.html` of a run from its folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dig_rl.errors import DigRlError
from dig_rl.next_command import next_command
from dig_rl.reporting.report import before_after_table, write_report
from dig_rl.summary import read_summary


def main(arguments: list[str] | None = None) -> int:
    """Write the report and say where it is; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make report", description=__doc__)
    parser.add_argument("--run", default="demo", help="name of the run (RUN=; default: %(default)s)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    options = parser.parse_args(arguments)
    try:
        page = write_report(options.runs_dir / options.run)
        summary = read_summary(options.runs_dir / options.run)
    except DigRlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if summary is not None:
        print(before_after_table(summary))
    print(f"report: {page}\nOpen it in a browser; the same curves live: {next_command('tensorboard')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
