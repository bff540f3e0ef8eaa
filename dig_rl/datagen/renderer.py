"""Pictures of scenes from Blender, which runs in its own process and environment.

The boundary is a process and JSON lines (`launch/blender/render_server.py` states them); nothing of Blender is
imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dig_rl.datagen.color_difference import srgb_to_linear
from dig_rl.datagen.scene import COLORS_SRGB, Scene, SceneObject
from dig_rl.errors import RenderError

REPOSITORY = Path(__file__).resolve().parents[2]
BLENDER_PYTHON = REPOSITORY / ".venv-blender" / "bin" / "python"
RENDER_SERVER = REPOSITORY / "launch" / "blender" / "render_server.py"
BLENDER_VERSION = "4.5.15"
STDERR_LINES_SHOWN = 5

CENTER_HEIGHT = {"cube": 0.5**0.5, "torus": 0.3}
"""Height of a standing object's centre over its radius, where it is not 1."""


class Renderer(Protocol):
    """What making a pair needs of a renderer: both pictures depend on the arguments alone."""

    version: str
    """Name and version, for the manifest."""

    def render_ids(self, scene: Scene, only: int | None = None) -> np.ndarray:
        """`[H, W]` uint8 object ids seen through the pixel centres; `only` draws a single object."""

    def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
        """`[H, W, 3]` uint8 sRGB picture; `seed` in [0, 2**31) fixes the noise."""

    def interrupt(self) -> None:
        """Make a request that another thread is waiting for raise RenderError soon, and every later one too."""

    def close(self) -> None:
        """Release every resource; safe to call twice."""


class BlenderRenderer:
    """A Blender process that answers one request after another.

    It is started by the first request, started afresh every `requests_per_process` requests, because Blender's memory
    grows, and replaced once when it dies or hangs; a request that fails twice raises. It never outlives this object's
    `with` block nor this process.
    """

    version = f"Blender Cycles, bpy {BLENDER_VERSION}"

    def __init__(
        self,
        width: int,
        height: int,
        samples: int,
        *,
        threads: int = 1,
        device: str = "cpu",
        isolated: bool = False,
        python: Path = BLENDER_PYTHON,
        server: Path = RENDER_SERVER,
        requests_per_process: int = 2000,
        timeout_s: float = 120.0,
    ) -> None:
        """Prepare, without starting anything.

        Args:
            width: pixels of every picture.
            height: pixels of every picture.
            samples: light paths a pixel of a beauty picture.
            threads: CPU threads of Cycles; pictures do not depend on it.
            device: `cpu`, `cuda`, `optix` or `metal`.
            isolated: beauty pictures without shadows and bounces and with the smallest pixel filter, so that a pixel
                depends on nothing but what it shows; for tests.
            python: interpreter of the environment that has Blender.
            server: the program that it runs.
            requests_per_process: pictures before Blender is started afresh.
            timeout_s: seconds that one picture, or the start, may take; scaled up for large pictures.

        Raises:
            RenderError: there is no such environment.
        """
        if not python.exists():
            raise RenderError(f"Blender's environment is missing ({python} does not exist); run `make setup-blender`")
        self.seconds_in_cycles = 0.0
        self._picture = {"width": width, "height": height}
        self._beauty = {"op": "beauty", "samples": samples, "isolated": isolated}
        self._command = [str(python), "-u", str(server), "--threads", str(threads), "--device", device]
        self._requests_per_process = requests_per_process
        self._timeout_s = timeout_s + 1e-4 * width * height * samples
        self._folder = tempfile.TemporaryDirectory(prefix="dig-rl-render-")
        self._process: _BlenderProcess | None = None
        self._num_answered = 0
        self._closed = False

    def __enter__(self) -> BlenderRenderer:
        """Return itself; the process starts with the first request."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the process."""
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the running Blender, None between processes."""
        process = self._process
        return process.pid if process else None

    def render_ids(self, scene: Scene, only: int | None = None) -> np.ndarray:
        """`[H, W]` uint8 object ids seen through the pixel centres; `only` draws a single object.

        Raises:
            RenderError: Blender failed twice, or drew an id that is not in the scene.
        """
        ids = self._render({"op": "ids", "scene": describe(scene), "only": only}, mode="L")
        known = {0} | {item.object_id for item in scene.objects if only in (None, item.object_id)}
        strange = set(np.unique(ids).tolist()) - known
        if strange:
            raise RenderError(f"id picture holds ids {sorted(strange)}, the scene has {sorted(known)}")
        return ids

    def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
        """`[H, W, 3]` uint8 sRGB picture; `seed` in [0, 2**31) fixes the noise.

        Raises:
            RenderError: Blender failed twice.
        """
        return self._render({**self._beauty, "scene": describe(scene), "seed": seed}, mode="RGB")

    def interrupt(self) -> None:
        """Make a request that another thread is waiting for raise RenderError soon, and every later one too."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process and remove its files; safe to call twice, from the thread that sends the requests."""
        self._closed = True
        self._stop()
        self._folder.cleanup()

    def _render(self, request: dict[str, Any], mode: str) -> np.ndarray:
        output = Path(self._folder.name) / "picture.png"
        line = json.dumps({**request, **self._picture, "output": str(output)}).encode() + b"\n"
        try:
            answer = self._ask(line)
        except RenderError:
            if self._closed:
                raise
            answer = self._ask(line)
        self.seconds_in_cycles += answer["seconds"]
        with Image.open(output) as picture:
            return np.array(picture.convert(mode))

    def _ask(self, line: bytes) -> dict[str, Any]:
        if self._closed:
            raise RenderError("the renderer is closed")
        if self._num_answered >= self._requests_per_process:
            self._stop()
        try:
            if self._process is None:
                self._process, self._num_answered = _BlenderProcess(self._command, self._timeout_s), 0
                if self._closed:  # by an interrupt that came too early to find the process
                    raise RenderError("the renderer is closed")
                self._process.wait_until_ready()
            answer = self._process.ask(line)
        except BaseException:
            self._stop()
            raise
        self._num_answered += 1
        if "error" in answer:
            raise RenderError(f"Blender could not draw the scene: {answer['error']}")
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


