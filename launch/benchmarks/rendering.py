"""What making image pairs costs: pairs a minute, what is lost around Cycles, and whether it stays so for hours.

A worker is busy from its first request to the end of its last pair: Blender's start, rejected tries, pictures handed
over, labels and files are all in it.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from dig_rl.datagen.build import MakePairs, fill_folder, make_pairs_in_threads
from dig_rl.datagen.folder import PackedPair, pack_pair
from dig_rl.datagen.pairs import PairTask, make_pair
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import BlenderRenderer
from dig_rl.datagen.scene import Scene, scene_to_json
from launch.benchmarks.measurement import Measurement, Request

MAX_OVER_CYCLES = 1.25
MAX_DRIFT = 1.1
_WORKERS = 2
_RECIPE = DataRecipe(seed=4, width=160, height=120, samples=16, splits={"train": {1: 12, 2: 12, 3: 6, 4: 6}})
_FEW = _RECIPE.model_copy(update={"splits": {"train": {1: 4, 2: 4, 3: 2, 4: 2}}})
_LONG = DataRecipe(seed=4, width=64, height=64, samples=4, num_objects=(4, 4), splits={"train": {2: 500}})
_NUMBERS = np.linspace(0.0, 1.0, 100_000)
_MIB = 2**20


@dataclass(frozen=True)
class Call:
    """One request to Blender."""

    scene: Scene
    seconds_in_cycles: float
    cpu_s: float | None
    """CPU time of the Blender process, in steps of the system's clock tick; None where this call started it."""
    memory_bytes: int
    """Resident memory of the Blender process after the call."""
    beauty: bool
    """A beauty picture, not an id picture."""
    probe_s: float
    """CPU time of a fixed piece of work right after the call: what the machine's other work costs at that moment."""


class WatchedRenderer(BlenderRenderer):
    """Takes note of every request."""

    def __init__(self, width: int, height: int, samples: int, *, probed: bool = False) -> None:
        super().__init__(width, height, samples)
        self._probed = probed
        self.calls: list[Call] = []
        self.busy_s = 0.0
        self._started: float | None = None

    def render_ids(self, scene: Scene, only: int | None = None) -> np.ndarray:
        """As the renderer does."""
        return self._note(scene, False, lambda: super(WatchedRenderer, self).render_ids(scene, only))

    def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
        """As the renderer does."""
        return self._note(scene, True, lambda: super(WatchedRenderer, self).render_beauty(scene, seed))

    def close(self) -> None:
        """As the renderer does; the worker calls it when nothing is left to make."""
        if self._started is not None:
            self.busy_s, self._started = time.perf_counter() - self._started, None
        super().close()

    def _note(self, scene: Scene, beauty: bool, draw: Callable[[], np.ndarray]) -> np.ndarray:
        if self._started is None:
            self._started = time.perf_counter()
        pid, cpu_s, cycles_s = self.pid, self._cpu_s(), self.seconds_in_cycles
        picture = draw()
        used_s = self._cpu_s() - cpu_s if self.pid == pid else None
        memory = psutil.Process(self.pid).memory_info().rss
        probe_s = _fixed_work() if self._probed else 0.0
        self.calls.append(Call(scene, self.seconds_in_cycles - cycles_s, used_s, memory, beauty, probe_s))
        return picture

    def _cpu_s(self) -> float:
        return sum(psutil.Process(self.pid).cpu_times()[:2]) if self.pid else 0.0


@dataclass(frozen=True)
class Build:
    """What one build cost."""

    num_pairs: int
    wall_s: float
    busy_s: float
    """Sum over workers."""
    accepted_cycles_s: float
    """Inside Cycles, beauty and id pictures of the tries that became pairs."""
    all_cycles_s: float
    """The same, rejected tries included."""


def pairs_per_minute(_request: Request) -> Measurement:
    """Pairs of 160x120 with 16 samples a minute on two cores, one to four changes each, from start to manifest."""
    build = _measured_build()
    ours = 60 * build.num_pairs / build.wall_s
    wall_s, num_pairs = _timed(_FEW, _blender_a_pair)
    theirs = 60 * num_pairs / wall_s
    return Measurement(
        value=ours,
        unit=f"pairs a minute, {_WORKERS} workers",
        versus=f"a Blender started for each pair, {theirs:.1f} a minute",
        ratio=ours / theirs,
        aim="more than that",
        holds=ours > theirs,
    )


def render_over_cycles(_request: Request) -> Measurement:
    """Time that workers are busy, over the time inside Cycles of the pictures that were kept and their id pictures."""
    build = _measured_build()
    ratio = build.busy_s / build.accepted_cycles_s
    rejected_s = build.all_cycles_s - build.accepted_cycles_s
    return Measurement(
        value=ratio,
        unit="ratio",
        versus=f"{build.accepted_cycles_s:.1f} s inside Cycles for {build.num_pairs} accepted pairs; rejected tries "
        f"{rejected_s:.1f} s; all wall time of {_WORKERS} workers, idle ends included, "
        f"{_WORKERS * build.wall_s / build.accepted_cycles_s:.3f}",
        ratio=ratio,
        aim=f"at most {MAX_OVER_CYCLES:g}",
        holds=ratio <= MAX_OVER_CYCLES,
    )


