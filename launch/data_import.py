"""Make a data folder of a published data set, from a local copy: `make data-import FORMAT= FROM= OUT=`.

The folder appears when it is complete; stopped or failed, nothing is left. An existing folder is never overwritten.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from dig_rl.data import Split
from dig_rl.exchange.importing import LAYOUTS, import_dataset
from dig_rl.next_command import next_command
from launch.item_progress import item_progress
from launch.next_steps import after_data, print_next
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments, import, say what was left out and what comes next."""
    known = "\n".join(
        f"  {name:15} {layout.title}\n{'':18}{layout.page}\n{'':18}licence: {layout.licence}\n{'':18}{layout.expected}"
        for name, layout in LAYOUTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="make data-import",
        description=__doc__,
        epilog=f"formats:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, choices=LAYOUTS, help="published layout, see below (FORMAT=)")
    parser.add_argument("--from", required=True, type=Path, dest="root", help="folder in that layout (FROM=)")
    parser.add_argument("--out", required=True, type=Path, help="data folder to make (OUT=)")
    parser.add_argument(
        "--split", choices=get_args(Split), help="put every pair into this split (SPLIT=; default: as published)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave unusable entries out and count them (SKIP_BAD=1; default: stop)"
    )
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    layout = LAYOUTS[options.format]
    with item_progress("pairs") as show:
        summary = import_dataset(
            layout, options.root, options.out, split=options.split, skip_bad=options.skip_bad, on_progress=show
        )
    for message in summary.messages:
        print(f"left out: {message}")
    if summary.skipped:
        print(f"left out {summary.skipped.total()} in all, by reason: {dict(summary.skipped)}")
    print(f"{options.out}: {summary.num_pairs} pairs {summary.pairs_by_split} of {layout.title}")
    print(f"licence: {layout.licence}; see {layout.page}")
    print_next(next_command("data-check", DATA=options.out), after_data(options.out))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
