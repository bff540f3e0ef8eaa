"""`make reward-test REWARD=path.py:function`: does a reward plugin keep the contract of rewards/README.md?

Everything runs in child processes, so that a plugin that hangs or ends its process gets a verdict, too.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import random
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dig_rl.errors import ConfigError, DigRlError, PluginError
from dig_rl.next_command import next_command
from dig_rl.plugins import RewardFunction, load_plugin
from dig_rl.types import RewardInput
from launch.next_steps import print_next, reward_settings
from launch.plugin_inputs import hostile_inputs, ordinary_input, random_inputs
from launch.terminal import end_with_message

MAX_MS = 5.0
"""Most CPU time of one call, the best of three tries."""
_NUM_RANDOM = 1000
_NUM_REPEATED = 200
_PATIENCE_S = 30.0
"""How long one check may take."""
_START_PATIENCE_S = 120.0
"""How long Python may take to start, which is no fault of the plugin."""


class Verdict(NamedTuple):
    """Outcome of one check."""

    check: str
    holds: bool
    detail: str


def judge_plugin(use: str, kwargs: dict[str, Any], root: Path, patience_s: float = _PATIENCE_S) -> Iterator[Verdict]:
    """Check one plugin, each check after the other; ends early where a check breaks the process.

    Args:
        use: `path/to/file.py:function`.
        kwargs: keyword arguments as in a config.
        root: folder that `use` is relative to.
        patience_s: wall-clock limit of one check.
    """
    first: list[float] = []
    for message in _in_a_process(_judge, use, kwargs, root, patience_s):
        if isinstance(message, Verdict):
            yield message
            if message.check in ("starts", "loads") and not message.holds:
                return
        else:
            first = message
    if not first:
        return
    second = next(iter(_in_a_process(_values, use, kwargs, root, patience_s)))
    if isinstance(second, Verdict):
        yield second
    else:
        same = np.array_equal(first, second, equal_nan=True)
        detail = f"{len(first)} inputs score the same in a second process" if same else _first_difference(first, second)
        yield Verdict("determinism", same, detail)


def _first_difference(first: list[float], second: list[float]) -> str:
    index = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    values = f"{second[index]!r} instead of {first[index]!r}"
    return f"another process scores the same input {values} (hashing, clock, state?)"


def _in_a_process(
    work: Callable[[Connection, str, dict[str, Any], Path], None],
    use: str,
    kwargs: dict[str, Any],
    root: Path,
    patience_s: float,
) -> Iterator[Any]:
    """Messages of `work` in a process of its own, or a verdict on how that process ended."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, use, kwargs, root), daemon=True)
    process.start()
    sender.close()
    check, limit_s = "starts", _START_PATIENCE_S
    try:
        while receiver.poll(limit_s):
            message, limit_s = receiver.recv(), patience_s
            if message is None:
                return
            if isinstance(message, str):
                check = message
            else:
                yield message
        yield Verdict(check, False, f"did not finish within {limit_s:g} s")
    except EOFError:
        process.join()
        yield Verdict(check, False, f"the plugin ended its process (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()


def _judge(sender: Connection, use: str, kwargs: dict[str, Any], root: Path) -> None:
    """Child process: name of each check, then its verdict; the values of some inputs; None at the end."""
    sender.send("loads")
    try:
        function = load_plugin(use, kwargs, root)
    except PluginError as error:
        sender.send(Verdict("loads", False, str(error)))
        sender.send(None)
        return
    sender.send(Verdict("loads", True, "file, signature and kwargs fit"))
    verdicts: list[Verdict] = []
    for name, check in _CHECKS.items():
        sender.send(name)
        try:
            verdicts.append(check(function))
        except Exception as error:
            verdicts.append(Verdict(name, False, f"raises {type(error).__name__}: {error}"))
        sender.send(verdicts[-1])
    if all(verdict.holds for verdict in verdicts):
        sender.send("determinism")
        sender.send([float(function(item)) for item in random_inputs(_NUM_REPEATED)])
    sender.send(None)


def _values(sender: Connection, use: str, kwargs: dict[str, Any], root: Path) -> None:
    """Child process: values of the same inputs, in the opposite order."""
    sender.send("determinism")
    function = load_plugin(use, kwargs, root)
    items = list(random_inputs(_NUM_REPEATED))
    sender.send([float(function(item)) for item in reversed(items)][::-1])
    sender.send(None)


def _check_range(function: RewardFunction) -> Verdict:
    values = []
    for item in random_inputs(_NUM_RANDOM):
        problem, value = _call(function, item)
        if problem:
            return Verdict("range", False, problem)
        values.append(value)
    return Verdict("range", True, f"{min(values):.3f} to {max(values):.3f} on {len(values):,} random answers")


def _check_hostile(function: RewardFunction) -> Verdict:
    number = 0
    for name, item in hostile_inputs():
        number += 1
        problem, _ = _call(function, item)
        if problem:
            return Verdict("hostile input", False, f"{problem}, for {name}")
    return Verdict("hostile input", True, f"{number} extreme answers score within [0, 1]")


def _check_purity(function: RewardFunction) -> Verdict:
    items = list(random_inputs(_NUM_REPEATED))
    before, drawn = [copy.deepcopy(vars(item)) for item in items], _generator_states()
    with _Watch() as watch:
        once = [function(item) for item in items]
        again = [function(item) for item in items]
    if watch.seen:
        return Verdict("purity", False, f"touches the world outside: {watch.seen[0]}")
    if drawn != _generator_states():
        return Verdict("purity", False, "draws from a global random generator")
    if once != again:
        return Verdict("purity", False, "the same input scores differently the second time: it keeps state or draws")
    if any(not _equal(vars(item), old) for item, old in zip(items, before, strict=True)):
        return Verdict("purity", False, "changes its input")
    return Verdict("purity", True, "keeps no state, changes nothing, opens nothing for writing")


def _check_speed(function: RewardFunction) -> Verdict:
    slowest_ms, slowest_name = max((_best_of_three_ms(function, item), name) for name, item in hostile_inputs())
    usual_us = 1e3 * min(_best_of_three_ms(function, ordinary_input()) for _ in range(100))
    detail = f"{usual_us:.1f} us for 4 boxes, at most {slowest_ms:.2f} ms ({slowest_name}) of {MAX_MS:g} ms allowed"
    return Verdict("speed", slowest_ms <= MAX_MS, detail)


_CHECKS: dict[str, Callable[[RewardFunction], Verdict]] = {
    "hostile input": _check_hostile,
    "speed": _check_speed,
    "range": _check_range,
    "purity": _check_purity,
}


def _call(function: RewardFunction, item: RewardInput) -> tuple[str, float]:
    """What was wrong with a call (nothing: an empty string), and its value."""
    try:
        value: Any = function(item)
    except Exception as error:
        return f"raises {type(error).__name__}: {error}", 0.0
    if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        return f"returns {value!r:.200}, expected a number in [0, 1]", 0.0
    return "", float(value)


def _best_of_three_ms(function: RewardFunction, item: RewardInput) -> float:
    times = []
    for _ in range(3):
        started = time.thread_time()
        function(item)
        times.append(time.thread_time() - started)
    return 1e3 * min(times)


def _generator_states() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state())


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(np.array_equal(a[key], b[key]) if isinstance(b[key], np.ndarray) else a[key] == b[key] for key in b)


