"""One thing that is wrong, or worth a look, with the place where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
"""An error makes the folder unfit for training; a warning is for a person to judge."""


@dataclass(frozen=True)
class Finding:
    """What was found and where."""

    severity: Severity
    problem: str
    """What was expected and what was found, in one sentence."""
    file: str
    """Relative to the data folder."""
    line: int | None = None
    """Of `metadata.jsonl`, from 1."""
    pair_id: str | None = None

    @property
    def place(self) -> str:
        """File, line and pair id, as far as they are known."""
        parts = [self.file]
        if self.line is not None:
            parts.append(f"line {self.line}")
        if self.line is not None or self.pair_id is not None:
            parts.append(f"pair {self.pair_id or 'unknown'}")
        return ", ".join(parts)

    def __str__(self) -> str:
        """One line without control characters, whatever the folder's author put into names and ids."""
        text = f"{self.place}: {self.problem}"
        return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
