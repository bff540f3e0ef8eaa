"""Small objects that tests put into actors."""

from __future__ import annotations

import os
import sys
import time

from dig_rl.errors import PolicyError


class Echo:
    """Answers, fails and dies on demand."""

    def __init__(self, greeting: str, trouble: str = "") -> None:
        print(f"building {greeting}")
        if trouble == "policy":
            raise PolicyError(f"no policy for {greeting}")
        if trouble == "bug":
            raise ZeroDivisionError("by hand")
        if trouble == "slow":
            time.sleep(600)
        self._greeting = greeting

    def answer(self, value: object, after_s: float = 0.0) -> tuple[str, object]:
        """The value, later."""
        time.sleep(after_s)
        return self._greeting, value

    def refuse(self) -> None:
        """An error that a user can mend."""
        raise PolicyError("expected a, found b")

    def stumble(self) -> None:
        """An error that a user cannot mend."""
        print("about to stumble")
        raise KeyError("missing")

    def die(self) -> None:
        """Ends the process in the middle of a call, as the system's out-of-memory killer does."""
        print("first words")
        os.write(2, b"native library: out of memory\n")
        os._exit(1)

    def where(self) -> tuple[int, int, dict[str, str]]:
        """Process id, niceness and environment."""
        return os.getpid(), os.nice(0), dict(os.environ)


def heavy_modules(_: Echo) -> list[str]:
    """Engines that the actor's process has loaded."""
    return [name for name in ("torch", "vllm", "deepspeed") if name in sys.modules]
