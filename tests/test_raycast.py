"""Rays against shapes: by hand, against points sampled along the ray, and against a second camera model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dig_rl.datagen.numpy_renderer import NumpyRenderer
from dig_rl.datagen.raycast import GROUND, SKY, Body, camera_rays, first_hits, is_blocked
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.sampling import sample_scene, stage
from dig_rl.datagen.scene import SHAPES, Camera, Scene, SceneObject


def body(shape: str, x_m: float = 0.0, y_m: float = 0.0, yaw_deg: float = 0.0, size: str = "large") -> Body:
    return Body(SceneObject(7, shape, "red", "rubber", size, x_m, y_m, yaw_deg))


@pytest.mark.parametrize(
    ("shape", "height_m"),
    [("cube", 2**0.5 * 0.7), ("sphere", 1.4), ("cylinder", 1.4), ("cone", 1.4), ("octahedron", 1.4)],
)
def test_from_above_the_top_of_a_shape_is_hit(shape: str, height_m: float) -> None:
    origin = np.array([[2.0 + 1e-9, 3.0 + 1e-9, 5.0]])
    hits = first_hits([body(shape, 2.0, 3.0, yaw_deg=30.0)], origin, np.array([[0.0, 0.0, -1.0]]))
    assert hits.ids.tolist() == [7] and hits.distances_m[0] == pytest.approx(5.0 - height_m, abs=1e-6)
    assert shape in ("cone", "octahedron") or hits.normals[0] == pytest.approx([0, 0, 1], abs=1e-6)


def test_the_hole_of_a_torus_shows_the_ground_and_its_tube_does_not() -> None:
    origins = np.array([[0.0, 0.0, 5.0], [0.7 * 0.7, 0.0, 5.0]])
    hits = first_hits([body("torus")], origins, np.array([[0.0, 0.0, -1.0]] * 2))
    assert hits.ids.tolist() == [GROUND, 7]
    assert hits.distances_m == pytest.approx([5.0, 5.0 - 0.6 * 0.7], abs=1e-3)
    assert hits.normals == pytest.approx(np.array([[0, 0, 1], [0, 0, 1]]), abs=1e-3)


def test_yaw_turns_a_cube_counterclockwise_seen_from_above() -> None:
    """Half its side is 0.495 m: at yaw 0 a ray along +y meets a face, at 45 degrees an edge at 0.7 m."""
    for yaw_deg, distance_m in ((0.0, 5 - 0.7 / 2**0.5), (45.0, 5 - 0.7), (90.0, 5 - 0.7 / 2**0.5)):
        hits = first_hits([body("cube", yaw_deg=yaw_deg)], np.array([[1e-9, -5.0, 0.3]]), np.array([[0.0, 1.0, 0.0]]))
        assert hits.distances_m[0] == pytest.approx(distance_m, abs=1e-6)
    slanted = first_hits([body("cube", yaw_deg=30.0)], np.array([[0.0, -5.0, 0.3]]), np.array([[0.0, 1.0, 0.0]]))
    assert slanted.normals[0] == pytest.approx([0.5, -(0.75**0.5), 0.0])  # (0, -1, 0) turned by 30 degrees


def is_inside(shape: str, points: np.ndarray, yaw_deg: float, radius_m: float) -> np.ndarray:
    """`[N]`, from the definition of each solid, in the world's frame; the foot is at the origin."""
    x, y, z = points.T / radius_m
    cos, sin = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
    u, v, away = cos * x + sin * y, cos * y - sin * x, np.hypot(x, y)
    upright = (z >= 0) & (z <= 2)
    return {
        "cube": (np.maximum(abs(u), abs(v)) <= 0.5**0.5) & (z >= 0) & (z <= 2**0.5),
        "sphere": x**2 + y**2 + (z - 1) ** 2 <= 1,
        "cylinder": upright & (away <= 1),
        "cone": upright & (away <= 1 - z / 2),
        "torus": (away - 0.7) ** 2 + (z - 0.3) ** 2 <= 0.3**2,
        "octahedron": abs(u) + abs(v) + abs(z - 1) <= 1,
    }[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_hits_agree_with_points_sampled_along_the_rays(shape: str) -> None:
    rng = np.random.default_rng(SHAPES.index(shape))
    origins = rng.normal(size=(400, 3)) * [1, 1, 0.5] + [0, 0, 1.5]
    origins *= (3.0 / np.linalg.norm(origins, axis=1))[:, None]
    origins[:, 2] = abs(origins[:, 2]) + 0.01
    targets = rng.uniform([-0.8, -0.8, 0.0], [0.8, 0.8, 1.5], size=(400, 3))
    directions = (targets - origins) / np.linalg.norm(targets - origins, axis=1)[:, None]
    steps_m = np.arange(0.0, 6.0, 2e-3)
    solid = body(shape, yaw_deg=25.0)
    found, normals = solid.enter(origins, directions)
    num_hits = 0
    for origin, direction, distance_m, normal in zip(origins, directions, found, normals, strict=True):
        inside = is_inside(shape, origin + steps_m[:, None] * direction, 25.0, 0.7)
        grazing_m = inside.sum() * 2e-3
        if inside.any() and grazing_m > 0.01:
            num_hits += 1
            assert distance_m == pytest.approx(steps_m[inside.argmax()], abs=5e-3)
            assert normal @ direction <= 1e-6 and np.linalg.norm(normal) == pytest.approx(1.0)
            beyond = origin + distance_m * direction + np.array([[2e-3], [-2e-3]]) * normal
            assert is_inside(shape, beyond, 25.0, 0.7).tolist() == [False, True] or grazing_m < 0.1
        elif np.isfinite(distance_m):  # a corner nicked between two samples
            assert is_inside(shape, (origin + distance_m * direction)[None], 25.0, 0.7 * 1.01).all()
    assert num_hits > 100


def test_the_nearest_of_several_is_seen_and_the_sky_behind_none() -> None:
    near, far = body("cube"), Body(replace(body("sphere", y_m=3.0).item, object_id=9))
    origins = np.array([[0.0, -5.0, 0.5], [0.0, -5.0, 1.2], [0.0, -5.0, 3.0], [0.0, -5.0, 3.0]])
    directions = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    for bodies in ([near, far], [far, near]):
        assert first_hits(bodies, origins, directions).ids.tolist() == [7, 9, SKY, GROUND]


def test_a_shadow_needs_something_between_a_point_and_the_light() -> None:
    points = np.array([[0.0, -2.0, 0.1], [0.0, 2.0, 0.1], [0.0, 2.0, 3.0], [3.0, 0.0, 0.1]])
    light = np.array([[0.0, -6.0, 2.0]] * 4)
    assert is_blocked([body("cylinder")], points, light).tolist() == [False, True, False, False]
    assert not is_blocked([body("cylinder")], light, points)[0] and is_blocked([body("cylinder")], light, points)[1]


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 64), (96, 40)])
def test_the_whole_sensor_stays_in_the_picture(width: int, height: int) -> None:
    """Corners of a 36 x 24 mm sensor at 54 mm: tangents 1/3 and 2/9."""
    camera = Camera((0.0, -5.0, 0.0), (0.0, 0.0, 0.0))
    corners = np.array([[0.0, 0.0], [width, height], [width / 2, height / 2]])
    origin, directions = camera_rays(camera, width, height, corners)
    tangents = directions[:, [0, 2]] / directions[:, 1:2]
    wide, high = max(1 / 3, 2 / 9 * width / height), max(2 / 9, 1 / 3 * height / width)
    assert origin.tolist() == [0.0, -5.0, 0.0]
    assert tangents == pytest.approx(np.array([[-wide, high], [wide, -high], [0, 0]]), abs=1e-12)