class _BlenderProcess:
    """One running render server."""

    def __init__(self, command: list[str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which then decides
        )
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        """Wait for the first line, which names the version."""
        answer = self._read_answer("starting")
        if "error" in answer:
            raise RenderError(f"{answer['error']}; choose another `device` in the recipe, cpu works everywhere")
        version = answer.get("ready")
        if version != BLENDER_VERSION:
            raise RenderError(f"Blender's bpy is {version}, expected {BLENDER_VERSION}; run `make setup-blender`")

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading then finds out why it died
            stdin.write(line)
            stdin.flush()
        return self._read_answer("drawing a picture")

    def kill(self) -> None:
        """End the process; its pipes stay open for the thread that uses them."""
        self._process.kill()

    def close(self) -> None:
        """End the process and release its pipes."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):  # a request that was never read
                if pipe is not None:
                    pipe.close()

    def _read_answer(self, doing: str) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        deadline, received = time.monotonic() + self._timeout_s, b""
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failure(f"did not answer within {self._timeout_s:.0f} s while {doing}")
            part = os.read(stdout.fileno(), 65536)
            if not part:
                self.kill()
                raise self._failure(f"ended while {doing} (exit code {self._process.wait()})")
            received += part
        try:
            answer: dict[str, Any] = json.loads(received)
        except ValueError:
            raise self._failure(f"answered {received[:80]!r} while {doing}, expected one line of JSON") from None
        return answer

    def _failure(self, what: str) -> RenderError:
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").splitlines()[-STDERR_LINES_SHOWN:]
        return RenderError(
            f"Blender {what}; its last words:\n" + "\n".join(f"  {line}" for line in lines or ["(none)"])
        )


def describe(scene: Scene) -> dict[str, Any]:
    """The scene in the renderer's words: names become radii, heights and linear colours."""
    return {
        "objects": [_describe_object(item) for item in scene.objects],
        "camera": {
            "position_m": scene.camera.position_m,
            "look_at_m": scene.camera.look_at_m,
            "focal_length_mm": scene.camera.focal_length_mm,
            "sensor_mm": (scene.camera.sensor_width_mm, scene.camera.sensor_height_mm),
        },
        "lights": [
            {
                "position_m": light.position_m,
                "look_at_m": light.look_at_m,
                "diameter_m": light.diameter_m,
                "power_w": light.power_w,
                "rgb_linear": _linear(light.srgb),
            }
            for light in scene.lights
        ],
        "sky": {"rgb_linear": _linear(scene.sky_srgb), "strength": scene.sky_strength},
        "ground_rgb_linear": _linear(scene.ground_srgb),
    }


def _describe_object(item: SceneObject) -> dict[str, Any]:
    return {
        "object_id": item.object_id,
        "shape": item.shape,
        "material": item.material,
        "rgb_linear": _linear(COLORS_SRGB[item.color]),
        "radius_m": item.radius_m,
        "position_m": (item.x_m, item.y_m, CENTER_HEIGHT.get(item.shape, 1.0) * item.radius_m),
        "yaw_deg": item.yaw_deg,
    }


def _linear(srgb: tuple[int, int, int]) -> list[float]:
    return [float(value) for value in srgb_to_linear(np.array(srgb))]
