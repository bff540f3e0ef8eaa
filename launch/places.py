"""A home folder that cannot be written, or a TMPDIR that compilers cannot use: libraries are pointed elsewhere.

Runs before any other import of a command, on the system's Python too: standard library only, and no syntax newer than
Python 3.7.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = Path(os.devnull)
UNQUOTABLE = re.compile(r"[^\w@%+=:,./-]")
"""A letter of a path that a shell would not take for itself."""


def provide_caches(environment: MutableMapping[str, str]) -> None:
    """Point the caches of Hugging Face, vLLM, pip, Triton and matplotlib to a folder that can be written.

    Models that were downloaded into a home folder are still read there. A place that the user names stays as it is.

    Args:
        environment: of this process, which those that it starts inherit.
    """
    home = _home()
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    if can_write(caches):
        return
    folder = ROOT / ".cache" / "home"
    if not can_write(folder):
        folder = Path(tempfile.gettempdir()) / f"dig-rl-{os.getuid()}"
    environment["XDG_CACHE_HOME"] = str(folder)
    environment.setdefault("TRITON_HOME", str(folder))
    environment.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    if (caches / "huggingface").is_dir():
        environment.setdefault("HF_HOME", str(caches / "huggingface"))
    if home == NOWHERE:
        environment["HOME"] = str(folder)


def provide_temporary(environment: MutableMapping[str, str]) -> None:
    """Use `/tmp` where TMPDIR has signs of a shell in it, or letters beyond ASCII.

    Torch writes it into commands of its compiler unquoted, and Ray fails on such letters.
    """
    folder = environment.get("TMPDIR", "")
    is_plain = not UNQUOTABLE.search(folder) and not re.search(r"[^\x00-\x7f]", folder)
    if not is_plain and can_write(Path("/tmp")):
        environment["TMPDIR"] = "/tmp"


def can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(str(folder), os.W_OK | os.X_OK)


def _home() -> Path:
    try:
        return Path.home()
    except (RuntimeError, KeyError):  # neither HOME nor an entry in the list of users
        return NOWHERE
