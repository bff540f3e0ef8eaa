"""Our rewards in other trainers: TRL, EasyR1, verl. Nothing here imports them, and their environments need little."""

from __future__ import annotations

import importlib.util
import sys

_PYTHON = (3, 11)
_NEEDED = ("numpy", "scipy", "pydantic>=2")
"""All that is imported besides the standard library."""


def check_environment() -> None:
    """Say in one message what the other trainer's environment lacks.

    Raises:
        ImportError: this Python is too old, or a package is missing or too old.
    """
    if sys.version_info < _PYTHON:
        raise ImportError(
            f"the rewards of dig_rl need Python 3.11 or later, found {sys.version.split()[0]} ({sys.executable}); run "
            "the trainer with such a Python"
        )
    cause: ImportError | None = None
    lacking = [name for name in ("numpy", "scipy") if importlib.util.find_spec(name) is None]
    try:
        from pydantic import TypeAdapter  # noqa: F401, version 1 has none
    except ImportError as error:
        cause = error
        lacking.append("pydantic>=2")
    if lacking:
        raise ImportError(
            f"the rewards of dig_rl need {', '.join(_NEEDED)} and nothing else; this environment lacks "
            f"{', '.join(lacking)}: {sys.executable} -m pip install {' '.join(map(repr, lacking))}"
        ) from cause


check_environment()