def render_time_last_over_first(_request: Request) -> Measurement:
    """CPU time of a beauty picture in the last fifth of 1,000 scenes over the first fifth, without Blender's starts.

    Divided by what a fixed piece of work took beside it, so that a machine that gets busier does not look like drift.
    """
    ends = (_long_calls()[0], _long_calls()[-1])
    first, last = (
        statistics.fmean(call.cpu_s for call in part if call.beauty and call.cpu_s is not None) for part in ends
    )
    probe_first, probe_last = (statistics.fmean(call.probe_s for call in part) for part in ends)
    versus = f"the first fifth, {1000 * first:.1f} ms of CPU a picture; {last / first:.3f} before correction"
    return _drift(last / first / (probe_last / probe_first), versus, "no slower")


def render_memory_last_over_first(_request: Request) -> Measurement:
    """Largest resident memory of Blender in the last fifth of 1,000 scenes over the first fifth."""
    calls = _long_calls()
    first, last = (max(call.memory_bytes for call in part) / _MIB for part in (calls[0], calls[-1]))
    return _drift(last / first, f"the first fifth, {first:.0f} MiB; the last {last:.0f} MiB", "no larger")


@functools.cache
def _measured_build() -> Build:
    """One build for both figures that are read from it."""
    renderers: list[WatchedRenderer] = []
    with tempfile.TemporaryDirectory(prefix="dig-rl-bench-") as folder:
        out = Path(folder) / "data"
        wall_s, num_pairs = _timed(_RECIPE, _watched(_RECIPE, renderers, _WORKERS), out)
        kept = {
            json.dumps(scenes[name])
            for scenes in (json.loads(path.read_bytes()) for path in (out / "scenes").iterdir())
            for name in ("scene_a", "scene_b")
        }
    calls = [call for renderer in renderers for call in renderer.calls]
    return Build(
        num_pairs=num_pairs,
        wall_s=wall_s,
        busy_s=sum(renderer.busy_s for renderer in renderers),
        accepted_cycles_s=sum(
            call.seconds_in_cycles for call in calls if json.dumps(scene_to_json(call.scene)) in kept
        ),
        all_cycles_s=sum(call.seconds_in_cycles for call in calls),
    )


@functools.cache
def _long_calls() -> tuple[list[Call], ...]:
    """Calls of one worker that makes 500 pairs of 1,000 scenes, in fifths."""
    renderers: list[WatchedRenderer] = []
    _timed(_LONG, _watched(_LONG, renderers, workers=1, probed=True))
    calls = renderers[0].calls
    return tuple(calls[index * len(calls) // 5 : (index + 1) * len(calls) // 5] for index in range(5))


def _watched(recipe: DataRecipe, renderers: list[WatchedRenderer], workers: int, *, probed: bool = False) -> MakePairs:
    def make_renderer() -> WatchedRenderer:
        renderers.append(WatchedRenderer(recipe.width, recipe.height, recipe.samples, probed=probed))
        return renderers[-1]

    return functools.partial(make_pairs_in_threads, make_renderer=make_renderer, workers=workers)


def _blender_a_pair(tasks: Sequence[PairTask], recipe: DataRecipe) -> Generator[PackedPair, None, None]:
    def make(task: PairTask) -> PackedPair:
        with BlenderRenderer(recipe.width, recipe.height, recipe.samples) as renderer:
            return pack_pair(make_pair(task, recipe, renderer), renderer.version)

    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(make, tasks)


def _timed(recipe: DataRecipe, make_pairs: MakePairs, out: Path | None = None) -> tuple[float, int]:
    """Seconds that a whole build takes, and its pairs."""
    with tempfile.TemporaryDirectory(prefix="dig-rl-bench-") as folder:
        started = time.perf_counter()
        fill_folder(recipe, out or Path(folder) / "data", make_pairs, lambda progress: None)
        return time.perf_counter() - started, recipe.num_pairs


def _fixed_work() -> float:
    """Seconds of CPU that 3 ms of arithmetic take here and now."""
    started = time.thread_time()
    np.sqrt(np.sin(_NUMBERS) ** 2 + np.cos(_NUMBERS) ** 2).sum()
    return time.thread_time() - started


def _drift(ratio: float, versus: str, what: str) -> Measurement:
    return Measurement(
        value=ratio,
        unit="ratio",
        versus=versus,
        ratio=ratio,
        aim=f"{what} than {MAX_DRIFT:g} times the first fifth",
        holds=ratio <= MAX_DRIFT,
    )
