"""Pictures without Blender: rays cast in numpy. Quick to start and to draw, and plainer to look at."""

from __future__ import annotations

import numpy as np

from dig_rl.datagen.color_difference import linear_to_srgb
from dig_rl.datagen.raycast import Body, camera_rays, first_hits
from dig_rl.datagen.scene import Scene
from dig_rl.datagen.shading import LitScene
from dig_rl.errors import RenderError

RAYS_AT_ONCE = 1 << 15
_STEPS = np.array([0.8566748838545029, 0.733891856627126, 0.6287067210378087, 0.5385972572236101])
"""Spreads one pixel's samples evenly over its area and the lights. Source: Roberts, the R4 sequence (2018)."""


class NumpyRenderer:
    """A renderer that casts rays in this process; its pictures depend on the arguments alone."""

    version = "numpy ray caster 1"

    def __init__(self, width: int, height: int, samples: int) -> None:
        """Prepare.

        Args:
            width: pixels of every picture.
            height: pixels of every picture.
            samples: rays a pixel of a beauty picture, each with one ray to each light.
        """
        self._width, self._height, self._samples = width, height, samples
        self._closed = False

    def render_ids(self, scene: Scene, only: int | None = None) -> np.ndarray:
        """`[H, W]` uint8 object ids seen through the pixel centres; `only` draws a single object.

        Raises:
            RenderError: the renderer is closed.
        """
        self._refuse_if_closed()
        bodies = [Body(item) for item in scene.objects if only in (None, item.object_id)]
        origin, directions = camera_rays(scene.camera, self._width, self._height, self._corners() + 0.5)
        ids = np.maximum(first_hits(bodies, origin, directions).ids, 0)
        return ids.astype(np.uint8).reshape(self._height, self._width)

    def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
        """`[H, W, 3]` uint8 sRGB picture; `seed` in [0, 2**31) fixes the noise.

        Raises:
            RenderError: the renderer is closed.
        """
        lit, corners = LitScene(scene), self._corners()
        shifts = np.random.default_rng(seed).random((len(corners), 1, 4))
        steps = np.arange(self._samples)[None, :, None] * _STEPS
        picture = np.empty((len(corners), 3))
        pixels_at_once = max(1, RAYS_AT_ONCE // self._samples)
        for start in range(0, len(corners), pixels_at_once):
            self._refuse_if_closed()
            part = slice(start, start + pixels_at_once)
            jitter = (shifts[part] + steps) % 1.0
            xy_px = (corners[part, None] + jitter[:, :, :2]).reshape(-1, 2)
            origin, directions = camera_rays(scene.camera, self._width, self._height, xy_px)
            colors = lit.radiance(origin, directions, jitter[:, :, 2:].reshape(-1, 2))
            picture[part] = np.minimum(colors, 1.0).reshape(-1, self._samples, 3).mean(axis=1)
        return linear_to_srgb(picture).reshape(self._height, self._width, 3)

    def interrupt(self) -> None:
        """Make a picture that another thread is drawing raise RenderError soon, and every later one too."""
        self._closed = True

    def close(self) -> None:
        """Refuse further pictures; safe to call twice."""
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RenderError("the renderer is closed")

    def _corners(self) -> np.ndarray:
        """`[H * W, 2]` upper left corner of each pixel, row by row."""
        columns, rows = np.meshgrid(np.arange(self._width), np.arange(self._height))
        return np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float64)
