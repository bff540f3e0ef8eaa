"""What a benchmark is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What the user named."""

    runs_dir: Path
    """Folder of all runs; a benchmark may make runs of its own below `bench/`."""
    run: str | None
    """A finished run to read from; None lets the benchmark make a tiny one."""


@dataclass(frozen=True)
class Measurement:
    """One figure."""

    value: float
    unit: str
    versus: str
    """The alternative that was measured as well."""
    ratio: float
    """Ours over the alternative's; equal to `value` for shares."""
    aim: str
    holds: bool
    """Whether the aim was met."""
