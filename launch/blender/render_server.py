# SPDX-License-Identifier: GPL-3.0-or-later
"""Render scenes with Blender Cycles: one JSON request a line on stdin, one JSON answer a line on stdout.

This program runs in its own process and environment and shares no code with the rest of the project. It knows
geometry, colours and numbers, nothing of datasets or labels. Blender's own chatter goes to stderr.

    {"op": "ids",    "scene": {...}, "width": 96, "height": 64, "output": "/tmp/ids.png", "only": null}
    {"op": "beauty", "scene": {...}, "width": 96, "height": 64, "output": "/tmp/a.png", "samples": 16, "seed": 1}

`ids` writes an 8-bit grey picture whose value is the id of the object seen through each pixel centre, 0 for none;
`only` keeps a single object. `beauty` writes the 8-bit sRGB picture; with `"isolated": true` it has no shadows and no
bounces and the smallest pixel filter, so that a pixel depends on nothing but what it shows. The answer is
`{"seconds": ...}`, the time spent inside Cycles, or `{"error": "..."}`. The process ends when stdin closes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

import bpy
from mathutils import Vector

PR_SET_PDEATHSIG = 1
DEVICES = ("cpu", "cuda", "optix", "metal")


class CyclesStage:
    """One Blender scene, set up once and rearranged for each request.

    Meshes, materials and objects are reused, so that memory grows little and a request costs no more than its render.
    """

    def __init__(self, threads: int, device: str) -> None:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.scene = bpy.context.scene
        self.meshes = {shape: build() for shape, build in MESH_BUILDERS.items()}
        self.materials: dict[tuple[Any, ...], bpy.types.Material] = {}
        self.objects: dict[int, bpy.types.Object] = {}
        self.lights: list[bpy.types.Object] = []
        self.camera = self._add("camera", bpy.data.cameras.new("camera"))
        self.scene.camera = self.camera
        self.ground = self._add("ground", ground_mesh())
        self.ground_material = rubber_material("ground")
        self.ground.data.materials.append(self.ground_material)
        self.world = bpy.data.worlds.new("sky")
        self.dark_world = bpy.data.worlds.new("dark")
        for world in (self.world, self.dark_world):
            world.use_nodes = True
            world.cycles.sampling_method = "NONE"
        background(self.dark_world).inputs["Strength"].default_value = 0.0
        self.id_material = id_material()
        configure_cycles(self.scene, threads)
        use_device(self.scene, device)

    def render_ids(self, request: dict[str, Any]) -> float:
        """Write the picture of object ids; returns seconds inside Cycles."""
        self._arrange(request, only=request.get("only"))
        self.scene.view_layers[0].material_override = self.id_material
        self.scene.world = self.dark_world
        self.scene.view_settings.view_transform = "Raw"
        self.scene.render.image_settings.color_mode = "BW"
        cycles = self.scene.cycles
        cycles.samples, cycles.seed, cycles.max_bounces, cycles.filter_width = 1, 0, 0, 0.01
        return self._render(request["output"])

    def render_beauty(self, request: dict[str, Any]) -> float:
        """Write the picture as a camera sees it; returns seconds inside Cycles."""
        self._arrange(request, only=None)
        self.scene.view_layers[0].material_override = None
        self.scene.world = self.world
        self.scene.view_settings.view_transform = "Standard"
        self.scene.render.image_settings.color_mode = "RGB"
        cycles = self.scene.cycles
        cycles.samples, cycles.seed = request["samples"], request["seed"]
        isolated = request.get("isolated", False)
        cycles.max_bounces, cycles.filter_width = (0, 0.01) if isolated else (3, 1.5)
        for light in self.lights:
            light.data.use_shadow = not isolated
            light.data.cycles.use_multiple_importance_sampling = not isolated  # its rays are blocked all the same
        return self._render(request["output"])

    def _arrange(self, request: dict[str, Any], only: int | None) -> None:
        description = request["scene"]
        self.scene.render.resolution_x, self.scene.render.resolution_y = request["width"], request["height"]
        self._place_camera(description["camera"])
        self._place_lights(description["lights"])
        sky = background(self.world).inputs
        sky["Color"].default_value = (*description["sky"]["rgb_linear"], 1.0)
        sky["Strength"].default_value = description["sky"]["strength"]
        set_color(self.ground_material, description["ground_rgb_linear"])
        for item in self.objects.values():
            item.hide_render = True
        for item in description["objects"]:
            if only is None or item["object_id"] == only:
                self._place_object(item)

    def _place_object(self, item: dict[str, Any]) -> None:
        object_id = item["object_id"]
        if object_id not in self.objects:
            self.objects[object_id] = self._add(f"object-{object_id}", self.meshes[item["shape"]])
        placed = self.objects[object_id]
        placed.hide_render = False
        placed.data = self.meshes[item["shape"]]
        placed.location = item["position_m"]
        placed.rotation_euler = (0.0, 0.0, math.radians(item["yaw_deg"]))
        placed.scale = (item["radius_m"],) * 3
        placed.pass_index = object_id
        placed.material_slots[0].link = "OBJECT"
        placed.material_slots[0].material = self._material(item["material"], tuple(item["rgb_linear"]))

    def _material(self, kind: str, rgb_linear: tuple[float, ...]) -> bpy.types.Material:
        key = (kind, rgb_linear)
        if key not in self.materials:
            material = MATERIAL_BUILDERS[kind](f"{kind}-{len(self.materials)}")
            set_color(material, rgb_linear)
            self.materials[key] = material
        return self.materials[key]

    def _place_camera(self, camera: dict[str, Any]) -> None:
        aim(self.camera, camera["position_m"], camera["look_at_m"])
        lens, render = self.camera.data, self.scene.render
        lens.lens = camera["focal_length_mm"]
        lens.sensor_width, lens.sensor_height = camera["sensor_mm"]
        wider = render.resolution_x * lens.sensor_height > render.resolution_y * lens.sensor_width
        lens.sensor_fit = "VERTICAL" if wider else "HORIZONTAL"  # the whole sensor stays in the picture

    def _place_lights(self, lights: list[dict[str, Any]]) -> None:
        while len(self.lights) < len(lights):
            name = f"light-{len(self.lights)}"
            self.lights.append(self._add(name, bpy.data.lights.new(name, "AREA")))
        for placed, light in zip(self.lights, lights, strict=False):
            aim(placed, light["position_m"], light["look_at_m"])
            placed.data.shape, placed.data.size = "DISK", light["diameter_m"]
            placed.data.energy = light["power_w"]
            placed.data.color = light["rgb_linear"]
        for index, placed in enumerate(self.lights):
            placed.hide_render = index >= len(lights)

    def _render(self, output: str) -> float:
        self.scene.render.filepath = output
        start = time.perf_counter()
        bpy.ops.render.render(write_still=True)
        return time.perf_counter() - start

    def _add(self, name: str, data: bpy.types.ID) -> bpy.types.Object:
        placed = bpy.data.objects.new(name, data)
        self.scene.collection.objects.link(placed)
        return placed


def configure_cycles(scene: bpy.types.Scene, threads: int) -> None:
    """Fix everything that could make two renders of one scene differ."""
    scene.render.engine = "CYCLES"
    scene.render.resolution_percentage = 100
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    scene.render.use_persistent_data = False
    scene.render.dither_intensity = 0.0
    scene.render.use_stamp = False
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_depth = "8"
    scene.render.image_settings.compression = 0
    scene.render.use_compositing = False
    scene.render.use_sequencer = False
    scene.view_settings.look = "None"
    cycles = scene.cycles
    cycles.use_denoising = False
    cycles.use_adaptive_sampling = False
    cycles.use_light_tree = False
    cycles.use_auto_tile = False
    cycles.caustics_reflective = False
    cycles.caustics_refractive = False
    cycles.sample_clamp_indirect = 4.0
    cycles.use_animated_seed = False
    cycles.pixel_filter_type = "BLACKMAN_HARRIS"


def use_device(scene: bpy.types.Scene, device: str) -> None:
    """Render on the CPU, or on every GPU that the kind of device (`cuda`, `optix`, `metal`) offers."""
    scene.cycles.device = "CPU" if device == "cpu" else "GPU"
    if device == "cpu":
        return
    kind, preferences = device.upper(), bpy.context.preferences.addons["cycles"].preferences
    found = preferences.get_devices_for_type(kind)
    if not found:
        raise LookupError(f"Blender finds no {device} device on this machine")
    preferences.compute_device_type = kind
    for offered in preferences.devices:
        offered.use = offered.type == kind


def aim(placed: bpy.types.Object, position: list[float], target: list[float]) -> None:
    """Put an object at `position` with its local -Z axis towards `target`, both in metres."""
    placed.location = position
    direction = Vector(target) - Vector(position)
    placed.rotation_euler = direction.to_track_quat("-Z", "Y").to_euler()


def background(world: bpy.types.World) -> bpy.types.Node:
    """The background shader of a world."""
    return world.node_tree.nodes["Background"]


def set_color(material: bpy.types.Material, rgb_linear: Any) -> None:
    """Set the base colour of a Principled material, linear RGB in [0, 1]."""
    material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (*rgb_linear, 1.0)


def rubber_material(name: str) -> bpy.types.Material:
    """A matte surface."""
    return principled(name, metallic=0.0, roughness=0.8, specular=0.2)


def metal_material(name: str) -> bpy.types.Material:
    """A glossy surface that mirrors its surroundings in its own colour."""
    return principled(name, metallic=1.0, roughness=0.15, specular=0.5)


def principled(name: str, metallic: float, roughness: float, specular: float) -> bpy.types.Material:
    """A Principled material; the three numbers are in [0, 1]."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    inputs = material.node_tree.nodes["Principled BSDF"].inputs
    inputs["Metallic"].default_value = metallic
    inputs["Roughness"].default_value = roughness
    inputs["Specular IOR Level"].default_value = specular
    return material


