"""What a picture shows, apart from any renderer: frozen records that turn into JSON and back.

Metres and degrees; the ground is z = 0, z points up, the camera looks along +y. Colours are 8-bit sRGB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

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

MAX_NUMBER = 1e6
"""Metres, degrees and watts stay below this."""


def _one_of(names: Iterable[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Number = Annotated[float, Field(gt=-MAX_NUMBER, lt=MAX_NUMBER)]
Level = Annotated[int, Field(ge=0, le=255)]
Vector = tuple[Number, Number, Number]
_STRICT = ConfigDict(extra="forbid", strict=True)
"""For scenes that are read; making one in Python checks nothing."""


@dataclass(frozen=True)
class SceneObject:
    """One object standing on the ground."""

    __pydantic_config__: ClassVar = _STRICT

    object_id: Annotated[int, Field(ge=1, le=255)]
    """Unique within a pair of scenes: the same id is the same object."""
    shape: Annotated[str, _one_of(SHAPES)]
    color: Annotated[str, _one_of(COLORS_SRGB)]
    material: Annotated[str, _one_of(MATERIALS)]
    size: Annotated[str, _one_of(SIZES_M)]
    x_m: Number
    y_m: Number
    yaw_deg: Number
    """Rotation about the vertical, in [0, 360)."""

    @property
    def radius_m(self) -> float:
        """Radius of the enclosing upright cylinder."""
        return SIZES_M[self.size]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; the whole sensor is always in the picture, whatever the picture's aspect."""

    __pydantic_config__: ClassVar = _STRICT

    position_m: Vector
    look_at_m: Vector
    focal_length_mm: Number = 54.0
    sensor_width_mm: Number = 36.0
    sensor_height_mm: Number = 24.0


@dataclass(frozen=True)
class DiskLight:
    """A glowing disk."""

    __pydantic_config__: ClassVar = _STRICT

    position_m: Vector
    look_at_m: Vector
    diameter_m: Number
    power_w: Number
    srgb: tuple[Level, Level, Level]


@dataclass(frozen=True)
class Scene:
    """Everything a renderer needs to draw one picture."""

    __pydantic_config__: ClassVar = _STRICT

    objects: Annotated[tuple[SceneObject, ...], Field(max_length=255)]
    camera: Camera
    lights: Annotated[tuple[DiskLight, ...], Field(max_length=255)]
    sky_srgb: tuple[Level, Level, Level]
    sky_strength: Number
    """Radiance of the even sky, in units of its colour."""
    ground_srgb: tuple[Level, Level, Level]
    version: int = SCENE_VERSION


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values; `scene_from_json` gives back an equal scene."""
    return asdict(scene)


def scene_from_json(values: dict[str, Any]) -> Scene:
    """Rebuild a scene.

    Raises:
        DataError: the version is not ours, a key is missing or unknown, or a value cannot be drawn.
    """
    if values.get("version") != SCENE_VERSION:
        raise DataError(f"scene version {values.get('version')!r}: this dig-rl reads version {SCENE_VERSION}")
    try:
        return _SCENE.validate_json(json.dumps(values))
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not a scene of version {SCENE_VERSION}: {where}: {first['msg']}") from None


_SCENE = TypeAdapter(Scene)
