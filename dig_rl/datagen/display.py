"""What `make data` shows while it works."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dig_rl.datagen.build import BuildProgress

SECONDS_BETWEEN_LINES = 10.0


class BuildDisplay:
    """A progress bar with remaining time and rejections; plain lines where the output is not a terminal."""

    def __init__(self) -> None:
        """Prepare; `with` shows it."""
        self.progress: BuildProgress | None = None
        self.made_here = 0
        self._bar = Progress(
            TextColumn("pairs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("[dim]{task.fields[rejected]}"),
        )
        self._row = self._bar.add_task("pairs", total=None, rejected="")
        self._start = self._last_line = time.monotonic()
        self._first_done = 0

    def __enter__(self) -> BuildDisplay:
        """Show the bar."""
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        if self._bar.console.is_terminal:
            self._bar.stop()

    def update(self, progress: BuildProgress) -> None:
        """Show a new state."""
        if self.progress is None:
            self._first_done = progress.done
        self.progress, self.made_here = progress, progress.done - self._first_done
        rejected = f"rejected {progress.rejections.total()}"
        self._bar.update(self._row, completed=progress.done, total=progress.total, rejected=rejected)
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or progress.done == progress.total
        if due and not self._bar.console.is_terminal:
            self._last_line = now
            print(
                f"{progress.done}/{progress.total} pairs, {rejected}, {self.pairs_per_minute:.0f} a minute", flush=True
            )

    @property
    def state(self) -> str:
        """How many pairs of how many are finished."""
        return f"{self.progress.done} of {self.progress.total}" if self.progress else "no"

    @property
    def pairs_per_minute(self) -> float:
        """Pairs that this call has made a minute."""
        return 60.0 * self.made_here / max(time.monotonic() - self._start, 1e-9)
