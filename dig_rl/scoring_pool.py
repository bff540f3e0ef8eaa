"""Scoring processes behind one call: completions go in, scores come out, whatever a reward plugin does.

A process that hangs, dies or takes too much memory is stopped and replaced. The completion that it was scoring gets a
second chance in the new process, since a busy or failing machine may be to blame; if it ends that one too, it has
failed. All other completions are scored as if nothing had happened. One message a group crosses between processes, none
a completion.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from dig_rl.config import RewardConfig
from dig_rl.errors import ClusterError, PluginError
from dig_rl.masking import refuse_failures
from dig_rl.plugins import plugin_hash
from dig_rl.scoring_worker import NOBODY, OUT_OF_MEMORY, Progress, ScorerSpec, failure_message
from dig_rl.types import SampledGroup, Score, ScoreFailure

_START_LIMIT_S = 300.0
_HANDOVER_LIMIT_S = 60.0
"""For a process to take in a job, or to hand over a group's outcomes: no plugin is at work then."""
_LAST_WORDS_S = 2.0
"""For a process that closed its connection to end by itself, so that its exit code tells why."""
_MAX_UNEXPLAINED_LOSSES = 3
"""Processes lost in a row while they scored nothing."""

_SOURCE = Path(__file__).resolve().parent.parent


def hash_plugins(reward_config: RewardConfig, root: Path) -> dict[str, str]:
    """Sha256 of each plugin's file by its `use`.

    Raises:
        PluginError: a plugin's file is missing.
    """
    return {term.use: plugin_hash(term.use, root) for term in reward_config.terms.values()}


class ScoringPool:
    """Scoring processes and their replacements; a context manager."""

    def __init__(self, spec: ScorerSpec) -> None:
        """Start `spec.reward.num_processes` processes and wait until they have loaded the plugins.

        Raises:
            PluginError: a plugin cannot be loaded, or is not the one that `spec` has the hash of.
            ClusterError: a process cannot be started.
        """
        num = spec.reward.num_processes
        self._seats: list[_Seat] = []
        # A scoring process lives no longer than the thread that started it, and these stay until the pool is closed.
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="scoring")
        starting = [self._threads.submit(_Seat, spec) for _ in range(num)]
        wait(starting)
        self._seats = [future.result() for future in starting if future.exception() is None]
        for problem in filter(None, [future.exception() for future in starting]):
            self.close()
            raise problem

    def score(
        self, groups: Sequence[SampledGroup], *, step: int, stage: str, max_failed: int
    ) -> list[tuple[Score | ScoreFailure, ...]]:
        """Score every completion.

        Args:
            groups: of one step.
            step: training step, shown to plugins.
            stage: curriculum stage, shown to plugins.
            max_failed: completions that plugins may break on.

        Returns:
            For each group one outcome for each completion, in order.

        Raises:
            PluginError: plugins broke on more than `max_failed` completions; names plugin, pair and completion.
            ClusterError: scoring processes end before they begin.
        """
        failures: list[ScoreFailure] = []
        num = len(self._seats)
        shares = [groups[index::num] for index in range(num)]
        futures = [
            self._threads.submit(seat.score, share, step, stage, failures, max_failed)
            for seat, share in zip(self._seats, shares, strict=True)
        ]
        wait(futures)
        merged: list[tuple[Score | ScoreFailure, ...]] = [()] * len(groups)
        for index, future in enumerate(futures):
            merged[index::num] = future.result()
        refuse_failures(failures, max_failed)
        return merged

    def close(self) -> None:
        """End all processes."""
        self._threads.shutdown()
        for seat in self._seats:
            seat.close()

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Slice:
    """Some completions of a group that are still to be scored."""

    group_index: int
    first: int
    """Index in the whole group of this slice's first completion."""
    group: SampledGroup
    is_second_chance: bool = False

    def split(self, suspect: int) -> list[_Slice]:
        """Before, suspect and after, empty parts left out; the suspect gets its second chance."""
        completions = self.group.completions
        bounds = [(0, suspect, False), (suspect, suspect + 1, True), (suspect + 1, len(completions), False)]
        return [
            _Slice(self.group_index, self.first + start, replace(self.group, completions=completions[start:end]), again)
            for start, end, again in bounds
            if start < end
        ]


