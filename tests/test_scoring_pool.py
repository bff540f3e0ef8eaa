"""Whatever a reward plugin does, its process is stopped, the completion is named, and all others get their scores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dig_rl.config import RewardConfig
from dig_rl.errors import ClusterError, PluginError
from dig_rl.scoring import Scorer
from dig_rl.scoring_pool import ScoringPool, hash_plugins
from dig_rl.scoring_worker import ScorerSpec
from dig_rl.types import Completion, Example, SampledGroup, Score, ScoreFailure
from tests.processes import MARK, started_by

pytestmark = pytest.mark.slow  # a process or two for each broken plugin

ROOT = Path(__file__).resolve().parent.parent
GOOD = "[[100, 200, 300, 400]]"
HALF = "[[100, 200, 300, 300]]"  # IoU 1/2
EVIL_SIDE = 999
EVIL = f"[[0, 0, {EVIL_SIDE}, {EVIL_SIDE}]]"

HEAD = """
import ctypes, os, signal, sys, threading, time

kept = []

def plugin(item):
    if f"{%d}" not in item.completion:
        return 0.5
""" % (EVIL_SIDE)  # noqa: UP031 - the f-string is the plugin's

SLEEPS = "    time.sleep(3600)"
SPINS = "    while True: pass"
HIDES = "    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n    time.sleep(3600)"
ALLOCATES = "    while True: kept.append(bytearray(2**24))"
SWALLOWS = """
    while True:
        try:
            kept.append(bytearray(2**24))
        except MemoryError:
            pass
"""
EXITS = "    os._exit(0)"
CRASHES = "    ctypes.string_at(0)"
LEAVES = "    sys.exit(0)"
RAISES = "    raise ValueError('on purpose')"
NAN = "    return float('nan')"
OVER_ONE = "    return 1.5"
HOSTILE_REPR = """
    class Value:
        def __repr__(self): raise RuntimeError
    return Value()
