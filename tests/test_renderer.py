"""The renderer's client against scripted servers: crash, hang, noise and garbage, without Blender."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import BLENDER_VERSION, BlenderRenderer, describe
from dig_rl.datagen.sampling import sample_scene
from dig_rl.errors import RenderError

SCENE = sample_scene(np.random.default_rng(0), DataRecipe(num_objects=(3, 3)))

SERVER = f"""
import json, os, pathlib, sys, time
from PIL import Image
log = pathlib.Path(__file__).with_suffix(".log")
log.open("a").write(f"{{os.getpid()}}\\n")
starts = len(log.read_text().splitlines())
def answer(**values):
    print(json.dumps(values), flush=True)
print("some noise", file=sys.stderr, flush=True)
answer(ready="{BLENDER_VERSION}")
for line in sys.stdin:
    request = json.loads(line)
    BEHAVIOUR
    first_id = request["scene"]["objects"][0]["object_id"]
    Image.new("L", (request["width"], request["height"]), first_id).save(request["output"])
    answer(seconds=0.25)
"""


def renderer(tmp_path: Path, behaviour: str = "pass", **options: Any) -> BlenderRenderer:
    server = tmp_path / "server.py"
    server.write_text(SERVER.replace("BEHAVIOUR", behaviour))
    return BlenderRenderer(8, 4, 1, python=Path(sys.executable), server=server, **{"timeout_s": 20.0, **options})


def pids(tmp_path: Path) -> list[int]:
    return [int(line) for line in (tmp_path / "server.log").read_text().split()]


def interrupt_once_started(tmp_path: Path, blender: BlenderRenderer) -> None:
    """From another thread, half a second after the server has begun."""

    def interrupt() -> None:
        while not (tmp_path / "server.log").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        blender.interrupt()

    threading.Thread(target=interrupt, daemon=True).start()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_missing_environment_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="run `make setup-blender`"):
        BlenderRenderer(8, 4, 1, python=tmp_path / "absent")


def test_one_process_answers_many_requests_and_is_gone_after_the_block(tmp_path: Path) -> None:
    with renderer(tmp_path) as blender:
        for _ in range(5):
            assert blender.render_ids(SCENE).tolist() == [[1] * 8] * 4
        assert blender.render_beauty(SCENE, seed=3).shape == (4, 8, 3)
        assert blender.pid == pids(tmp_path)[0] and blender.seconds_in_cycles == 6 * 0.25
    assert len(pids(tmp_path)) == 1 and gone(pids(tmp_path)[0])
    with pytest.raises(RenderError, match="closed"):
        blender.render_ids(SCENE)
    blender.close()


def test_the_process_is_renewed_after_its_share_of_requests(tmp_path: Path) -> None:
    with renderer(tmp_path, requests_per_process=2) as blender:
        for _ in range(5):
            blender.render_ids(SCENE)
    assert len(pids(tmp_path)) == 3 and all(gone(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize(
    ("behaviour", "options"),
    [
        ("os._exit(3)", {}),
        pytest.param("time.sleep(600)", {"timeout_s": 5.0}, marks=pytest.mark.slow),
        ("print('noise on the answer pipe', flush=True)", {}),
    ],
)
def test_a_process_that_fails_once_is_replaced(tmp_path: Path, behaviour: str, options: dict[str, float]) -> None:
    with renderer(tmp_path, f"starts == 1 and {behaviour}", **options) as blender:
        assert blender.render_ids(SCENE).max() == 1
    assert len(pids(tmp_path)) == 2 and all(gone(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize(
    ("behaviour", "expected", "options"),
    [
        ("print('last word', file=sys.stderr, flush=True); os._exit(3)", r"exit code 3[\s\S]*last word", {}),
        ("os.kill(os.getpid(), 9)", r"exit code -9[\s\S]*some noise", {}),
        pytest.param(
            "time.sleep(600)", r"within 4 s while drawing a picture", {"timeout_s": 4.0}, marks=pytest.mark.slow
        ),
        ("print('garbage', flush=True)", "expected one line of JSON", {}),
        ("answer(error='no such shape'); continue", "could not draw the scene: no such shape", {}),
    ],
)
def test_a_process_that_fails_twice_is_an_error_with_its_last_words(
    tmp_path: Path, behaviour: str, expected: str, options: dict[str, float]
) -> None:
    with renderer(tmp_path, behaviour, **options) as blender, pytest.raises(RenderError, match=expected):
        blender.render_ids(SCENE)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_another_blender_version_is_refused(tmp_path: Path) -> None:
    blender = renderer(tmp_path)
    server = tmp_path / "server.py"
    server.write_text(server.read_text().replace(BLENDER_VERSION, "3.6.0"))
    with (
        blender,
        pytest.raises(RenderError, match=f"bpy is 3.6.0, expected {BLENDER_VERSION}; run `make setup-blender`"),
    ):
        blender.render_ids(SCENE)


def test_an_id_that_the_scene_lacks_is_an_error(tmp_path: Path) -> None:
    with renderer(tmp_path) as blender, pytest.raises(RenderError, match=r"ids \[1\], the scene has \[0, 2\]"):
        blender.render_ids(SCENE, only=2)


def test_an_interrupt_from_another_thread_ends_a_request_at_once(tmp_path: Path) -> None:
    with renderer(tmp_path, "time.sleep(600)", timeout_s=600.0) as blender:
        interrupt_once_started(tmp_path, blender)
        start = time.monotonic()
        with pytest.raises(RenderError):
            blender.render_ids(SCENE)
        assert time.monotonic() - start < 60  # of 600
        with pytest.raises(RenderError, match="closed"):
            blender.render_ids(SCENE)
    assert len(pids(tmp_path)) == 1


def test_an_interrupt_while_blender_starts_ends_it_at_once(tmp_path: Path) -> None:
    blender = renderer(tmp_path, timeout_s=600.0)
    server = tmp_path / "server.py"
    server.write_text(server.read_text().replace("answer(ready", "time.sleep(600); answer(ready"))
    with blender:
        interrupt_once_started(tmp_path, blender)
        with pytest.raises(RenderError, match="while starting"):
            blender.render_ids(SCENE)
    assert gone(pids(tmp_path)[0])


def test_the_description_gives_numbers_instead_of_names() -> None:
    described = describe(SCENE)
    for item, drawn in zip(SCENE.objects, described["objects"], strict=True):
        height = {"cube": item.radius_m / 2**0.5, "torus": 0.3 * item.radius_m}.get(item.shape, item.radius_m)
        assert drawn["position_m"] == pytest.approx((item.x_m, item.y_m, height))
        assert set(drawn) == {"object_id", "shape", "material", "rgb_linear", "radius_m", "position_m", "yaw_deg"}
        assert all(0 <= value <= 1 for value in drawn["rgb_linear"])