class _Watch:
    """Notes what is opened for writing, started or connected to while it is entered."""

    _EVENTS = ("socket.connect", "subprocess.Popen", "os.system", "os.remove", "os.rename", "os.mkdir", "os.fork")

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._watching = False
        sys.addaudithook(self._hear)  # cannot be removed; the process ends with the checks

    def __enter__(self) -> _Watch:
        self._watching = True
        return self

    def __exit__(self, *_: object) -> None:
        self._watching = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes or event in self._EVENTS:
            self.seen.append(f"{event} {arguments[:1]}")


def main() -> None:
    """Parse arguments, print a line a check, and the verdict."""
    parser = argparse.ArgumentParser(prog="make reward-test", description=__doc__)
    parser.add_argument("--reward", required=True, help="path/to/file.py:function (REWARD=)")
    parser.add_argument("--kwargs", default="", help='TOML, e.g. "match_iou = 0.75, power = 2" (KWARGS=)')
    arguments = parser.parse_args()
    try:
        kwargs = tomllib.loads(f"kwargs = {{ {arguments.kwargs} }}")["kwargs"]
    except tomllib.TOMLDecodeError as error:
        what = f'KWARGS takes TOML such as "match_iou = 0.75", found "{arguments.kwargs}"'
        raise ConfigError(f"{what}: {error}") from None
    broken = 0
    for verdict in judge_plugin(arguments.reward, kwargs, Path.cwd()):
        broken += not verdict.holds
        print(f"{'ok  ' if verdict.holds else 'FAIL'}  {verdict.check:14} {verdict.detail}", flush=True)
    if broken:
        raise DigRlError(f"{arguments.reward} breaks the contract of rewards/README.md; failed checks: {broken}")
    print(f"\n{arguments.reward} keeps the contract; named in a config, a run is paid by it")
    print_next(next_command("reward-report", SET=reward_settings(arguments.reward, kwargs)))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "no verdict"))
