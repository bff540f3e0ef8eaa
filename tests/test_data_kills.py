"""Whatever ends a build, what is there is whole, and the same command makes the rest: every file byte for byte."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dig_rl.datagen.build import build_dataset
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import REPOSITORY
from dig_rl.errors import DataError
from tests.flat_renderer import FlatRenderer
from tests.processes import MARK, started_by
from tests.test_datagen_build import hashes
from tests.tiny import ENVIRONMENT

TINY = REPOSITORY / "launch/configs/data/tiny.toml"
RECIPE = DataRecipe(width=48, height=48, num_objects=(3, 4), arena_m=2.0, splits={"train": {1: 1}, "test": {2: 1}})


def flat() -> FlatRenderer:
    return FlatRenderer(48, 48, arena_m=2.0)


def finished_files(out: Path) -> dict[str, str]:
    """Hashes of what a reader of the folder sees: everything outside `.building/`."""
    return {name: value for name, value in hashes(out).items() if not name.startswith(".building/")}


def assert_whole(out: Path, reference: dict[str, str]) -> None:
    """Nothing that is in its place is half-written, and the manifest comes last."""
    found = finished_files(out)
    assert found.items() <= reference.items()
    assert "manifest.json" not in found or found == reference


# --- a kill at every single operation on a file, with a flat renderer


class KilledAt:
    """Ends this process like SIGKILL in the middle of its n-th operation on files; counts them on the way."""

    def __init__(self, operation: int) -> None:
        self.left = operation

    def __enter__(self) -> KilledAt:
        for owner, name in ((Path, "write_bytes"), (Path, "replace"), (os, "unlink"), (os, "rmdir")):
            setattr(owner, name, self._counted(getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None: ...

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                if function.__name__ == "write_bytes":
                    path, contents = args
                    function(path, contents[: len(contents) // 2])
                os._exit(9)
            return function(*args, **named)

        return counted


def build_until(operation: int, out: Path) -> int:
    """Build in a child that is killed at one operation; returns its exit code, 0 when it was finished before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with KilledAt(operation):
                build_dataset(RECIPE, out, make_renderer=flat, workers=2)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_kill_at_any_operation_on_a_file_costs_nothing(tmp_path: Path) -> None:
    build_dataset(RECIPE, tmp_path / "reference", make_renderer=flat)
    reference = hashes(tmp_path / "reference")
    killed, twice, operation = 0, tmp_path / "twice", 1
    while (code := build_until(operation, out := tmp_path / str(operation))) == 9:
        assert_whole(out, reference)
        killed += 1
        build_dataset(RECIPE, out, make_renderer=flat)
        assert hashes(out) == reference
        shutil.rmtree(out)
        build_until(operation, twice)  # the same folder killed again and again: it only ever gains
        assert_whole(twice, reference)
        operation += 1
    assert code == 0
    assert killed > 2 * (2 * 4 + 3)  # each of 2 x 4 files of pairs and 3 of the folder is written, then moved
    assert hashes(twice) == reference


# --- a full disk


def test_a_file_that_grows_too_large_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    build_dataset(RECIPE, tmp_path / "reference", make_renderer=flat)
    reference, out = hashes(tmp_path / "reference"), tmp_path / "data"
    largest = max(path.stat().st_size for path in (tmp_path / "reference/images").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*pair-0000\d_[ab].png: File too large; free some space"):
            build_dataset(RECIPE, out, make_renderer=flat)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_whole(out, reference)
    assert not list((out / ".building/partial").iterdir())
    build_dataset(RECIPE, out, make_renderer=flat)
    assert hashes(out) == reference


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A disk of `kib` at `folder`; yields a function that gives it another size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}k", str(folder)], check=True
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kib", range(0, 40, 4))
def test_a_full_disk_is_one_error_and_the_rest_fits_later(tmp_path: Path, kib: int) -> None:
    build_dataset(RECIPE, tmp_path / "reference", make_renderer=flat)
    reference = hashes(tmp_path / "reference")
    with small_disk(tmp_path / "disk", 4096) as resize:
        out = tmp_path / "disk" / "data"
        (tmp_path / "disk" / "others").write_bytes(bytes(4096 * 1024 - 4096 - kib * 1024))
        with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
            build_dataset(RECIPE, out, make_renderer=flat)
        if out.exists():
            assert_whole(out, reference)
        resize(8192)
        build_dataset(RECIPE, out, make_renderer=flat)
        assert hashes(out) == reference


