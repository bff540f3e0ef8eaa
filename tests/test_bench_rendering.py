"""Figures of rendering: by hand from made-up builds, and once from real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dig_rl.datagen.recipe import DataRecipe
from launch import bench
from launch.benchmarks import rendering
from launch.benchmarks.measurement import Request
from launch.benchmarks.rendering import Build

REQUEST = Request(Path(), None)
SMALL = DataRecipe(width=32, height=32, samples=1, num_objects=(3, 3), arena_m=1.5, splits={"train": {1: 2, 2: 2}})


@dataclass(frozen=True)
class FakeCall:
    """What the long figures read of a call."""

    cpu_s: float | None
    memory_bytes: int
    beauty: bool = True
    probe_s: float = 0.002


@pytest.mark.parametrize(("busy_s", "ratio", "holds"), [(100.0, 1.25, True), (101.0, 1.2625, False)])
def test_ratio_by_hand(monkeypatch: pytest.MonkeyPatch, busy_s: float, ratio: float, holds: bool) -> None:
    build = Build(num_pairs=30, wall_s=60.0, busy_s=busy_s, accepted_cycles_s=80.0, all_cycles_s=90.0)
    monkeypatch.setattr(rendering, "_measured_build", lambda: build)
    measured = rendering.render_over_cycles(REQUEST)
    assert measured.value == measured.ratio == pytest.approx(ratio) and measured.holds == holds
    assert "80.0 s inside Cycles for 30 accepted pairs; rejected tries 10.0 s" in measured.versus
    assert measured.versus.endswith("idle ends included, 1.500")  # 2 workers x 60 s / 80 s


def test_pairs_a_minute_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(num_pairs=30, wall_s=60.0, busy_s=0.0, accepted_cycles_s=1.0, all_cycles_s=1.0)
    monkeypatch.setattr(rendering, "_measured_build", lambda: build)
    monkeypatch.setattr(rendering, "_timed", lambda recipe, make_pairs: (60.0, 12))
    measured = rendering.pairs_per_minute(REQUEST)
    assert (measured.value, measured.ratio, measured.holds) == (30.0, 2.5, True)


def test_drift_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    fifths = ([FakeCall(None, 100 * mib), FakeCall(0.1, 400 * mib), FakeCall(0.3, 50 * mib), FakeCall(9.0, 0, False)],
              [], [], [], [FakeCall(0.42, 480 * mib, probe_s=0.004)] * 3)  # fmt: skip
    monkeypatch.setattr(rendering, "_long_calls", lambda: fifths)
    slower, larger = rendering.render_time_last_over_first(REQUEST), rendering.render_memory_last_over_first(REQUEST)
    assert slower.value == pytest.approx(1.05) and slower.holds
    assert larger.value == pytest.approx(1.2) and not larger.holds


def test_long_figures_have_a_target_of_their_own() -> None:
    assert not bench.BENCHMARKS.keys() & bench.LONG_BENCHMARKS.keys()
    entry = bench.as_entry("render_time_last_over_first", rendering._drift(1.0, "", ""))
    assert entry["command"] == 'make bench-long ONLY="render_time_last_over_first"'


@pytest.mark.slow
def test_real_builds_are_timed_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_RECIPE", SMALL)
    monkeypatch.setattr(rendering, "_LONG", SMALL)
    build = rendering._measured_build.__wrapped__()
    assert build.num_pairs == 4
    # What is kept was drawn inside Cycles, while a worker was busy, and no worker was busy longer than the build took.
    assert 0 < build.accepted_cycles_s <= build.all_cycles_s < build.busy_s <= 2 * build.wall_s
    calls = [call for part in rendering._long_calls.__wrapped__() for call in part]
    assert len(calls) >= 4 * 6  # two pictures, their ids, and each changed object alone where it is
    assert all(call.memory_bytes > 50 * 2**20 for call in calls)
    assert calls[0].cpu_s is None and all(call.cpu_s is not None and call.cpu_s >= 0 for call in calls[1:])
