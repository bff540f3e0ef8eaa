"""Small objects that tests put into actors."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

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

    def crash(self, sign: int) -> None:
        """Meets with a signal."""
        print("before the end")
        os.kill(os.getpid(), sign)
        time.sleep(60)

    def break_off(self, after_s: float) -> None:
        """Fails as a rank does whose peer is gone."""
        time.sleep(after_s)
        raise RuntimeError("connection closed by peer")

    def where(self) -> tuple[int, int, dict[str, str]]:
        """Process id, niceness and environment."""
        return os.getpid(), os.nice(0), dict(os.environ)


def heavy_modules(_: Echo) -> list[str]:
    """Engines that the actor's process has loaded."""
    return [name for name in ("torch", "vllm", "deepspeed") if name in sys.modules]


def own_pid(_: Any) -> int:
    """Of the process that an object lives in."""
    return os.getpid()


def set_weight(learner: Any, value: float) -> float:
    """Change one value of a learner's last norm, which every answer passes; returns what it was."""
    weight = learner._module.model.model.language_model.norm.weight
    before = float(weight.data[0])
    weight.data[0] = value
    return before
