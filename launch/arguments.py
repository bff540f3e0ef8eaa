"""Options that many entry points share, and how the text of a make variable becomes several values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dig_rl.errors import ConfigError
from dig_rl.overrides import split_overrides
from dig_rl.run_folder import check_run_name

_WORD = re.compile(r"""'([^']*)'(?=\s|$)|"([^"]*)"(?=\s|$)|(\S+)""")


def add_settings(parser: argparse.ArgumentParser, files: str = "TOML files, later ones win") -> None:
    """Add `--config` and `--set`, which `load_config` takes; the arguments are called `config` and `set`.

    Args:
        parser: of the entry point.
        files: what `--config` means there.
    """
    add_list(parser, "--config", f"{files} (CONFIG=)", split_paths)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser, of: str = "the settings") -> None:
    """Add `--set` alone."""
    add_list(parser, "--set", f"overrides of {of}, e.g. learner.lr=1e-5 (SET=)", split_overrides, "KEY=VALUE")


def add_list(
    parser: argparse.ArgumentParser,
    option: str,
    help_text: str,
    split: Callable[[str], list[Any]],
    metavar: str | None = None,
    default: Sequence[Any] = (),
) -> None:
    """Add an option whose values add up, one a word or several in one: losing the first of two would be a trap.

    Args:
        parser: of the entry point.
        option: as `--only`.
        help_text: what its values are.
        split: tells the values of one word apart.
        metavar: stands for a value in the help.
        default: values where the option is not given; given without a value, it has none.
    """
    kinds: dict[str, Any] = {"action": _ExtendBySplitting, "split": split}
    parser.add_argument(option, nargs="*", default=list(default), help=help_text, metavar=metavar, **kinds)


def split_words(text: str) -> list[str]:
    """Words between white space; one in quotes may hold some."""
    return ["".join(found) for found in _WORD.findall(text)]


def split_numbers(text: str) -> list[int]:
    """Whole numbers between white space.

    Raises:
        ConfigError: a word is none.
    """
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise ConfigError(f"expected whole numbers, as 0 1 2, found {text!r}") from None


def split_paths(text: str) -> list[str]:
    """Paths of existing files: all of the text if there is one of that name, else its words.

    Raises:
        ConfigError: several words, one of which is no file.
    """
    words = split_words(text)
    if Path(text).is_file() or len(words) < 2:
        return [text] if Path(text).is_file() else words
    for word in words:
        if not Path(word).is_file():
            raise ConfigError(
                f"no config file at {word}, one of CONFIG={text}; where a path has a space in it, quote it once more, "
                """as CONFIG="'my folder/a.toml' b.toml\""""
            )
    return words


def chosen_run(arguments: argparse.Namespace) -> str:
    """`--run`, else the name of the last `--config`.

    Raises:
        ConfigError: there is neither, or it is not usable.
    """
    name = arguments.run or run_name(Path(arguments.config[-1]).stem if arguments.config else "")
    if not name:
        raise ConfigError("a run needs a name; give it one with RUN=")
    return check_run_name(name)


def run_name(text: str) -> str:
    """`text` with a sign for every run of letters that the name of a run must not hold; empty if none is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")


class _ExtendBySplitting(argparse.Action):
    def __init__(self, *args: Any, split: Callable[[str], list[Any]], **named: Any) -> None:
        super().__init__(*args, **named)
        self._split = split

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        found = [part for value in values for part in self._split(value)]
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, found if before is self.default else [*before, *found])