"""
CLOSES = "    os.closerange(3, 256)"
FORKS = "    os.fork()\n    time.sleep(3600)"
FORKS_AND_EXITS = "    os.fork() and os._exit(3)\n    time.sleep(3600)"

BROKEN = {
    "sleeps forever": (SLEEPS, r"took longer than 0\.5 s \(reward\.time_limit_s\), twice"),
    "computes forever": (SPINS, r"took longer than 0\.5 s"),
    "blocks signals": (HIDES, r"took longer than 0\.5 s"),
    "allocates without end": (ALLOCATES, r"ran out of memory \(reward\.memory_limit_gib = 0\.5\), twice"),
    "hides that memory is out": (SWALLOWS, r"took longer than 0\.5 s"),
    "calls os._exit": (EXITS, "ended its process with exit code 0, twice"),
    "crashes": (CRASHES, r"was ended by signal 11 \(Segmentation fault\), twice"),
    "calls sys.exit": (LEAVES, "made scoring raise SystemExit"),
    "raises": (RAISES, "raised ValueError: on purpose"),
    "returns NaN": (NAN, r"returned nan, expected a number in \[0, 1\]"),
    "returns 1.5": (OVER_ONE, "returned 1.5, expected"),
    "cannot be shown": (HOSTILE_REPR, "made scoring raise RuntimeError"),
    "closes everything": (CLOSES + "\n    time.sleep(3600)", "closed its connection, twice"),
    "forks": (FORKS, r"took longer than 0\.5 s"),
    "leaves a child behind": (FORKS_AND_EXITS, r"took longer than 0\.5 s"),
}


def scoring_processes(parent: int | None = None) -> list[psutil.Process]:
    """Scoring processes that `parent`, by default this process, has started."""
    children = psutil.Process(parent).children()  # the tests before these may have left helpers of their own
    return [child for child in children if any("scoring_worker" in word for word in child.cmdline())]


def group_of(texts: list[str], pair_id: str = "pair-7") -> SampledGroup:
    example = Example(pair_id, "/a.png", "/b.png", (1000, 1000), ((100, 200, 300, 400),), ("color",), "train")
    completions = tuple(Completion((1, 2, 3), (), text, "stop", seed) for seed, text in enumerate(texts))
    return SampledGroup(example, (1,), completions, 0, (1000, 1000), 0)


def spec_of(folder: Path, source: str, **options: Any) -> ScorerSpec:
    """The IoU plugin, and one of `source`, half each."""
    (folder / "evil.py").write_text(source)
    terms = {
        "iou": {"use": "rewards/box_iou.py:box_iou", "weight": 0.5},
        "evil": {"use": f"{folder}/evil.py:plugin", "weight": 0.5},
    }
    limits = {"time_limit_s": 0.5, "memory_limit_gib": 0.5}
    reward = RewardConfig.model_validate({"terms": terms} | limits | options)
    return ScorerSpec(reward, ROOT, False, "norm1000", "box every change", hash_plugins(reward, ROOT))


def score(spec: ScorerSpec, groups: list[SampledGroup], max_failed: int) -> list[tuple[Score | ScoreFailure, ...]]:
    with ScoringPool(spec) as pool:
        return pool.score(groups, step=3, stage="single", max_failed=max_failed)


def totals(outcomes: tuple[Score | ScoreFailure, ...]) -> list[float | None]:
    return [round(outcome.total, 9) if isinstance(outcome, Score) else None for outcome in outcomes]


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_plugin_loses_its_completion_and_no_other(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, what = BROKEN[kind]
    groups = [group_of([GOOD, HALF]), group_of([HALF, EVIL, GOOD], "pair-8"), group_of([GOOD], "pair-9")]
    monkeypatch.setenv(MARK, str(tmp_path))
    time_limit_s = 60.0 if body in (ALLOCATES, CRASHES, EXITS) else 0.5
    with ScoringPool(spec_of(tmp_path, HEAD + body, time_limit_s=time_limit_s)) as pool:
        first, second, third = pool.score(groups, step=3, stage="single", max_failed=1)
        again = pool.score(groups[:1], step=4, stage="single", max_failed=0)
    assert started_by(tmp_path) == []
    # Half of each: IoU 1 or 1/2, and the plugin's own 0.5.
    assert totals(first) == [0.75, 0.5]
    assert totals(second) == [0.5, None, 0.75]
    assert totals(third) == [0.75]
    assert again == [first]
    failure = second[1]
    assert isinstance(failure, ScoreFailure)
    for part in (f'"{tmp_path}/evil.py:plugin" (term evil)', "on pair pair-8 at step 3", EVIL):
        assert part in failure.reason
    with pytest.raises(PluginError, match=what):
        raise PluginError(failure.reason)


@pytest.mark.parametrize("kind", ["sleeps forever", "calls os._exit", "raises"])
def test_without_a_budget_the_first_broken_completion_stops_the_run(kind: str, tmp_path: Path) -> None:
    body, what = BROKEN[kind]
    started = time.monotonic()
    with pytest.raises(PluginError, match=what) as caught:
        score(spec_of(tmp_path, HEAD + body), [group_of([GOOD, EVIL] + [EVIL] * 500)], max_failed=0)
    assert "ALLOW_CHANGED_PLUGINS=1" in str(caught.value)
    assert "pair-7" in str(caught.value)
    assert time.monotonic() - started < 50  # two limits of 0.5 s and three starts, not 501 limits


def test_over_the_budget_says_how_many_and_how_many_may(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"3 completions of the step failed, reward\.max_failed_frac allows 2"):
        score(spec_of(tmp_path, HEAD + RAISES), [group_of([EVIL, EVIL, GOOD, EVIL])], max_failed=2)


FLOODS = """
    for _ in range(1024):
        print("x" * 2**20)
        sys.__stdout__.write("x" * 2**10)
        os.write(2, b"x" * 2**10)
    return 0.5