def id_material() -> bpy.types.Material:
    """A surface that emits pass_index / 255, so an 8-bit raw picture holds the id itself."""
    material = bpy.data.materials.new("object-id")
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    info, divide = tree.nodes.new("ShaderNodeObjectInfo"), tree.nodes.new("ShaderNodeMath")
    emission, output = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeOutputMaterial")
    divide.operation = "DIVIDE"
    divide.inputs[1].default_value = 255.0
    tree.links.new(info.outputs["Object Index"], divide.inputs[0])
    tree.links.new(divide.outputs[0], emission.inputs["Strength"])
    tree.links.new(emission.outputs[0], output.inputs["Surface"])
    emission.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    return material


def primitive_mesh(shape: str, smooth: bool, **options: Any) -> bpy.types.Mesh:
    """The mesh that one of Blender's `primitive_*_add` operators makes, of radius 1 and centred on the origin."""
    getattr(bpy.ops.mesh, f"primitive_{shape}_add")(**options)
    placed = bpy.context.object
    mesh = placed.data
    bpy.data.objects.remove(placed)
    mesh.polygons.foreach_set("use_smooth", [smooth] * len(mesh.polygons))
    return with_material_slot(mesh)


def with_material_slot(mesh: bpy.types.Mesh) -> bpy.types.Mesh:
    """Give the mesh the one material slot that each object then fills for itself."""
    mesh.materials.append(None)
    return mesh


