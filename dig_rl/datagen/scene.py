"""What a picture shows, apart from any renderer: frozen records that turn into JSON and back.

Metres and degrees; the ground is z = 0, z points up, the camera looks along +y. Colours are 8-bit sRGB.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dig_rl.errors import DataError

SCENE_VERSION = 1

SHAPES = ("cube", "sphere", "cylinder", "cone", "torus", "octahedron")
MATERIALS = ("rubber", "metal")
SIZES_M = {"small": 0.4, "large": 0.7}
"""Radius of the upright cylinder that encloses an object."""
COLORS_SRGB = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
"""Source: the palette of CLEVR (facebookresearch/clevr-dataset-gen, data/properties.json)."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class SceneObject:
    """One object standing on the ground."""

    object_id: int
    """1..255, unique within a pair of scenes: the same id is the same object."""
    shape: str
    color: str
    material: str
    size: str
    x_m: float
    y_m: float
    yaw_deg: float
    """Rotation about the vertical, in [0, 360)."""

    @property
    def radius_m(self) -> float:
        """Radius of the enclosing upright cylinder."""
        return SIZES_M[self.size]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; the whole sensor is always in the picture, whatever the picture's aspect."""

    position_m: Vector
    look_at_m: Vector
    focal_length_mm: float = 54.0
    sensor_width_mm: float = 36.0
    sensor_height_mm: float = 24.0


@dataclass(frozen=True)
class DiskLight:
    """A glowing disk."""

    position_m: Vector
    look_at_m: Vector
    diameter_m: float
    power_w: float
    srgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Everything a renderer needs to draw one picture."""

    objects: tuple[SceneObject, ...]
    camera: Camera
    lights: tuple[DiskLight, ...]
    sky_srgb: tuple[int, int, int]
    sky_strength: float
    """Radiance of the even sky, in units of its colour."""
    ground_srgb: tuple[int, int, int]
    version: int = SCENE_VERSION


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values; `scene_from_json` gives back an equal scene."""
    return asdict(scene)


def scene_from_json(values: dict[str, Any]) -> Scene:
    """Rebuild a scene.

    Raises:
        DataError: the version is not ours, or a key is missing or unknown.
    """
    if values.get("version") != SCENE_VERSION:
        raise DataError(f"scene version {values.get('version')!r}: this dig-rl reads version {SCENE_VERSION}")
    try:
        parts = _with_tuples(values)
        parts["objects"] = tuple(SceneObject(**item) for item in values["objects"])
        parts["camera"] = Camera(**_with_tuples(values["camera"]))
        parts["lights"] = tuple(DiskLight(**_with_tuples(light)) for light in values["lights"])
        return Scene(**parts)
    except (TypeError, KeyError) as error:
        raise DataError(f"not a scene of version {SCENE_VERSION}: {error}") from None


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