"""


def test_a_gigabyte_of_output_changes_nothing_and_reaches_the_log_in_part(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(tmp_path, HEAD + FLOODS, time_limit_s=60)
    (outcomes,) = score(spec, [group_of([GOOD, EVIL, GOOD])], max_failed=0)
    # The flood's whole-image box has an IoU of 40,000 / 998,001 pixels.
    assert totals(outcomes) == pytest.approx([0.75, 0.25 + 0.5 * 40_000 / 998_001, 0.75])
    printed = capfd.readouterr().err
    assert printed.startswith("xxx")
    assert "the rest is dropped" in printed
    assert len(printed) < 70_000


def test_a_tensor_is_not_a_number(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "import torch\n" + HEAD + "    return torch.tensor(0.5)", memory_limit_gib=2.0)
    (outcomes,) = score(spec, [group_of([GOOD, EVIL])], max_failed=1)
    assert totals(outcomes) == [0.75, None]
    assert isinstance(outcomes[1], ScoreFailure)
    assert "returned tensor(0.5000), expected a number in [0, 1]" in outcomes[1].reason


def test_a_plugin_that_cuts_the_line_to_the_pool_and_goes_on_ends_the_run(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, HEAD + CLOSES + "\n    return 0.5")
    with pytest.raises(ClusterError, match="while no reward plugin was at work, 3 times in a row"):
        score(spec, [group_of([GOOD, EVIL])], max_failed=1)


def test_a_process_killed_from_outside_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    slow = "import time\ndef plugin(item):\n    time.sleep(0.05)\n    return 0.5"
    with ScoringPool(spec_of(tmp_path, slow)) as pool:
        (worker,) = scoring_processes()
        worker.kill()  # between two jobs
        (outcomes,) = pool.score([group_of([GOOD, HALF])], step=3, stage="single", max_failed=0)
        assert totals(outcomes) == [0.75, 0.5]
        (worker,) = scoring_processes()
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({worker.pid}, 9)"])
        (outcomes,) = pool.score([group_of([GOOD, HALF] * 40)], step=3, stage="single", max_failed=0)
        assert killer.wait() == 0
        assert totals(outcomes) == [0.75, 0.5] * 40
        assert scoring_processes() != [worker]


def test_scores_are_those_of_the_scorer_however_many_processes(tmp_path: Path) -> None:
    texts = [GOOD, HALF, "[]", "no boxes", "[[1, 2, 3]]", EVIL]
    groups = [group_of(texts[index:] + texts[:index], f"pair-{index}") for index in range(5)]
    reward = RewardConfig(num_processes=3)
    scorer = Scorer(reward, root=ROOT, thinking=False, frame="norm1000", prompt="")
    expected = [scorer.score(group, step=0, stage="mixed") for group in groups]
    spec = ScorerSpec(reward, ROOT, False, "norm1000", "", hash_plugins(reward, ROOT))
    with ScoringPool(spec) as pool:
        assert pool.score(groups, step=0, stage="mixed", max_failed=0) == expected
        assert pool.score([], step=0, stage="mixed", max_failed=0) == []
        assert pool.score(groups[:1], step=0, stage="mixed", max_failed=0) == expected[:1]
    assert scoring_processes() == []


def test_a_plugin_that_changes_while_the_run_goes_is_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, HEAD + EXITS)
    with ScoringPool(spec) as pool:
        (tmp_path / "evil.py").write_text(HEAD + "    return 0.5")
        with pytest.raises(PluginError, match=r"evil\.py:plugin\" changed while the run was going"):
            pool.score([group_of([EVIL])], step=0, stage="single", max_failed=0)


@pytest.mark.parametrize(
    ("source", "problem", "message"),
    [
        ("def other(item): ...", PluginError, 'has no function "plugin"'),
        ("kept = []\nwhile True: kept.append(bytearray(2**24))", PluginError, "MemoryError"),
        ("import os; os._exit(3)", ClusterError, "exit code 3 while it loaded the plugins"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_says_so(
    tmp_path: Path, source: str, problem: type[Exception], message: str
) -> None:
    with pytest.raises(problem, match=message):
        ScoringPool(spec_of(tmp_path, source))
    assert scoring_processes() == []


HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.test_scoring_pool import *
with ScoringPool(spec_of(Path({folder!r}), HEAD + HIDES, time_limit_s=3600, num_processes=2)) as pool:
    print("ready", flush=True)
    pool.score([group_of([EVIL]), group_of([GOOD])], step=0, stage="single", max_failed=0)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a pool of two, one of which hangs with every signal blocked."""
    source = HOLDER.format(root=str(ROOT), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_processes_end_with_the_one_that_started_them(holder: subprocess.Popen[str]) -> None:
    workers = scoring_processes(holder.pid)
    assert len(workers) == 2
    holder.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_ctrl_c_does_not_reach_scoring_processes(tmp_path: Path) -> None:
    with ScoringPool(spec_of(tmp_path, HEAD)):
        (worker,) = scoring_processes()
        assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