def side_smooth(mesh: bpy.types.Mesh) -> bpy.types.Mesh:
    """Smooth the mantle of a cylinder or cone and keep its caps flat."""
    mesh.polygons.foreach_set("use_smooth", [abs(face.normal.z) < 0.99 for face in mesh.polygons])
    mesh.set_sharp_from_angle(angle=math.radians(40))
    return mesh


def octahedron_mesh() -> bpy.types.Mesh:
    """A regular octahedron standing on one corner."""
    corners = [(1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    faces = [(i, (i + 1) % 4, 4) for i in range(4)] + [((i + 1) % 4, i, 5) for i in range(4)]
    mesh = bpy.data.meshes.new("octahedron")
    mesh.from_pydata(corners, [], faces)
    return with_material_slot(mesh)


def ground_mesh() -> bpy.types.Mesh:
    """A square of 400 m at height 0."""
    mesh = bpy.data.meshes.new("ground")
    mesh.from_pydata([(-200, -200, 0), (200, -200, 0), (200, 200, 0), (-200, 200, 0)], [], [(0, 1, 2, 3)])
    return mesh


MESH_BUILDERS = {
    "cube": lambda: primitive_mesh("cube", smooth=False, size=math.sqrt(2)),
    # Not a UV sphere: Blender sums the normals around its poles in an order that changes from process to process.
    "sphere": lambda: primitive_mesh("ico_sphere", smooth=True, radius=1, subdivisions=5),
    "cylinder": lambda: side_smooth(primitive_mesh("cylinder", smooth=True, radius=1, depth=2, vertices=64)),
    "cone": lambda: side_smooth(primitive_mesh("cone", smooth=True, radius1=1, depth=2, vertices=64)),
    "torus": lambda: primitive_mesh(
        "torus", smooth=True, major_radius=0.7, minor_radius=0.3, major_segments=64, minor_segments=24
    ),
    "octahedron": octahedron_mesh,
}
MATERIAL_BUILDERS = {"rubber": rubber_material, "metal": metal_material}


def serve(stage: CyclesStage, requests: queue.Queue[str], answers: TextIO) -> None:
    """Answer requests for ever; a bad one is answered with its error and does not end the process."""
    operations = {"ids": stage.render_ids, "beauty": stage.render_beauty}
    while True:
        line = requests.get()
        try:
            request = json.loads(line)
            answer = {"seconds": operations[request["op"]](request)}
        except Exception as error:  # the caller decides what a failed request means
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def read_requests(requests: queue.Queue[str]) -> None:
    """Feed the queue from stdin; a closed stdin ends the process at once, even in the middle of a render."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def follow_parent() -> None:
    """Leave Ctrl-C to the parent, and on Linux die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of Cycles")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what Cycles computes on")
    options = parser.parse_args()
    follow_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # Blender prints to stdout; only answers may arrive there
    try:
        stage = CyclesStage(options.threads, options.device)
    except LookupError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return
    answers.write(json.dumps({"ready": ".".join(map(str, bpy.app.version))}) + "\n")
    answers.flush()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    serve(stage, requests, answers)


if __name__ == "__main__":
    main()
