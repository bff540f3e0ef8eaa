"""A renderer for tests: discs and squares seen from straight above, in flat colours."""

from __future__ import annotations

import numpy as np

from dig_rl.datagen.scene import COLORS_SRGB, Scene


class FlatRenderer:
    """Obeys the renderer protocol; every object covers the disc of its radius."""

    version = "flat"

    def __init__(self, width: int, height: int, arena_m: float) -> None:
        self.columns, self.rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        self.center, self.scale = (width / 2, height / 2), min(width, height) / (2 * arena_m + 1.5)
        self.closed = False

    def render_ids(self, scene: Scene, only: int | None = None) -> np.ndarray:
        ids = np.zeros(self.rows.shape, dtype=np.uint8)
        for item in scene.objects:
            if only in (None, item.object_id):
                x, y = self.center[0] + item.x_m * self.scale, self.center[1] - item.y_m * self.scale
                inside = (self.columns - x) ** 2 + (self.rows - y) ** 2 <= (item.radius_m * self.scale) ** 2
                ids[inside] = item.object_id
        return ids

    def render_beauty(self, scene: Scene, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).integers(0, 8, size=(*self.rows.shape, 3), dtype=np.uint8)
        picture, ids = noise + np.uint8(120), self.render_ids(scene)
        for item in scene.objects:
            dim = 2 if item.material == "metal" else 1
            picture[ids == item.object_id] = np.array(COLORS_SRGB[item.color], dtype=np.uint8) // dim
        return picture

    def interrupt(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True