# --- the command and real Blenders


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "launch.data", "--config", str(TINY), "--out", str(out), "--workers", "2"]


def run(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | ENVIRONMENT | environment
    return subprocess.run(command(out), cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Hashes of an uninterrupted build of the tiny recipe, and the seconds that it took."""
    out, started = tmp_path_factory.mktemp("rendered") / "data", time.monotonic()
    done = run(out)
    assert done.returncode == 0, done.stderr
    return hashes(out), time.monotonic() - started


def kill_after(seconds: float, out: Path, victim: str, mark: Path) -> int:
    """Start a build, kill it or one of its Blenders at that moment; returns the exit code of the build."""
    build = subprocess.Popen(
        command(out), cwd=REPOSITORY, env=os.environ | ENVIRONMENT | {MARK: str(mark)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(seconds)
    if victim == "build":
        build.kill()
    else:
        with contextlib.suppress(psutil.Error):
            for blender in psutil.Process(build.pid).children()[:1]:
                blender.kill()
    return build.wait(timeout=300)


def assert_nothing_runs(mark: Path) -> None:
    deadline = time.monotonic() + 20
    while alive := started_by(mark):
        assert time.monotonic() < deadline, f"outlived the build: {alive}"
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["build", "blender"])
@pytest.mark.parametrize("moment", range(10))
def test_a_kill_at_any_moment_costs_nothing_but_time(
    tmp_path: Path, rendered: tuple[dict[str, str], float], moment: int, victim: str
) -> None:
    reference, seconds = rendered
    after = random.Random(f"{victim}-{moment}").uniform(0.1, 0.95) * seconds
    out = tmp_path / "data"
    code = kill_after(after, out, victim, tmp_path)
    assert code in ((-signal.SIGKILL, 0) if victim == "build" else (0,))
    assert_nothing_runs(tmp_path)
    if out.exists():
        assert_whole(out, reference)
    assert run(out).returncode == 0
    assert hashes(out) == reference


@pytest.mark.long
def test_one_folder_killed_ten_times_is_finished_all_the_same(
    tmp_path: Path, rendered: tuple[dict[str, str], float]
) -> None:
    reference, seconds = rendered
    moments, out = random.Random("one folder"), tmp_path / "data"
    for _ in range(10):
        kill_after(moments.uniform(0.2, 0.6) * seconds, out, "build", tmp_path)
        if out.exists():
            assert_whole(out, reference)
    assert_nothing_runs(tmp_path)
    assert run(out).returncode == 0
    assert hashes(out) == reference


@pytest.mark.slow
def test_the_command_on_a_full_disk_says_so_and_goes_on_later(tmp_path: Path, tiny_data: Path) -> None:
    reference = hashes(tiny_data)
    with small_disk(tmp_path / "disk", 96) as resize:
        out = tmp_path / "disk" / "data"
        full = run(out)
        assert full.returncode == 1
        assert full.stderr.startswith(f"error: cannot write {out}")
        assert "No space left on device; free some space" in full.stderr and "Traceback" not in full.stderr
        assert_whole(out, reference)
        assert finished_files(out)  # what fitted is kept
        resize(8192)
        assert run(out).returncode == 0
        assert hashes(out) == reference


@pytest.mark.slow
def test_a_full_temporary_folder_is_one_error_and_is_left_empty(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16):
        full = run(tmp_path / "data", TMPDIR=str(tmp_path / "disk"))
        assert full.returncode == 1
        assert "TMPDIR names another folder" in full.stderr and "Traceback" not in full.stderr
        assert not list((tmp_path / "disk").iterdir())
