"""What a person sees while a run trains: a bar on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

_STEPS_AVERAGED = 10
"""The time left is estimated from this many last steps."""


class TrainProgress:
    """Progress of one run; a context manager.

    On a terminal a bar is redrawn in place. In a log file or a job's output each step is a line of its own without
    control characters.
    """

    def __init__(self, total_steps: int, first_step: int = 0) -> None:
        """Args: `total_steps` of the whole run; `first_step`, how many of them a continued run has behind it."""
        self._total, self._is_bound = total_steps, False
        self._durations: deque[float] = deque(maxlen=_STEPS_AVERAGED)
        console = Console(file=sys.stdout, highlight=False)
        self._bar: Progress | None = None
        if sys.stdout.isatty() and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step, figures="")

    def set_total(self, total_steps: int, *, is_bound: bool) -> None:
        """The run has this many steps, or, where `is_bound`, at most so many."""
        self._total, self._is_bound = total_steps, is_bound
        if self._bar is not None:
            self._bar.update(self._task, total=total_steps)

    def update(self, step: int, *, stage: str, figure: str, seconds: float) -> None:
        """Show one finished step.

        Args:
            step: steps done, counted from 1.
            stage: stage the step belongs to.
            figure: what to watch, as `reward 0.412`.
            seconds: wall-clock seconds the step took.
        """
        self._durations.append(seconds)
        left = (self._total - step) * sum(self._durations) / len(self._durations)
        figures = f"{figure}  {seconds:.1f} s/step  {'at most ' if self._is_bound else ''}{_clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=stage, figures=figures)
        else:
            width = len(str(self._total))
            print(f"step {step:{width}d}/{self._total}  {stage}  {figures}", flush=True)

    def note(self, message: str) -> None:
        """Print a line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(Text(message))
        else:
            print(message, flush=True)

    def __enter__(self) -> TrainProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
