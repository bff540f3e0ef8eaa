"""The process that reward plugins run in: they are a user's code, and nothing that they do may reach the run.

`dig_rl.scoring_pool` starts it, sends a `ScorerSpec` and then one job after the other over a socket. Each finished
group is answered with its outcomes. What is being scored at any moment stands in shared memory, so that the pool can
tell without asking which completion a process hangs or died on.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import mmap
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from dig_rl.config import RewardConfig
from dig_rl.errors import PluginError
from dig_rl.parsing import CoordinateFrame
from dig_rl.plugins import RewardFunction, plugin_hash
from dig_rl.scoring import Scorer, broken_plugin
from dig_rl.types import Completion, SampledGroup, Score, ScoreFailure

OUT_OF_MEMORY = 86
"""Exit code of a process that reached its memory limit."""

NOBODY = -1
"""Where no completion, or no plugin, is at work."""

_PR_SET_PDEATHSIG = 1
_MAX_OUTPUT_BYTES = 65_536


@dataclass(frozen=True)
class ScorerSpec:
    """What a scoring process loads; small, so that a replacement starts at once."""

    reward: RewardConfig
    root: Path
    """Folder that plugin paths start from."""
    thinking: bool
    frame: CoordinateFrame
    prompt: str
    plugin_hashes: dict[str, str]
    """Sha256 of each plugin's file by its `use`, as recorded when the run started."""


class Progress:
    """Four integers in shared memory: group, completion and term at work, and since when.

    Written by the scoring process before each completion for a fraction of a microsecond, read by the pool.
    """

    NUM_BYTES = 32

    def __init__(self, descriptor: int) -> None:
        """Args: `descriptor` of a file of `NUM_BYTES` bytes; not closed here."""
        self._cells = memoryview(mmap.mmap(descriptor, self.NUM_BYTES)).cast("q")

    def begin(self, group: int, completion: int) -> None:
        """Completion `completion` of the job's group `group` is begun."""
        cells = self._cells
        cells[3] = time.monotonic_ns()
        cells[2] = NOBODY
        cells[1] = completion
        cells[0] = group

    def pause(self) -> None:
        """No completion is at work."""
        self.begin(NOBODY, NOBODY)

    def enter_term(self, term: int) -> None:
        """The plugin of the config's term number `term` is called."""
        self._cells[2] = term

    @property
    def position(self) -> tuple[int, int, int]:
        """(group, completion, term) at work, each `NOBODY` where there is none."""
        return self._cells[0], self._cells[1], self._cells[2]

    @property
    def seconds(self) -> float:
        """Since the last `begin` or `pause`."""
        return (time.monotonic_ns() - self._cells[3]) * 1e-9


class _BoundedOutput(io.RawIOBase):
    """Standard output of plugins: the first 64 KiB reach the log, the rest is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = _MAX_OUTPUT_BYTES

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._left > 0:
            self._left -= os.write(self._descriptor, data[: self._left])
            if self._left <= 0:
                os.write(self._descriptor, b"\n[reward plugins printed more; the rest is dropped]\n")
        return len(data)


def main() -> NoReturn:
    """Load the plugins, say so, and score until the pool hangs up.

    Arguments on the command line: descriptors of the socket and of the shared memory, process id of the pool.
    """
    socket, memory, parent = map(int, sys.argv[1:])
    _die_with(parent)
    _bound_output()
    connection, progress = Connection(socket), Progress(memory)
    try:
        spec = connection.recv()
        try:
            _limit_memory(spec.reward.memory_limit_gib)
            scorer = _load(spec, progress)
        except PluginError as error:
            connection.send(str(error))
        else:
            connection.send(None)
            _serve(connection, progress, scorer, spec.reward)
    except (EOFError, ConnectionError):
        pass  # the pool is gone or wants no more
    os._exit(0)  # threads that plugins left running must not keep the process


def _die_with(parent: int) -> None:
    """End at once when the process that started this one ends, however it ends, and whatever a plugin is doing."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _bound_output() -> None:
    log = os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    faulthandler.enable(log)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_BoundedOutput(log)), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    sys.stderr = sys.stdout


def _limit_memory(gib: float) -> None:
    # What is allocated, not what is mapped: importing torch maps many GiB that it never uses.
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(spec: ScorerSpec, progress: Progress) -> Scorer:
    for use, recorded in spec.plugin_hashes.items():
        if (found := plugin_hash(use, spec.root)) != recorded:
            raise PluginError(
                f'reward plugin "{use}" changed while the run was going: sha256 {recorded[:12]} when it started, '
                f"{found[:12]} now; put it back, or continue the run with the changed one"
            )
    terms = list(spec.reward.terms)

    def watched(name: str, function: RewardFunction) -> RewardFunction:
        term = terms.index(name)

        def call(item: Any) -> float:
            progress.enter_term(term)
            return function(item)

        return call

    return Scorer(
        spec.reward, root=spec.root, thinking=spec.thinking, frame=spec.frame, prompt=spec.prompt, watch=watched
    )


def _serve(connection: Connection, progress: Progress, scorer: Scorer, reward: RewardConfig) -> NoReturn:
    while True:
        groups, step, stage = connection.recv()
        for index, group in enumerate(groups):
            score = scorer.for_group(group, step=step, stage=stage)
            outcomes: list[Score | ScoreFailure] = []
            for number, completion in enumerate(group.completions):
                progress.begin(index, number)
                try:
                    outcomes.append(score(completion))
                except BaseException as error:  # a plugin may call sys.exit, or return what raises when looked at
                    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
                        os._exit(OUT_OF_MEMORY)
                    if isinstance(error, PluginError):
                        reason = str(error)
                    else:
                        what = f"made scoring raise {type(error).__name__}"
                        reason = failure_message(reward, progress.position[2], what, group, completion, step)
                    outcomes.append(ScoreFailure(reason))
            progress.pause()
            connection.send(outcomes)


def failure_message(
    reward: RewardConfig, term: int, what: str, group: SampledGroup, completion: Completion, step: int
) -> str:
    """One sentence that blames the plugin of term number `term`, or parsing and matching if it is `NOBODY`."""
    name = None if term == NOBODY else list(reward.terms)[term]
    return broken_plugin(reward, name, what, group.example.pair_id, step, completion.text)