def sphere_ids_one_by_one(scene: Scene, width: int, height: int) -> np.ndarray:
    """Ids seen by rays through the pixel centres of a scene of spheres, in plain loops with its own camera model."""
    camera = scene.camera
    eye, target = np.array(camera.position_m), np.array(camera.look_at_m)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half_x, half_y = (
        camera.sensor_width_mm / 2 / camera.focal_length_mm,
        camera.sensor_height_mm / 2 / camera.focal_length_mm,
    )
    if width / height < half_x / half_y:
        half_y = half_x * height / width
    else:
        half_x = half_y * width / height
    ids, nearest = np.zeros((height, width), dtype=np.uint8), np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            ray = (
                forward
                + right * half_x * (2 * (column + 0.5) / width - 1)
                + up * half_y * (1 - 2 * (row + 0.5) / height)
            )
            ray /= np.linalg.norm(ray)
            for item in scene.objects:
                to_center = np.array([item.x_m, item.y_m, item.radius_m]) - eye
                along = float(to_center @ ray)
                miss = float(to_center @ to_center) - along**2
                if miss <= item.radius_m**2 and along - (item.radius_m**2 - miss) ** 0.5 < nearest[row, column]:
                    nearest[row, column] = along - (item.radius_m**2 - miss) ** 0.5
                    ids[row, column] = item.object_id
    return ids


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (96, 40)])
def test_ids_of_spheres_equal_rays_cast_one_by_one(size: tuple[int, int]) -> None:
    sampled = sample_scene(np.random.default_rng(3), DataRecipe(num_objects=(5, 5), arena_m=1.5))
    scene = replace(sampled, objects=tuple(replace(item, shape="sphere") for item in sampled.objects))
    assert (NumpyRenderer(*size, 1).render_ids(scene) == sphere_ids_one_by_one(scene, *size)).all()


def test_a_single_object_is_drawn_without_what_hides_it() -> None:
    front = SceneObject(1, "cylinder", "red", "rubber", "large", 0.0, -0.8, 0.0)
    back = SceneObject(2, "cube", "blue", "rubber", "large", 0.0, 0.9, 10.0)
    renderer = NumpyRenderer(96, 64, 1)
    scene = stage(DataRecipe(arena_m=1.5), (front, back))
    ids, alone = renderer.render_ids(scene), renderer.render_ids(scene, only=2)
    assert set(np.unique(ids)) == {0, 1, 2} and set(np.unique(alone)) == {0, 2}
    assert 0 < (ids == 2).sum() < (alone == 2).sum()
    assert ((ids == 2) <= (alone == 2)).all() and (renderer.render_ids(scene, only=1) == (ids == 1)).all()
