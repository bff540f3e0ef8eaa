"""Rays against the shapes of a scene, in closed form: what is seen along each of many rays at once.

Worked out from the scene's own numbers alone, with no mesh and no code in common with Blender, so that labels drawn by
Blender can be checked against it. N is a number of rays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dig_rl.datagen.scene import Camera, SceneObject

GROUND, SKY = 0, -1
"""Ids of what is no object."""
SURFACE_GAP_M = 2e-3
"""How far above a surface a ray that leaves it starts."""

TORUS_RING, TORUS_TUBE = 0.7, 0.3
"""Radii of a torus lying on the ground, over the object's radius."""
_TORUS_TOLERANCE, _TORUS_STEPS = 2e-4, 64

_CUBE_HALF = 0.5**0.5
_ENCLOSING_SPHERES = {
    "cube": (_CUBE_HALF, 1.5**0.5),
    "sphere": (1.0, 1.0),
    "cylinder": (1.0, 2.0**0.5),
    "cone": (0.75, 1.25),
    "torus": (TORUS_TUBE, 1.0),
    "octahedron": (1.0, 1.0),
}
"""Height of the centre and radius of a sphere around each shape, over the object's radius."""


@dataclass(frozen=True)
class Hits:
    """The first thing along each ray."""

    ids: np.ndarray
    """`[N]` int: object id, `GROUND` or `SKY`."""
    distances_m: np.ndarray
    """`[N]`, infinite for the sky."""
    normals: np.ndarray
    """`[N, 3]` unit outward normals; zero for the sky."""


