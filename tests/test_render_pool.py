"""Pairs made on Ray: the bytes of a local build, whatever dies on the way, and nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dig_rl.datagen.build import BuildProgress, build_dataset, fill_folder
from dig_rl.datagen.pairs import plan_pairs
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import REPOSITORY, Renderer
from dig_rl.datagen.renderers import open_renderer
from dig_rl.datagen.scene import Scene
from dig_rl.errors import ClusterError, ConfigError, RenderError
from tests.flat_renderer import FlatRenderer
from tests.processes import MARK, started_by
from tests.ray_head import running_ray_head
from tests.test_datagen_build import RECIPE, hashes, stop_after
from tests.tiny import ENVIRONMENT

pytestmark = pytest.mark.slow

TINY = REPOSITORY / "launch/configs/data/tiny.toml"


class MortalRenderer(FlatRenderer):
    """Kills its whole process the first `lives` times that it draws."""

    def __init__(self, folder: Path, lives: int) -> None:
        super().__init__(48, 48, arena_m=2.0)
        self._folder, self._lives = folder, lives

    def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
        for life in range(self._lives):
            try:
                (self._folder / f"life-{life}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().render_beauty(scene, seed)


class BrokenRenderer(FlatRenderer):
    """Draws nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__(48, 48, arena_m=2.0)
        self._error = error

    def render_ids(self, scene: Scene, only: int | None = None) -> np.ndarray:
        raise self._error


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("reference") / "data"
    build_dataset(RECIPE, out, make_renderer=functools.partial(FlatRenderer, 48, 48, 2.0))
    return hashes(out)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A private Ray that outlives a build: starting one for each test would take most of their time."""
    import ray

    from dig_rl.actors import render_pool

    on_sigterm = signal.getsignal(signal.SIGTERM)
    render_pool.connect("local", 4)
    assert signal.getsignal(signal.SIGTERM) is on_sigterm  # Ray puts a handler of its own, which ends without a word
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render_pool, "connect", lambda address, num_slots: None)
        patch.setattr(render_pool.ray, "shutdown", lambda: None)
        yield
    ray.shutdown()


def build_on_ray(
    out: Path,
    make_renderer: Callable[[], Renderer],
    recipe: DataRecipe = RECIPE,
    on_progress: Callable[[BuildProgress], None] = lambda progress: None,
    **options: Any,
) -> None:
    from dig_rl.actors.render_pool import make_pairs_on_ray

    make_pairs = functools.partial(make_pairs_on_ray, address="local", make_renderer=make_renderer, **options)
    assert fill_folder(recipe, out, make_pairs, on_progress)


@pytest.mark.parametrize("workers", [1, None])
def test_tasks_make_the_bytes_of_a_local_build(
    ray_here: None, tmp_path: Path, reference: dict[str, str], workers: int | None
) -> None:
    build_on_ray(tmp_path, functools.partial(FlatRenderer, 48, 48, 2.0), workers=workers)
    assert hashes(tmp_path) == reference


def test_numpy_pictures_are_the_same_over_there(ray_here: None, tmp_path: Path) -> None:
    recipe = DataRecipe(
        width=48,
        height=32,
        samples=2,
        renderer="numpy",
        num_objects=(3, 3),
        arena_m=1.6,
        splits={"train": {1: 2, 2: 2}},
    )
    make_renderer = functools.partial(open_renderer, recipe)
    build_on_ray(tmp_path / "there", make_renderer, recipe)
    build_dataset(recipe, tmp_path / "here", make_renderer=make_renderer, workers=2)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")


def test_pairs_of_killed_workers_are_made_again(ray_here: None, tmp_path: Path, reference: dict[str, str]) -> None:
    lives = tmp_path / "lives"
    lives.mkdir()
    build_on_ray(tmp_path / "data", functools.partial(MortalRenderer, lives, 2), workers=2)
    assert len(list(lives.iterdir())) == 2
    assert hashes(tmp_path / "data") == reference


def test_a_pair_that_kills_every_worker_is_named(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dig_rl.actors import render_pool

    monkeypatch.setattr(render_pool, "_LOST_WORKERS_A_PAIR", 1)
    only_one = RECIPE.model_copy(update={"splits": {"train": {1: 1}}})
    with pytest.raises(ClusterError, match=r"^pair-00000 lost its worker 2 times: .*WORKERS= starts fewer$"):
        build_on_ray(tmp_path / "data", functools.partial(MortalRenderer, tmp_path, 100), only_one)
    assert len(list(tmp_path.glob("life-*"))) == 2


def test_an_interrupted_build_goes_on_elsewhere(ray_here: None, tmp_path: Path, reference: dict[str, str]) -> None:
    flat = functools.partial(FlatRenderer, 48, 48, 2.0)
    with pytest.raises(KeyboardInterrupt):
        build_on_ray(tmp_path, flat, on_progress=stop_after(5))
    assert not (tmp_path / "manifest.json").exists()
    build_dataset(RECIPE, tmp_path, make_renderer=flat)
    assert hashes(tmp_path) == reference


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RenderError("out of paint"), rf"^on {socket.gethostname()}: out of paint$"),
        (ConfigError("no such colour"), "^no such colour$"),
        (ZeroDivisionError("by hand"), "^making pair-00000 failed: ZeroDivisionError: by hand$"),
    ],
)
def test_an_error_over_there_is_one_message_here(
    ray_here: None, tmp_path: Path, error: Exception, expected: str
) -> None:
    raised = type(error) if isinstance(error, RenderError | ConfigError) else ClusterError
    with pytest.raises(raised, match=expected):
        build_on_ray(tmp_path, functools.partial(BrokenRenderer, error), workers=1)


def test_more_than_a_window_of_tasks_never_waits_at_once(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dig_rl.actors import render_pool

    sizes: list[int] = []
    wait = render_pool.ray.wait

    def counted(refs: list[Any], **options: Any) -> Any:
        sizes.append(len(refs))
        return wait(refs, **options)

    monkeypatch.setattr(render_pool.ray, "wait", counted)
    build_on_ray(tmp_path, functools.partial(FlatRenderer, 48, 48, 2.0), workers=3)
    assert max(sizes) == 3 and len(sizes) == len(plan_pairs(RECIPE))


# --- a Ray that was there before, and real Blenders


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("head")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, str(folder))  # everything that the head starts inherits it
        with running_ray_head() as client:
            yield client | {"HEAD": str(folder)}


def command(out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "launch.data", "--config", str(TINY), "--out", str(out), *options
    ]  # fmt: skip


def blenders(head: dict[str, str]) -> list[int]:
    """Process ids of the render servers that the head's workers started."""
    found = []
    for process in started_by(Path(head["HEAD"])):
        with contextlib.suppress(psutil.Error):
            if any(word.endswith("render_server.py") for word in process.cmdline()):
                found.append(process.pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_ctrl_c_ends_every_task_and_a_local_build_goes_on(
    ray_head: dict[str, str], tmp_path: Path, tiny_data: Path, number: signal.Signals
) -> None:
    out, deadline = tmp_path / "data", time.monotonic() + 300
    build = subprocess.Popen(
        command(out, "--ray", ray_head["GCS_ADDRESS"]),
        cwd=REPOSITORY, env=os.environ | ENVIRONMENT | ray_head | {"RAY_AUTH_MODE": "token", MARK: str(tmp_path)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list((out / ".building/receipts").glob("*.json"))) < 1:
        assert build.poll() is None, build.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert blenders(ray_head)
    build.send_signal(number)
    _, errors = build.communicate(timeout=120)
    assert build.returncode == 130, errors
    assert "of 12 pairs finished; the same command goes on" in errors and "Traceback" not in errors
    while blenders(ray_head) or started_by(tmp_path):
        assert time.monotonic() < deadline, "a renderer or a driver outlived the build"
        time.sleep(0.1)
    # Part was made over there, part is made here; one whole local build is what the sum must equal.
    subprocess.run(command(out), cwd=REPOSITORY, env=os.environ | ENVIRONMENT, check=True)
    assert hashes(out) == hashes(tiny_data)


LOSE_A_MACHINE = """
import functools, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from dig_rl.actors.render_pool import make_pairs_on_ray
from dig_rl.datagen.build import fill_folder
from tests.flat_renderer import FlatRenderer
from tests.test_datagen_build import RECIPE

class SlowRenderer(FlatRenderer):
    def render_beauty(self, scene, seed):
        import time
        time.sleep(0.3)
        return super().render_beauty(scene, seed)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
machine = cluster.add_node(num_cpus=2)

def lose(progress):
    if progress.done == 3:
        cluster.remove_node(machine, allow_graceful=False)
        print("lost a machine", flush=True)

make_renderer = functools.partial(SlowRenderer, 48, 48, 2.0)
make_pairs = functools.partial(make_pairs_on_ray, address=cluster.address, make_renderer=make_renderer)
fill_folder(RECIPE, Path(sys.argv[1]), make_pairs, lose)
cluster.shutdown()
"""


@pytest.mark.long
def test_pairs_of_a_lost_machine_are_made_again(tmp_path: Path, reference: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSE_A_MACHINE, str(tmp_path / "data")],
        cwd=REPOSITORY, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lost a machine" in done.stdout
    assert hashes(tmp_path / "data") == reference
