"""`make train` whose learner is killed at a chosen moment: `python -m tests.doomed PLAN <arguments of make train>`.

PLAN is a `Plan` in JSON. The kill falls into the chosen phase of the chosen step, or, where that step has no such
phase, into the beginning of the next: a phase is never left before a kill that was set for it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dig_rl import train
from dig_rl.actors.fleet import Fleet, LearnerRanks, Rollouts
from launch import train as entry
from launch.terminal import end_with_message

PHASES: dict[str, tuple[type, str]] = {
    "generate": (Rollouts, "collect"),
    "learn": (LearnerRanks, "step"),
    "sync": (Fleet, "sync_weights"),
    "evaluate": (Rollouts, "answer"),
    "save": (LearnerRanks, "save"),
}
"""Method of the driver that a phase is spent in."""


@dataclass(frozen=True)
class Plan:
    """What a run is to meet with."""

    draws: str
    """File that a JSON line with step and drawn pairs is added to for every draw."""
    step: int = 0
    """Step, counted from 1, in which the learner is killed; 0: never."""
    phase: str = "generate"
    after_s: float = 0.0
    """Seconds from the beginning of the phase; its end comes first if the phase is shorter."""

    def to_json(self) -> str:
        """The first argument of this program."""
        return json.dumps(asdict(self))


class Reaper:
    """Knows the learner's process, the current step, and when to strike."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.step = 0
        self.learner_pid = 0
        self._struck = False

    def install(self) -> None:
        """Wrap the phases of every run in this process."""
        for phase, (owner, method) in PHASES.items():
            setattr(owner, method, self._watched(phase, getattr(owner, method)))
        train.launch_fleet = self._watched_launch(train.launch_fleet)

    def _watched_launch(self, launch_fleet: Callable[..., Fleet]) -> Callable[..., Fleet]:
        def launch(*args: Any) -> Fleet:
            fleet = launch_fleet(*args)
            self.learner_pid = fleet.cluster.gather([fleet.ranks[0].run(_own_pid)])[0]
            return fleet

        return launch

    def _watched(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def watched(*args: Any, **named: Any) -> Any:
            if phase == "generate":
                self.step = named["step"] + 1
                with Path(self.plan.draws).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self.step, "pairs": [pair.pair_id for pair in args[1]]}) + "\n")
            if self._is_time(phase):
                self._struck = True
                strike = threading.Timer(self._delay_s(), os.kill, (self.learner_pid, signal.SIGKILL))
                strike.start()
                try:
                    return method(*args, **named)
                finally:
                    strike.join()
            return method(*args, **named)

        return watched

    def _is_time(self, phase: str) -> bool:
        is_chosen = self.step == self.plan.step and phase == self.plan.phase
        return not self._struck and self.plan.step > 0 and (is_chosen or self.step > self.plan.step)

    def _delay_s(self) -> float:
        return self.plan.after_s if self.step == self.plan.step else 0.0


def _own_pid(_: Any) -> int:
    return os.getpid()


if __name__ == "__main__":
    Reaper(Plan(**json.loads(sys.argv.pop(1)))).install()
    sys.exit(end_with_message(entry.main, "the same command continues the run"))
