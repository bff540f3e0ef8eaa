"""`make data-check DATA=`: is a data folder sound, does anything give the answer away, and what does it look like?

Writes `check.json` and `contact_sheet.html`; the exit code is 1 if the folder has errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dig_rl.durable import write_durably
from dig_rl.errors import DataError
from dig_rl.faults import counted
from dig_rl.inspection.check import DataCheck, check_folder, figures_of
from dig_rl.inspection.findings import Finding
from dig_rl.inspection.masks import blender_ids, numpy_ids
from dig_rl.inspection.pairs import default_workers
from dig_rl.inspection.sheet import contact_sheet
from launch.next_steps import after_data, print_next
from launch.terminal import end_with_message

ID_RENDERERS = {"none": None, "numpy": numpy_ids, "blender": blender_ids}
TAGS = (
    "boxes are taken in stored pixels, and no command here turns a picture. datasets.load_dataset and viewers would: "
    "drop the tags for them (exiftool -Orientation= FILE), or give them what `make data-export` writes"
)
MAX_PRINTED = 30
"""Kinds of findings of each severity on the terminal; `check.json` has all."""
MAX_LINES = 5
"""Lines named of further findings of a kind."""


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make data-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="data folder (DATA=)")
    parser.add_argument("--out", type=Path, help="folder to write (OUT=; default: <data>/check)")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="processes (WORKERS=; default: all cores)"
    )
    parser.add_argument(
        "--sheet-pairs", type=int, default=200, help="pairs on the contact sheet (SHEET_PAIRS=; %(default)s)"
    )
    parser.add_argument(
        "--masks",
        choices=list(ID_RENDERERS),
        default="numpy",
        help="draw stored scenes again and compare every box with the object's pixels (MASKS=; default: %(default)s)",
    )
    parser.add_argument(
        "--allow-no-change", action="store_true", help="accept pairs without a change (ALLOW_NO_CHANGE=1)"
    )
    return parser.parse_args()


def main() -> None:
    """Check, print, write."""
    options = read_options()
    console = Console(highlight=False)
    check = _check(options, console)
    figures = figures_of(check)
    out = options.out or options.data / "check"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_durably(out / "check.json", json.dumps(figures, indent=1) + "\n")
        write_durably(out / "contact_sheet.html", contact_sheet(check, figures, max(0, options.sheet_pairs)))
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}; name a writable folder with OUT=") from None
    console.print(_summary(check, figures))
    if check.num_tagged:
        print(f"turning tags: {check.num_tagged} of {2 * len(check.pairs)} pictures have one; {TAGS}")
    for title, findings in (("warning", check.warnings), ("error", check.errors)):
        _print_findings(console, title, findings)
    print(f"written: {out}/check.json and {out}/contact_sheet.html, to be opened in a browser")
    if check.errors:
        raise DataError(
            f"{options.data}: {_count(check.errors, 'error')}, {_count(check.warnings, 'warning')}; "
            "mend the folder, or make it again"
        )
    print(f"{options.data} is sound, {_count(check.warnings, 'warning')}")
    print_next(after_data(options.data))


def _check(options: argparse.Namespace, console: Console) -> DataCheck:
    with Progress(
        TextColumn("checking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        row = bar.add_task("pairs", total=None)
        return check_folder(
            options.data,
            workers=max(1, options.workers),
            allow_no_change=options.allow_no_change,
            make_ids=ID_RENDERERS[options.masks],
            on_progress=lambda done, total: bar.update(row, completed=done, total=total),
        )


def _summary(check: DataCheck, figures: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, title=figures["data"], title_justify="left")
    counts = figures["pairs_by_split_and_count"]
    splits = ", ".join(f"{split} {sum(by_count.values())}" for split, by_count in counts.items())
    table.add_row("pairs", f"{figures['num_pairs']}" + (f" ({splits})" if splits else ""))
    for split, by_count in counts.items():
        table.add_row(f"  {split}", ", ".join(f"{pairs} with {count}" for count, pairs in by_count.items()))
    for split, by_kind in figures["changes_by_split_and_kind"].items():
        table.add_row(f"  kinds, {split}", ", ".join(f"{kind} {number}" for kind, number in by_kind.items()))
    for key, label in (
        ("explained", "clearly changed pixels within boxes"),
        ("visible_fraction", "visible part of a changed object"),
        ("box_share_of_picture", "box, share of the picture"),
    ):
        if figures[key]:
            spread = figures[key]
            table.add_row(label, f"mean {spread['mean']:.1%}, least {spread['min']:.1%}, most {spread['max']:.1%}")
    duplicates = figures["duplicates"]
    near = "not searched" if duplicates["near"] is None else f"{duplicates['near']} nearly"
    table.add_row("repeated", f"{duplicates['pictures']} pictures, {duplicates['scenes']} scenes, {near}")
    for given, real in check.folders_outside.items():
        table.add_row("pictures outside", f"{given} lies in {real}: copy both, or the folder cannot travel")
    hashes = "compared with the manifest" if check.has_manifest else "no manifest"
    table.add_row("hashes", hashes)
    drawn = "compared with the pixels of their objects" if check.boxes_drawn else "no scene to draw them from"
    table.add_row("boxes", drawn)
    verdicts = [item.verdict for item in check.balance]
    table.add_row(
        "balance",
        f"{verdicts.count('balanced')} questions answered well, {verdicts.count('look')} worth a look, "
        f"{verdicts.count('too few')} with too little to tell",
    )
    return table


def _count(findings: Sequence[Finding], name: str) -> str:
    return f"{len(findings)} {name}" + ("" if len(findings) == 1 else "s")


def _print_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    kinds = counted(findings, lambda finding: finding.problem)
    for finding, others in kinds[:MAX_PRINTED]:
        console.print(Text(f"{title}: {finding}{_more(others)}"), soft_wrap=True)
    left_out = sum(1 + len(others) for _finding, others in kinds[MAX_PRINTED:])
    if left_out:
        console.print(f"... and {left_out} more {title}s in check.json")


def _more(others: Sequence[Finding]) -> str:
    """How many findings of the same kind there are, and where the first of them are."""
    if not others:
        return ""
    lines = list(dict.fromkeys(finding.line for finding in others if finding.line is not None))
    named = ", ".join(map(str, lines[:MAX_LINES])) + (", ..." if len(lines) > MAX_LINES else "")
    return f" (and {len(others)} more like it" + (f", in lines {named}" if lines else "") + ")"


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
