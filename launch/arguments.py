"""Options that many entry points share."""

from __future__ import annotations

import argparse


def add_settings(parser: argparse.ArgumentParser, files: str = "TOML files, later ones win") -> None:
    """Add `--config` and `--set`, which `load_config` takes; the arguments are called `config` and `set`.

    Args:
        parser: of the entry point.
        files: what `--config` means there.
    """
    parser.add_argument("--config", nargs="*", action="extend", default=[], help=f"{files} (CONFIG=)")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser, of: str = "the settings") -> None:
    """Add `--set` alone. Given twice, the second adds to the first: losing the first without a word would be a trap."""
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"overrides of {of}, e.g. learner.lr=1e-5 (SET=)",
    )