class _Seat:
    """One place in the pool: holds a process, and replaces it when it is lost."""

    def __init__(self, spec: ScorerSpec) -> None:
        self._spec = spec
        self._process = _Process(spec)
        self._unexplained_losses = 0

    def close(self) -> None:
        self._process.stop()

    def score(
        self, groups: Sequence[SampledGroup], step: int, stage: str, failures: list[ScoreFailure], max_failed: int
    ) -> list[tuple[Score | ScoreFailure, ...]]:
        """Outcomes of this seat's groups; incomplete once there are more than `max_failed` among all seats."""
        settled: list[dict[int, Score | ScoreFailure]] = [{} for _ in groups]
        waiting = deque(_Slice(index, 0, group) for index, group in enumerate(groups))
        while waiting and len(failures) <= max_failed:
            try:
                self._process.submit([part.group for part in waiting], step, stage)
                while waiting:
                    outcomes = self._process.next_outcomes()
                    part = waiting.popleft()
                    settled[part.group_index].update(enumerate(outcomes, start=part.first))
                    failures += [outcome for outcome in outcomes if isinstance(outcome, ScoreFailure)]
                    self._unexplained_losses = 0
            except _ProcessLost as lost:
                self._blame(lost, waiting, settled, failures, step)
                self._process = _Process(self._spec)
        return [tuple(found[index] for index in sorted(found)) for found in settled]

    def _blame(
        self,
        lost: _ProcessLost,
        waiting: deque[_Slice],
        settled: list[dict[int, Score | ScoreFailure]],
        failures: list[ScoreFailure],
        step: int,
    ) -> None:
        """Give the completion that was being scored its second chance, or fail it."""
        if lost.completion == NOBODY:
            self._unexplained_losses += 1
            if self._unexplained_losses == _MAX_UNEXPLAINED_LOSSES:
                raise ClusterError(
                    f"a scoring process {lost.what} while no reward plugin was at work, {_MAX_UNEXPLAINED_LOSSES} "
                    "times in a row; see the log of the reward service"
                )
            return
        part = waiting.popleft()
        if not part.is_second_chance:
            waiting.extendleft(reversed(part.split(lost.completion)))
            return
        (completion,) = part.group.completions
        what = f"{lost.what}, twice"
        reason = failure_message(self._spec.reward, lost.term, what, part.group, completion, step)
        failure = ScoreFailure(reason)
        settled[part.group_index][part.first] = failure
        failures.append(failure)


class _ProcessLost(Exception):
    """A process ended, or was stopped at a limit."""

    def __init__(self, what: str, completion: int, term: int) -> None:
        super().__init__(what)
        self.what = what
        self.completion = completion
        """Its index in the oldest slice without an answer, or `NOBODY`."""
        self.term = term


class _Process:
    """One scoring process, from its start to its end."""

    def __init__(self, spec: ScorerSpec) -> None:
        """Start it, and wait until it has loaded the plugins."""
        self._reward = spec.reward
        self._stopped_because = ""
        self._connection, theirs = multiprocessing.Pipe()
        memory = os.memfd_create("scoring-progress")
        os.truncate(memory, Progress.NUM_BYTES)
        self._progress = Progress(memory)
        self._progress.pause()
        python_path = os.pathsep.join([str(_SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        arguments = [str(theirs.fileno()), str(memory), str(os.getpid())]
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", "from dig_rl.scoring_worker import main; main()", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), memory),
            env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the run to handle, and what a plugin starts can be ended with it
        )
        theirs.close()
        os.close(memory)
        try:
            self._load(spec)
        except BaseException:
            self.stop()
            raise

    def _load(self, spec: ScorerSpec) -> None:
        try:
            self._connection.send(spec)
            if not self._connection.poll(_START_LIMIT_S):
                raise ClusterError(
                    f"a scoring process has not loaded the plugins after {_START_LIMIT_S:.0f} s; see what they do "
                    "when they are imported"
                )
            problem = self._connection.recv()
        except (EOFError, OSError):
            raise ClusterError(
                f"a scoring process {self._loss().what} while it loaded the plugins; see the log of the reward service"
            ) from None
        if problem is not None:
            raise PluginError(problem)

    def submit(self, groups: list[SampledGroup], step: int, stage: str) -> None:
        """Hand over a job; `next_outcomes` then gives one answer for each group."""
        self._progress.pause()
        try:
            self._connection.send((groups, step, stage))
        except OSError:
            raise self._loss() from None

    def next_outcomes(self) -> list[Score | ScoreFailure]:
        """Outcomes of the oldest group without an answer.

        Raises:
            _ProcessLost: the process ended, or was stopped because it was over its time.
        """
        # Never asleep for longer than one completion may take: the process may begin one in the meantime.
        while not self._connection.poll(max(0.0, min(self._seconds_left(), self._reward.time_limit_s))):
            if self._stopped_because:  # and everything that it had sent before is read
                raise self._loss()
            if self._seconds_left() <= 0:  # else it has begun another completion meanwhile
                self._stopped_because = f"took longer than {self._reward.time_limit_s:g} s (reward.time_limit_s)"
                self._kill()
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise self._loss() from None

    def stop(self) -> None:
        """End the process and what plugins started in its session; safe to call twice."""
        self._kill()
        self._connection.close()

    def _kill(self) -> None:
        if self._popen.returncode is None:  # until it is waited for, its process id cannot be somebody else's
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def _seconds_left(self) -> float:
        limit = self._reward.time_limit_s
        if self._progress.position[0] == NOBODY:
            limit = max(limit, _HANDOVER_LIMIT_S)
        return limit - self._progress.seconds

    def _loss(self) -> _ProcessLost:
        if not self._stopped_because and not self._ends_by_itself():
            self._stopped_because = "closed its connection"
        self.stop()
        _, completion, term = self._progress.position
        return _ProcessLost(self._stopped_because or self._how_it_ended(), completion, term)

    def _ends_by_itself(self) -> bool:
        if self._popen.returncode is not None:
            return True
        deadline = time.monotonic() + _LAST_WORDS_S
        # Without taking the exit code: what plugins started is ended first, by the process id that is still taken.
        while os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _how_it_ended(self) -> str:
        code = self._popen.returncode
        if code == OUT_OF_MEMORY:
            return f"ran out of memory (reward.memory_limit_gib = {self._reward.memory_limit_gib:g})"
        if code < 0:
            return f"was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"ended its process with exit code {code}"
