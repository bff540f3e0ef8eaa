"""The command that a user runs next, written so that it works as it is pasted into a shell.

No message puts a value into a command by itself: all of them ask here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dig_rl.overrides import override, parse_override, split_overrides

CALLED_FROM = "DIG_RL_CALLED_FROM"
"""Set by the Makefile: the folder of the shell that called make."""

Value = str | int | Path | Sequence[str | Path] | Mapping[str, Any] | None


def next_command(target: str, **variables: Value) -> str:
    """`make TARGET NAME=value ...`, quoted for a shell; make takes its variables as they stand.

    Args:
        target: of the Makefile.
        variables: by name. Several values, as for `CONFIG`, are a sequence; `SET` takes settings as they were given,
            or by key. A variable without a value is left out.
    """
    given = {
        name: _settings(value) if name == "SET" else _text(value)
        for name, value in variables.items()
        if value is not None
    }
    return " ".join([*_make(), target, *(f"{name}={shlex.quote(text)}" for name, text in given.items() if text)])


def _settings(value: Value) -> str:
    if isinstance(value, Mapping):
        return " ".join(override(key, one) for key, one in value.items())
    given = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    return " ".join(_alone(str(one)) for one in given)


def _alone(setting: str) -> str:
    """A setting so that others may stand beside it."""
    if split_overrides(setting) == [setting]:
        return setting
    return override(*parse_override(setting))


def _text(value: Value) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_word, map(str, value))) if len(value) != 1 else str(value[0])
    return str(value)


def _word(text: str) -> str:
    """One of several values, as `launch.arguments.split_words` reads it."""
    if not any(letter.isspace() for letter in text):
        return text
    return f'"{text}"' if '"' not in text else f"'{text}'"


def _make() -> list[str]:
    """`make`, with `-C` where it was called from another folder: printed paths are relative to this one."""
    caller = os.environ.get(CALLED_FROM)
    here = Path.cwd()
    return ["make"] if caller is None or Path(caller).resolve() == here else ["make", "-C", shlex.quote(str(here))]
