"""How different an object will look in two pictures, foreseen before either is drawn."""

from __future__ import annotations

import math

import numpy as np

from dig_rl.datagen.color_difference import ciede2000, linear_to_srgb, srgb_to_lab
from dig_rl.datagen.raycast import Body, Hits, camera_rays, first_hits
from dig_rl.datagen.scene import Scene
from dig_rl.datagen.shading import LitScene

MOST_PIXELS = 160 * 120
"""Larger pictures are looked at more coarsely."""


def foreseen_color_difference(scenes: tuple[Scene, Scene], object_id: int, image_size_px: tuple[int, int]) -> float:
    """Mean CIEDE2000 between the looks of one object, over the pixels whose centres show it in both pictures.

    Only these pixels are shaded, by the rules of the numpy renderer, so this costs milliseconds.

    Args:
        scenes: the reference and the changed scene; the object is in both.
        object_id: the object.
        image_size_px: (width, height) of the pictures to come.

    Returns:
        The difference, at least 0; infinite when no pixel shows the object twice, so that nothing is foreseen.
    """
    width, height = image_size_px
    coarser = math.ceil(math.sqrt(max(1.0, width * height / MOST_PIXELS)))
    columns, rows = np.meshgrid(np.arange(0.5 * coarser, width, coarser), np.arange(0.5 * coarser, height, coarser))
    xy_px = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    looks = [_Look(scene, object_id, xy_px, image_size_px) for scene in scenes]
    shown = looks[0].shown & looks[1].shown
    if not shown.any():
        return math.inf
    lab_a, lab_b = (srgb_to_lab(look.colors(shown)) for look in looks)
    return float(ciede2000(lab_a, lab_b).mean())


class _Look:
    """One scene through the points of a picture that may show an object."""

    def __init__(self, scene: Scene, object_id: int, xy_px: np.ndarray, image_size_px: tuple[int, int]) -> None:
        self._lit = LitScene(scene)
        self._origin, directions = camera_rays(scene.camera, *image_size_px, xy_px)
        (item,) = (item for item in scene.objects if item.object_id == object_id)
        near = Body(item).near(self._origin, directions)
        hits = first_hits(self._lit.bodies, self._origin, directions[near])
        hit = hits.ids == object_id
        self._directions, self._places = directions[near[hit]], near[hit]
        self._hits = Hits(hits.ids[hit], hits.distances_m[hit], hits.normals[hit])
        self.shown = np.zeros(len(xy_px), dtype=bool)
        self.shown[self._places] = True

    def colors(self, wanted: np.ndarray) -> np.ndarray:
        """8-bit sRGB `[n, 3]` at the `wanted` points, `[N]` bool, all of which show the object."""
        disk_points = np.random.default_rng(0).random((len(wanted), 2))[self._places]
        radiance = self._lit.radiance_of(self._hits, self._origin, self._directions, disk_points)
        return linear_to_srgb(radiance[wanted[self._places]])