@dataclass(frozen=True)
class Body:
    """A scene object ready for rays: its own frame has the object's radius as unit and its foot at the origin."""

    item: SceneObject
    center_m: np.ndarray = field(init=False)
    """`[3]` centre of the enclosing sphere."""
    reach_m: float = field(init=False)
    """Radius of the enclosing sphere."""
    to_world: np.ndarray = field(init=False)
    """`[3, 3]` rotation of the object's frame into the world's."""

    def __post_init__(self) -> None:
        """Work out the frame."""
        height, reach = _ENCLOSING_SPHERES[self.item.shape]
        radius, yaw = self.item.radius_m, np.radians(self.item.yaw_deg)
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
        object.__setattr__(self, "center_m", np.array([self.item.x_m, self.item.y_m, height * radius]))
        object.__setattr__(self, "reach_m", reach * radius)
        object.__setattr__(self, "to_world", turn)

    def near(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Indices of the rays that meet the enclosing sphere."""
        to_center = self.center_m - origins
        along = dot(to_center, directions)
        beside = dot(to_center, to_center) - along * along
        return np.flatnonzero((beside <= self.reach_m**2) & (along > -self.reach_m))

    def enter(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where rays from outside enter the object: `[N]` metres, infinite for a miss, and `[N, 3]` normals."""
        foot = np.array([self.item.x_m, self.item.y_m, 0.0])
        own_origins = (origins - foot) @ self.to_world / self.item.radius_m
        own_directions = directions @ self.to_world / self.item.radius_m  # so that distances stay in metres
        distances, normals = _enter_shape(self.item.shape, own_origins, own_directions)
        return distances, normals @ self.to_world.T


def camera_rays(camera: Camera, width: int, height: int, xy_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rays through points of a picture.

    Args:
        camera: where from; the whole sensor is in the picture, whatever the picture's aspect.
        width: pixels.
        height: pixels.
        xy_px: `[N, 2]` points in pixels; (0.5, 0.5) is the centre of the pixel in the upper left corner.

    Returns:
        `[3]` common origin and `[N, 3]` unit directions.
    """
    eye = np.array(camera.position_m)
    forward = _unit(np.array(camera.look_at_m) - eye)
    right = _unit(np.cross(forward, [0.0, 0.0, 1.0]))
    up = np.cross(right, forward)
    half_x = camera.sensor_width_mm / 2 / camera.focal_length_mm
    half_y = camera.sensor_height_mm / 2 / camera.focal_length_mm
    half_x, half_y = max(half_x, half_y * width / height), max(half_y, half_x * height / width)
    across = (2 * xy_px[:, :1] / width - 1) * half_x
    upwards = (1 - 2 * xy_px[:, 1:] / height) * half_y
    return eye, _unit(forward + across * right + upwards * up)


def first_hits(bodies: list[Body], origins: np.ndarray, directions: np.ndarray) -> Hits:
    """What each ray meets first.

    Args:
        bodies: the objects.
        origins: `[N, 3]` or `[3]`, outside of every object.
        directions: `[N, 3]` of length 1.
    """
    origins = np.broadcast_to(origins, directions.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = -origins[:, 2] / directions[:, 2]
    on_ground = (directions[:, 2] < 0) & (distances > 0)
    distances = np.where(on_ground, distances, np.inf)
    ids = np.where(on_ground, GROUND, SKY)
    normals = np.zeros_like(directions)
    normals[on_ground, 2] = 1.0
    for body in bodies:
        near = body.near(origins, directions)
        found, found_normals = body.enter(origins[near], directions[near])
        closer = found < distances[near]
        chosen = near[closer]
        distances[chosen], normals[chosen], ids[chosen] = found[closer], found_normals[closer], body.item.object_id
    return Hits(ids, distances, normals)


def is_blocked(bodies: list[Body], points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`[N]` whether an object stands between each point and its target, both `[N, 3]`."""
    gaps = targets - points
    lengths = np.sqrt(dot(gaps, gaps))
    directions = gaps / lengths[:, None]
    blocked = np.zeros(len(points), dtype=bool)
    for body in bodies:
        near = body.near(points, directions)
        near = near[~blocked[near]]
        blocked[near] = body.enter(points[near], directions[near])[0] < lengths[near]
    return blocked


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[...]` products of the vectors `[..., 3]` of two lists, several times as fast as a sum over an axis."""
    products: np.ndarray = np.einsum("...i,...i->...", a, b)
    return products


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(dot(vectors, vectors))[..., None]


# --- one shape in its own frame: foot at z = 0, enclosing cylinder of radius 1. Directions keep their length.

_UPRIGHT = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
_AXES = np.concatenate([np.eye(3), -np.eye(3)])
_CORNERS = np.array([[x, y, z] for x in (1.0, -1.0) for y in (1.0, -1.0) for z in (1.0, -1.0)])
_FACES = {
    "cube": (_AXES, np.array([1.0, 1.0, 2.0, 1.0, 1.0, 0.0]) * _CUBE_HALF),
    "octahedron": (_CORNERS, 1.0 + _CORNERS[:, 2]),
    "cylinder": (_UPRIGHT, np.array([2.0, 0.0])),
    "cone": (_UPRIGHT, np.array([2.0, 0.0])),
    "torus": (_UPRIGHT, np.array([2 * TORUS_TUBE, 0.0])),
}
"""Half-spaces `normal @ p <= offset` that bound a shape; round shapes have a quadric besides."""
_QUADRICS = {
    "sphere": (np.array([1.0, 1.0, 1.0]), 1.0, -1.0),
    "cylinder": (np.array([1.0, 1.0, 0.0]), 0.0, -1.0),
    "cone": (np.array([1.0, 1.0, -0.25]), 2.0, 0.0),
    "torus": (np.array([1.0, 1.0, 0.0]), 0.0, -1.0),
}
"""`weights @ (p - (0, 0, height))**2 + constant <= 0`. The cone's second half lies above its faces."""


def _enter_shape(shape: str, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.full(len(origins), -np.inf)
    last = np.full(len(origins), np.inf)
    normals = np.zeros_like(origins)
    if shape in _FACES:
        first, last, normals = _inside_faces(*_FACES[shape], origins, directions)
    if shape in _QUADRICS:
        weights, height, constant = _QUADRICS[shape]
        centered = origins - [0.0, 0.0, height]
        round_first, round_last = _inside_quadric(weights, constant, centered, directions)
        on_round = round_first > first
        first, last = np.maximum(first, round_first), np.minimum(last, round_last)
        with np.errstate(invalid="ignore"):
            gradients = weights * (centered + np.where(np.isfinite(first), first, 0.0)[:, None] * directions)
        normals = np.where(on_round[:, None], gradients, normals)
    hit = (first < last) & (last > 0)
    if shape == "torus":
        return _enter_torus(origins, directions, np.where(hit, np.maximum(first, 0.0), np.inf), last)
    hit &= first > 0
    lengths = np.sqrt(dot(normals, normals))
    return np.where(hit, first, np.inf), normals / np.where(lengths > 0, lengths, 1.0)[:, None]


def _inside_faces(
    face_normals: np.ndarray, offsets: np.ndarray, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last distance within all half-spaces, and the normal of the face crossed first."""
    speed, room = directions @ face_normals.T, offsets - origins @ face_normals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = room / speed
    outside = (speed == 0) & (room < 0)
    entering = np.where(speed < 0, crossing, -np.inf)
    entering[outside] = np.inf
    leaving = np.where(speed > 0, crossing, np.inf)
    return entering.max(axis=1), leaving.min(axis=1), face_normals[entering.argmax(axis=1)]


def _inside_quadric(
    weights: np.ndarray, constant: float, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last distance within a quadric; of a cone steeper rays than its side, the part below its tip."""
    a = directions**2 @ weights
    b = (origins * directions) @ weights
    c = origins**2 @ weights + constant
    discriminant = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(discriminant)
        low, high = (-b - root) / a, (-b + root) / a
        low, high = np.minimum(low, high), np.maximum(low, high)
    missed = (discriminant < 0) | ((a == 0) & (c > 0))
    steep = a < 0
    falling = directions[:, 2] < 0
    first = np.where(a == 0, -np.inf, np.where(steep, np.where(falling, high, -np.inf), low))
    last = np.where(a == 0, np.inf, np.where(steep, np.where(falling, np.inf, low), high))
    return np.where(missed, np.inf, first), np.where(missed, -np.inf, last)


def _enter_torus(
    origins: np.ndarray, directions: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Walk along each ray by the distance to the torus, which no step can overshoot.

    Source: Hart, Sphere tracing, The Visual Computer 12 (1996).
    """
    distances, alive = np.full(len(origins), np.inf), np.flatnonzero(np.isfinite(start))
    walked, speed = start[alive], np.sqrt(dot(directions[alive], directions[alive]))
    for _ in range(_TORUS_STEPS):
        gap = _torus_gap(origins[alive] + walked[:, None] * directions[alive])
        touching = gap < _TORUS_TOLERANCE
        distances[alive[touching]] = walked[touching]
        walked = walked + gap / speed
        going = ~touching & (walked < end[alive])
        alive, walked, speed = alive[going], walked[going], speed[going]
        if not len(alive):
            break
    points = origins + np.where(np.isfinite(distances), distances, 0.0)[:, None] * directions
    around = np.hypot(points[:, 0], points[:, 1])[:, None] + 1e-12
    ring = np.concatenate([points[:, :2] * (TORUS_RING / around), np.full((len(points), 1), TORUS_TUBE)], axis=1)
    return distances, _unit(points - ring)


def _torus_gap(points: np.ndarray) -> np.ndarray:
    around = np.hypot(points[:, 0], points[:, 1]) - TORUS_RING
    return np.hypot(around, points[:, 2] - TORUS_TUBE) - TORUS_TUBE
