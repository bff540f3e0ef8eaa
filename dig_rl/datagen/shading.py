"""The light that comes along a ray: sky, glowing disks, matte and mirroring surfaces; simple, and fast in numpy.

N is a number of rays. Colours are linear RGB radiances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dig_rl.datagen.color_difference import srgb_to_linear
from dig_rl.datagen.raycast import GROUND, SKY, SURFACE_GAP_M, Body, Hits, dot, first_hits, is_blocked
from dig_rl.datagen.scene import COLORS_SRGB, DiskLight, Scene, Vector

OCCLUDER_DARKNESS = 0.7
"""How much of the sky's light an object keeps away from what it covers; the rest it reflects itself."""
MATTE_SHEEN = 0.011
"""White light that a matte surface sends back besides its own colour."""
METAL_SPREAD = 0.15**2
"""Width of a metal's highlight, alpha of the GGX distribution: the square of Blender's roughness."""


class LitScene:
    """A scene ready to be looked at along rays.

    Matte surfaces get the disk lights with shadows and the even sky, dimmed where objects stand near; metals mirror
    one bounce of that, with a glow around the mirrored lights. Colour that one object throws on another is left out.
    """

    def __init__(self, scene: Scene) -> None:
        """Turn names into numbers."""
        self.bodies = [Body(item) for item in scene.objects]
        self._sky = srgb_to_linear(np.array(scene.sky_srgb)) * scene.sky_strength
        self._lights = [_Disk(light) for light in scene.lights]
        self._albedo = np.zeros((256, 3))
        self._is_metal = np.zeros(256, dtype=bool)
        self._albedo[GROUND] = srgb_to_linear(np.array(scene.ground_srgb))
        for item in scene.objects:
            self._albedo[item.object_id] = srgb_to_linear(np.array(COLORS_SRGB[item.color]))
            self._is_metal[item.object_id] = item.material == "metal"
        up = np.array([[0.0, 0.0, 1.0]])
        lit = sum((light.irradiance(np.zeros((1, 3)), up, light.center[None]) for light in self._lights), np.zeros(3))
        self._ground_glow = self._albedo[GROUND] * (self._sky + np.ravel(lit) / np.pi)

    def radiance(self, origins: np.ndarray, directions: np.ndarray, disk_points: np.ndarray) -> np.ndarray:
        """Light along each ray, `[N, 3]`.

        Args:
            origins: `[N, 3]` or `[3]`, metres.
            directions: `[N, 3]` of length 1.
            disk_points: `[N, 2]` in [0, 1), the point of every disk light that each ray asks.
        """
        return self.radiance_of(first_hits(self.bodies, origins, directions), origins, directions, disk_points)

    def radiance_of(
        self, hits: Hits, origins: np.ndarray, directions: np.ndarray, disk_points: np.ndarray, mirrors: bool = True
    ) -> np.ndarray:
        """`radiance` for rays whose first hits are known; without `mirrors` metals look matte."""
        colors = np.tile(self._sky, (len(directions), 1))
        met = np.flatnonzero(hits.ids != SKY)
        origins = np.broadcast_to(origins, directions.shape)
        points = origins[met] + hits.distances_m[met, None] * directions[met] + SURFACE_GAP_M * hits.normals[met]
        spots = _Spots(hits.ids[met], points, hits.normals[met], directions[met], disk_points[met])
        mirroring = self._is_metal[spots.ids] & mirrors
        colors[met[~mirroring]] = self._matte(spots.where(~mirroring))
        if mirroring.any():
            colors[met[mirroring]] = self._metal(spots.where(mirroring))
        return colors

    def _metal(self, spots: _Spots) -> np.ndarray:
        facing = -dot(spots.looking, spots.normals)[:, None]
        mirrored = spots.looking + 2 * facing * spots.normals
        hits = first_hits(self.bodies, spots.points, mirrored)
        seen = self.radiance_of(hits, spots.points, mirrored, spots.disk_points, mirrors=False)
        for light in self._lights:
            shining = (hits.ids == SKY) & light.is_met_by(spots.points, mirrored)
            targets = light.points(spots.disk_points)
            glow = light.glow(spots, targets)
            glowing = np.flatnonzero(~shining & (glow.max(axis=1) > 1e-3))
            glowing = glowing[~is_blocked(self.bodies, spots.points[glowing], targets[glowing])]
            seen[glowing] += glow[glowing]
            seen[shining] = light.radiance
        tint = self._albedo[spots.ids]
        return (tint + (1 - tint) * np.clip(1 - facing, 0.0, 1.0) ** 5) * seen  # Schlick's Fresnel term

    def _matte(self, spots: _Spots) -> np.ndarray:
        open_sky = np.ones(len(spots.ids))
        for body in self.bodies:
            other = spots.ids != body.item.object_id
            open_sky *= 1 - OCCLUDER_DARKNESS * other * _covered(body, spots)
        upward = (1 + spots.normals[:, 2:]) / 2
        light = upward * open_sky[:, None] * self._sky + (1 - upward) * self._ground_glow
        for disk in self._lights:
            targets = disk.points(spots.disk_points)
            direct = disk.irradiance(spots.points, spots.normals, targets)
            lit = np.flatnonzero(direct.any(axis=1))
            lit = lit[~is_blocked(self.bodies, spots.points[lit], targets[lit])]
            light[lit] += direct[lit] / np.pi
        return (self._albedo[spots.ids] + MATTE_SHEEN) * light


