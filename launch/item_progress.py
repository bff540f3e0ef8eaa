"""What commands show that go through many items: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def item_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with items done and items in all.

    Args:
        what: the items, as `pairs`.
    """
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    row = bar.add_task(what, total=None)
    last_line = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last_line
        bar.update(row, completed=done, total=total)
        if not bar.console.is_terminal and time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"{done}/{total} {what}", flush=True)

    if bar.console.is_terminal:
        bar.start()
    try:
        yield update
    finally:
        if bar.console.is_terminal:
            bar.stop()
