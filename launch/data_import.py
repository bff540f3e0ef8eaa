"""Make a data folder of your own pairs, or of a published data set: `make data-import FORMAT= FROM= OUT=`.

The folder appears when it is complete; stopped or failed, nothing is left. An existing folder is never overwritten.

Your own pairs (FORMAT=pairs): pictures of the same names in a/ and b/, and beside them a table (*.csv, *.tsv, *.jsonl,
COCO's *.json) with boxes, or masks/ with a PNG of what changed for each pair. docs/data.md has the columns.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from dig_rl.boxes import BoxFormat
from dig_rl.data import Split
from dig_rl.errors import ConfigError
from dig_rl.exchange.importing import LAYOUTS, ImportSummary, import_dataset
from dig_rl.exchange.own_pairs import DEFAULT_SHARES, import_own_pairs, read_shares
from dig_rl.next_command import next_command
from launch.item_progress import item_progress
from launch.next_steps import after_data, print_next
from launch.terminal import end_with_message

OWN = "pairs"


def read_options() -> argparse.Namespace:
    known = "\n".join(
        f"  {name:15} {layout.title}\n{'':18}{layout.page}\n{'':18}licence: {layout.licence}\n{'':18}{layout.expected}"
        for name, layout in LAYOUTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="make data-import",
        description=__doc__,
        epilog=f"published formats:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--format", required=True, choices=[OWN, *LAYOUTS], help="your own pairs, or a published layout (FORMAT=)"
    )
    parser.add_argument("--from", required=True, type=Path, dest="root", help="folder or, for pairs, table (FROM=)")
    parser.add_argument("--out", required=True, type=Path, help="data folder to make (OUT=)")
    parser.add_argument(
        "--boxes", choices=get_args(BoxFormat), help="how the boxes of pairs are written (BOXES=; default: as named)"
    )
    parser.add_argument(
        "--splits",
        help="shares of train, validation and test for pairs, by a hash of the name (SPLITS=; default: "
        f"{','.join(map(str, DEFAULT_SHARES))})",
    )
    parser.add_argument(
        "--split", choices=get_args(Split), help="put every pair into this split (SPLIT=; default: as published)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave unusable entries out and count them (SKIP_BAD=1; default: stop)"
    )
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    if options.format != OWN and (options.boxes or options.splits):
        raise ConfigError(f"BOXES= and SPLITS= are for FORMAT={OWN}; a published set has boxes and splits of its own")
    if options.split and options.splits:
        raise ConfigError("SPLIT= puts every pair into one split, SPLITS= shares them out; give one of them")
    return options


def main() -> None:
    """Parse arguments, import, say what was left out and what comes next."""
    options = read_options()
    shares = read_shares(options.splits) if options.splits else DEFAULT_SHARES
    common = {"split": options.split, "skip_bad": options.skip_bad}
    with item_progress("pairs") as show:
        if options.format == OWN:
            summary, notes = import_own_pairs(
                options.root, options.out, box_format=options.boxes, shares=shares, on_progress=show, **common
            )
        else:
            layout = LAYOUTS[options.format]
            summary = import_dataset(layout, options.root, options.out, on_progress=show, **common)
            notes = [f"source: {layout.title}", f"licence: {layout.licence}; see {layout.page}"]
    _tell(summary, notes, options.out)


def _tell(summary: ImportSummary, notes: list[str], out: Path) -> None:
    for message in summary.messages:
        print(f"left out: {message}")
    if summary.skipped:
        print(f"left out {summary.skipped.total()} in all, by reason: {dict(summary.skipped)}")
    boxes = f"{summary.num_boxes} boxes {summary.boxes_by_kind}"
    print(f"{out}: {summary.num_pairs} pairs {summary.pairs_by_split}, {boxes}")
    for note in notes:
        print(note)
    unchanged = summary.num_unchanged > 0
    if unchanged:
        print(f"{summary.num_unchanged} pairs have no change; the commands below allow such pairs")
    check = next_command("data-check", DATA=out, ALLOW_NO_CHANGE="1" if unchanged else "")
    print_next(check, after_data(out))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
