"""Pairs made by Ray tasks on every machine of a cluster; what comes back are the bytes of their files.

A task makes one pair. The process that Ray runs it in keeps its renderer for the next one, so Blender starts once a
process. No disk is shared: every machine needs this project and its renderer, and nothing of the data folder.
"""

from __future__ import annotations

import logging
import socket
import uuid
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dig_rl.actors.cluster import MANNERS, connect
from dig_rl.datagen.folder import PackedPair, pack_pair
from dig_rl.datagen.pairs import PairTask, make_pair
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import Renderer
from dig_rl.errors import ClusterError, DigRlError, RenderError

_log = logging.getLogger(__name__)
_LOST_WORKERS_A_PAIR = 5
_REPORT_WAIT_EVERY_S = 60.0

_renderer: tuple[str, Renderer] | None = None
"""The renderer of this process, and the pool that it was started for."""


def make_pairs_on_ray(
    tasks: Sequence[PairTask],
    recipe: DataRecipe,
    *,
    address: str,
    make_renderer: Callable[[], Renderer],
    workers: int | None = None,
) -> Generator[PackedPair, None, None]:
    """Yield pairs as they are finished; closing the generator ends every task and its renderer.

    A pair whose process or machine is lost is made again elsewhere.

    Args:
        tasks: what to make.
        recipe: how.
        address: of a running Ray, `auto` for the one on this machine, `local` for a private one.
        make_renderer: called in each process; must survive pickling.
        workers: renderers at work at one time; None for one on each CPU slot of the cluster.

    Raises:
        ClusterError: Ray cannot be started or reached, or a pair lost its process again and again.
        DigRlError: what making a pair raised.
    """
    connect(address, workers or 1)
    remote = ray.remote(_make_pair).options(
        num_cpus=1, max_retries=_LOST_WORKERS_A_PAIR, runtime_env={"env_vars": MANNERS | {"OMP_NUM_THREADS": "1"}}
    )
    pool, waiting = uuid.uuid4().hex, deque(tasks)
    running: dict[Any, PairTask] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (workers or _enough_to_fill_the_cluster()):
                task = waiting.popleft()
                running[remote.remote(task, recipe, pool, make_renderer)] = task
            done, _ = ray.wait(list(running), num_returns=1, timeout=_REPORT_WAIT_EVERY_S)
            if not done:
                _log.warning("no pair for %.0f s; free resources: %s", _REPORT_WAIT_EVERY_S, ray.available_resources())
            for ref in done:
                yield _result(ref, running.pop(ref))
    finally:
        # Ray ends the processes of a driver that leaves. Cancelling the tasks first at times ends this process instead,
        # when one of them is finished in that moment ("Tried to complete task that was not pending", Ray 2.60.0).
        ray.shutdown()


def _make_pair(task: PairTask, recipe: DataRecipe, pool: str, make_renderer: Callable[[], Renderer]) -> PackedPair:
    """What a Ray task does."""
    global _renderer
    try:
        if _renderer is None or _renderer[0] != pool:
            _renderer = (pool, make_renderer())
        renderer = _renderer[1]
        return pack_pair(make_pair(task, recipe, renderer), renderer.version)
    except RenderError as error:
        raise RenderError(f"on {socket.gethostname()}: {error}") from None


def _result(ref: Any, task: PairTask) -> PackedPair:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, DigRlError):
            raise error.cause from None
        raise ClusterError(f"making {task.pair_id} failed: {type(error.cause).__name__}: {error.cause}") from error
    except RayError as error:
        raise ClusterError(
            f"{task.pair_id} lost its worker {_LOST_WORKERS_A_PAIR + 1} times: {str(error).strip().splitlines()[0]}; "
            "is there memory enough for one Blender a slot? WORKERS= starts fewer"
        ) from error


def _enough_to_fill_the_cluster() -> int:
    """Twice its slots: no slot waits for the driver, machines that join later get work, and memory stays bounded."""
    return 2 * max(1, int(ray.cluster_resources().get("CPU", 0)))
