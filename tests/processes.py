"""Which processes a test has left behind, orphans included."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

MARK = "STARTED_BY"
"""Environment variable that a test sets to its folder before it starts anything."""


def started_by(folder: Path) -> list[psutil.Process]:
    """Processes that inherited the mark of the test with this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                found.append(process)
    return found