@dataclass(frozen=True)
class _Spots:
    """Places on surfaces that rays have met."""

    ids: np.ndarray
    """`[N]` of the object, or `GROUND`."""
    points: np.ndarray
    """`[N, 3]` metres, a little above the surface."""
    normals: np.ndarray
    """`[N, 3]` unit outward normals."""
    looking: np.ndarray
    """`[N, 3]` unit directions of the rays."""
    disk_points: np.ndarray
    """`[N, 2]` in [0, 1), the point of every disk light that each ray asks."""

    def where(self, chosen: np.ndarray) -> _Spots:
        """The spots that `chosen`, `[N]` bool, keeps."""
        parts = (self.ids, self.points, self.normals, self.looking, self.disk_points)
        return _Spots(*(part[chosen] for part in parts))


class _Disk:
    """A disk light; its emission is even over the disk and all directions of its front."""

    def __init__(self, light: DiskLight) -> None:
        self.center = np.array(light.position_m)
        self.radius = light.diameter_m / 2
        self.facing = _towards(light.position_m, light.look_at_m)
        side = np.cross(self.facing, [0.0, 1.0, 0.0] if abs(self.facing[2]) > 0.9 else [0.0, 0.0, 1.0])
        self._side = side / np.linalg.norm(side)
        self._other_side = np.cross(self.facing, self._side)
        self._area = np.pi * self.radius**2
        self.radiance = srgb_to_linear(np.array(light.srgb)) * light.power_w / (np.pi * self._area)

    def points(self, unit: np.ndarray) -> np.ndarray:
        """`[N, 2]` in [0, 1) to points spread evenly over the disk, `[N, 3]`."""
        away, angle = self.radius * np.sqrt(unit[:, :1]), 2 * np.pi * unit[:, 1:]
        return self.center + away * (np.cos(angle) * self._side + np.sin(angle) * self._other_side)

    def irradiance(self, points: np.ndarray, normals: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """`[N, 3]` light falling on surfaces if all of it came from `targets`, shadows left out."""
        gaps = targets - points
        falling = np.maximum(dot(gaps, normals), 0.0) * np.maximum(-(gaps @ self.facing), 0.0)
        return (falling / dot(gaps, gaps) ** 2 * self._area)[:, None] * self.radiance

    def glow(self, spots: _Spots, targets: np.ndarray) -> np.ndarray:
        """`[N, 3]` what a white metal sends back along the rays of the light from `targets`, shadows left out.

        Source: Walter et al., Microfacet models for refraction, EGSR 2007, equations 20 and 33, without shadowing.
        """
        gaps = targets - spots.points
        to_light = gaps / np.sqrt(dot(gaps, gaps))[:, None]
        half = to_light - spots.looking
        cosine = dot(half, spots.normals) / np.sqrt(dot(half, half))
        spread = METAL_SPREAD**2 / (np.pi * (cosine**2 * (METAL_SPREAD**2 - 1) + 1) ** 2)
        facing_both = (cosine > 0) & (dot(to_light, spots.normals) > 0)
        share = facing_both * spread / (4 * np.maximum(-dot(spots.looking, spots.normals), 0.1))
        return share[:, None] * self.irradiance(spots.points, to_light, targets)

    def is_met_by(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """`[N]` whether a ray meets the front of the disk."""
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (self.center - origins) @ self.facing / (directions @ self.facing)
            beside = origins + along[:, None] * directions - self.center
            return (along > 0) & (directions @ self.facing < 0) & (dot(beside, beside) <= self.radius**2)


def _covered(body: Body, spots: _Spots) -> np.ndarray:
    """`[N]` share of the light over each spot that a sphere in the object's place keeps away, in [0, 1]."""
    gaps = body.center_m - spots.points
    squared = dot(gaps, gaps)
    facing = dot(gaps, spots.normals) / np.sqrt(squared)
    return np.maximum(facing, 0.0) * np.minimum(1.0, body.item.radius_m**2 / squared)


def _towards(start: Vector, end: Vector) -> np.ndarray:
    gap = np.array(end) - np.array(start)
    unit: np.ndarray = gap / np.linalg.norm(gap)
    return unit
