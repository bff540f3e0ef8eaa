"""What every test may rely on: quiet, offline engines and the repository's folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import NAMES, Browser, find_chromium, open_browser
from tests.tiny import CONFIG, ENVIRONMENT, TinyWorld, build_tiny_policy

ROOT = Path(__file__).resolve().parent.parent

# Set before any test imports an engine, and inherited by every process that a test starts.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_EXTENSIONS_DIR": str(ROOT / ".cache" / "torch_extensions"),
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)
# A cluster of the user's is none of ours, what was asked of the outer make is not asked of those that tests call, and
# tests of repeatability need hashes that differ from process to process.
for name in ("RAY_ADDRESS", "MAKEFLAGS", "MAKEOVERRIDES", "PYTHONHASHSEED"):
    os.environ.pop(name, None)

# Children inherit an ignored Ctrl-C, as a shell's `&` sets it, and tests send one.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, and no clock: a slow machine is no counterexample. `--hypothesis-profile=default` looks
# for new ones.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that the light ones can even out both processes at the end."""
    heavy = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -heavy[item.path])


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds the Makefile."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve pairs of the tiny recipe, rendered by two Blenders; tests must not change them."""

    def make(folder: Path) -> None:
        options = ["--config", "launch/configs/data/tiny.toml", "--out", str(folder / "data"), "--workers", "2"]
        command = [sys.executable, "-m", "launch.data", *options]
        subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, check=True)

    return _made_once(tmp_path_factory, "tiny", make) / "data"


@pytest.fixture(scope="session")
def tiny_world(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Pairs rendered by Blender, and a policy warmed up on them by TRL; tests must not change them, either."""

    def make(folder: Path) -> None:
        start = build_tiny_policy(folder / "start")
        warm_up = [sys.executable, "-m", "launch.warmup", "--config", str(CONFIG)]
        settings = ["--set", *TinyWorld(tiny_data, folder / "policy").overrides(f'warmup.start="{start}"')]
        subprocess.run([*warm_up, *settings], cwd=ROOT, env=os.environ | ENVIRONMENT, check=True)

    return TinyWorld(tiny_data, _made_once(tmp_path_factory, "world", make) / "policy")


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process to need it makes, while others wait, and all use."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy with random weights."""
    return build_tiny_policy(tmp_path_factory.mktemp("random") / "policy")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that need one are skipped where there is none."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH; CHROMIUM=/path/to/it names one")
    with open_browser(executable, tmp_path_factory.mktemp("chromium")) as found:
        yield found
