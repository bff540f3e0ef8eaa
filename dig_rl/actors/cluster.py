"""Ray: start or join a cluster, put plain classes into actors, wait loudly, leave nothing behind.

An actor's class is named by a string and built on the other side, so the driver imports no engine, and everything an
engine prints goes to a file of the run folder from its first line.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError, RayTaskError

from dig_rl.actors.deaths import ADVICE, describe_death, num_oom_kills, written_since
from dig_rl.actors.places import provide_sockets, provide_token
from dig_rl.config import ClusterConfig
from dig_rl.errors import ClusterError, DigRlError, NoRoomError
from dig_rl.room import is_no_room

_log = logging.getLogger(__name__)
_REPORT_WAIT_EVERY_S = 30.0
_REACH_TIMEOUT_S = 20.0
_PEERS_TIMEOUT_S = 3.0

MANNERS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Idle OpenMP threads of one engine would otherwise spin on the cores that the other one needs; a fraction of a
    # millisecond bridges the gaps between small operations, which cost the learner half as much again without it.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "20000",
    "KMP_BLOCKTIME": "1",
}
"""Environment of every process: no telemetry, little spinning."""


class _Host:
    """The one actor class: builds the named object and calls its methods."""

    def __init__(self, log_path: str) -> None:
        _redirect_output(log_path)

    def build(self, target: str, args: tuple[Any, ...]) -> None:
        # Not in __init__: what that raises reaches the driver as text only.
        module, _, name = target.partition(":")
        self._object = getattr(importlib.import_module(module), name)(*args)

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        return getattr(self._object, method)(*args, **named)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self._object, *args)

    def memory_gib(self) -> float:
        own = psutil.Process()
        total = own.memory_info().rss
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += child.memory_info().rss
        return total / 2**30


@dataclass(frozen=True)
class Actor:
    """Driver-side handle of one hosted object."""

    name: str
    log_path: Path
    handle: Any
    log_start: int = 0
    """Bytes of the log that an earlier start of the run has written."""

    def call(self, method: str, *args: Any, **named: Any) -> Pending:
        """Call a method of the object; returns at once."""
        return Pending(self, self.handle.call.remote(method, *args, **named))

    def run(self, function: Callable[..., Any], *args: Any) -> Pending:
        """Call `function(object, *args)` where the object lives; returns at once."""
        return Pending(self, self.handle.run.remote(function, *args))


@dataclass(frozen=True)
class Pending:
    """A result on its way."""

    actor: Actor
    ref: Any


def connect(address: str | None, num_slots: int) -> str:
    """Start a private Ray, or join one; `ray.shutdown()` leaves it.

    Args:
        address: of the Ray to join, `local` for a private one; None means RAY_ADDRESS, or else a private one.
        num_slots: CPU slots that a private one offers at least.

    Returns:
        Which it is: an address, or `local`.

    Raises:
        ClusterError: Ray cannot be started or reached.
    """
    # When one actor fails, others fail with it: the first error is the message, the rest would bury it.
    os.environ |= MANNERS | {"RAY_worker_niceness": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        provide_sockets(os.environ)
        provide_token(os.environ)
        options |= {"num_cpus": max(os.cpu_count() or 1, num_slots), "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _check_that_somebody_listens(address)
        with contextlib.redirect_stderr(sys.stdout if address == "local" else sys.stderr):
            ray.init(address=address, **options)
    except Exception as error:  # a node that is not up in 30 seconds is a plain Exception of Ray's
        raise ClusterError(
            f"cannot {'start' if address == 'local' else 'reach'} Ray ({address}): {error}; check the address "
            "(cluster.address, RAY_ADDRESS, RAY=), free ports on loopback, space in the temporary folder (TMPDIR), and "
            "whether other work leaves the machine no time"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts one of its own, which knows nothing of us
    return address


class Cluster:
    """A Ray cluster for one run; a context manager that ends every actor it started."""

    def __init__(self, config: ClusterConfig, log_dir: Path, num_actors: int) -> None:
        """Start a private cluster, or join the one named in the config or by a Ray job.

        Args:
            config: address and time limits.
            log_dir: where each actor's output goes.
            num_actors: how many will be started; a private cluster offers at least so many CPU slots.

        Raises:
            ClusterError: Ray cannot be started or reached.
        """
        self._config = config
        self._log_dir = log_dir
        self._actors: list[Actor] = []
        self._building: list[Pending] = []
        self._num_gpus = 0.0  # of all actors
        log_dir.mkdir(parents=True, exist_ok=True)
        self._oom_kills = num_oom_kills()
        self._is_private = connect(config.address, num_actors) == "local"
        # What a node says of a dead actor, in a paragraph for people who know Ray, would stand above our message.
        ray._private.worker._worker_logs_enabled = False

    @property
    def ray_version(self) -> str:
        """Version of Ray."""
        return str(ray.__version__)

    def spawn(
        self,
        name: str,
        target: str,
        *args: Any,
        num_cpus: float = 1,
        num_gpus: float = 0,
        environment: dict[str, str] | None = None,
    ) -> Actor:
        """Put an object into an actor of its own; returns before it is built.

        Args:
            name: for logs and errors.
            target: `module:Class`.
            args: of the constructor.
            num_cpus: slots that Ray reserves; an actor without one is placed on any machine at once.
            num_gpus: that Ray reserves.
            environment: of the actor's process, set before it imports anything.

        Raises:
            ClusterError: a private cluster has fewer GPUs than its actors reserve; one that is joined may yet grow.
        """
        self._num_gpus += num_gpus
        if num_gpus and self._is_private and self._num_gpus > (offered := ray.cluster_resources().get("GPU", 0)):
            raise ClusterError(
                f"{name} reserves {num_gpus:g} GPUs, which makes {self._num_gpus:g} with the actors before it; this "
                f"machine offers {offered:g}. Lower rollout.num_gpus and learner.num_gpus (0 is the CPU) or the number "
                "of workers and ranks, or join a cluster that has them (cluster.address)"
            )
        log_path = self._log_dir / f"{name}.log"
        host = ray.remote(_Host).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            runtime_env={"env_vars": MANNERS | (environment or {})},
        )
        log_start = log_path.stat().st_size if log_path.is_file() else 0
        actor = Actor(name, log_path, host.remote(str(log_path)), log_start)
        self._actors.append(actor)
        self._building.append(Pending(actor, actor.handle.build.remote(target, args)))
        return actor

    def wait_until_ready(self, also: Sequence[Pending] = ()) -> None:
        """Block until every actor is built.

        Args:
            also: further results that the actors' readiness includes.

        Raises:
            DigRlError, ClusterError: as `wait_for`.
        """
        self.wait_for([*self._building, *also])

    def wait_for(self, awaited: Sequence[Pending]) -> list[Any]:
        """Results in order from actors that may still be loading, saying every half minute which ones it waits for.

        Raises:
            DigRlError: what an actor raised, also while it was built, as itself.
            ClusterError: an actor died or the time limit passed; names it and its log.
        """
        started = time.monotonic()
        actors = {item.actor for item in awaited}
        builds = [item for item in self._building if item.actor in actors]
        self._building = [item for item in self._building if item.actor not in actors]
        pending = {item.ref: item for item in [*builds, *awaited]}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=self._patience(started))
            for ref in done:
                self._result(pending.pop(ref), pending)
            names = ", ".join(sorted({item.actor.name for item in pending.values()}))
            if pending and time.monotonic() - started > self._config.start_timeout_s:
                raise ClusterError(
                    f"{names} not ready after {self._config.start_timeout_s:.0f} s; cluster offers "
                    f"{ray.cluster_resources()}; logs in {self._log_dir}; if loading is slow, raise "
                    "cluster.start_timeout_s"
                )
            if pending and not done:
                _log.warning("waiting for %s; free resources: %s", names, ray.available_resources())
        return self.gather(awaited)

    def gather(self, pending: Sequence[Pending]) -> list[Any]:
        """Results in order.

        Raises:
            DigRlError: what the hosted object raised, as itself.
            ClusterError: an actor died or raised anything else; names the actor and its log.
        """
        waiting = {item.ref: item for item in pending}
        results = {}
        while waiting:
            (ref,), _ = ray.wait(list(waiting), num_returns=1)
            results[ref] = self._result(waiting.pop(ref), waiting)
        return [results[item.ref] for item in pending]

    def _result(self, item: Pending, others: dict[Any, Pending]) -> Any:
        try:
            return ray.get(item.ref)
        except RayError as error:
            raise self._explain(item, error, others) from error

    def _explain(self, item: Pending, error: RayError, others: dict[Any, Pending]) -> DigRlError:
        """The error of the actor that failed first: what its peers say of its end, they say by failing, too."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, DigRlError):
            return error.cause
        if isinstance(error, RayTaskError) and others:
            done, _ = ray.wait(list(others), num_returns=len(others), timeout=_PEERS_TIMEOUT_S)
            for ref in done:
                try:
                    ray.get(ref)
                except RayTaskError as other:
                    if isinstance(other.cause, DigRlError):
                        return other.cause
                except RayError as end:
                    item, error = others[ref], end
                    break
        actor = item.actor
        if isinstance(error, RayTaskError):
            cause = error.cause
            if is_no_room(cause):
                return NoRoomError(f"{actor.name} found no room to write: {cause}; delete something there")
            return ClusterError(f"{actor.name} failed: {type(cause).__name__}: {cause}; log: {actor.log_path}")
        cause = getattr(error, "cause", None)
        if isinstance(cause, DigRlError):
            return ClusterError(f"{actor.name} died: {cause}; log: {actor.log_path}")
        written = written_since(actor.log_path, actor.log_start)
        death = describe_death(str(error), written, num_oom_kills() - self._oom_kills)
        return ClusterError(f"{actor.name} died: {death}; log: {actor.log_path}. {ADVICE}")

    def _patience(self, started: float) -> float:
        left = self._config.start_timeout_s - (time.monotonic() - started)
        return min(_REPORT_WAIT_EVERY_S, max(left, 0.0) + 0.1)

    def memory_gib(self) -> dict[Actor, float]:
        """Resident memory of each actor's process and those that it started."""
        pending = [Pending(actor, actor.handle.memory_gib.remote()) for actor in self._actors]
        return dict(zip(self._actors, self.gather(pending), strict=True))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            # On a shared cluster, leaving does not end detached work at once; killing does.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor.handle)
        ray.shutdown()


def _check_that_somebody_listens(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody answers; raises OSError at once."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_TIMEOUT_S).close()


def _redirect_output(log_path: str) -> None:
    """Send this process's output, native libraries' too, to a file."""
    Path(log_path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
