"""The control `sft_more`: what the time that GRPO took would have gained as more supervised training.

The pairs are those that GRPO trains on, so that the two differ in the method alone; optimiser, hints and looks
(swapped, mirrored, other colours) are those of the supervised recipe for small policies.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dig_rl.ablations.plan import SUPERVISED_FILE
from dig_rl.config import Config
from dig_rl.data import read_records
from dig_rl.datagen.family_shards import FamilyShard
from dig_rl.datagen.labels import box_of_mask
from dig_rl.datagen.numpy_renderer import NumpyRenderer
from dig_rl.datagen.scene import Scene, scene_from_json
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import ConfigError, DataError
from dig_rl.family_batches import PairPool
from dig_rl.family_warmup import FamilyWarmupConfig, read_history, warm_up_on_families
from dig_rl.inspection.scenes import read_scenes
from dig_rl.layers import build
from dig_rl.policy.load import load_images
from dig_rl.types import Example

_PROBE_STEPS = (2, 12)
"""Two short trainings; by their difference a step is timed without what a start takes."""
_EVALUATIONS = 10
_OURS = {"steps", "evaluate_every", "seed"}
"""Settings of `FamilyWarmupConfig` that the control chooses."""


def training_settings(training: dict[str, Any], config: Config, *, where: str) -> tuple[FamilyWarmupConfig, int]:
    """Settings of the supervised training, its length left open, and the levels that answers are rounded to.

    Args:
        training: settings of `FamilyWarmupConfig`, and `coordinate_levels` if not those of `config.warmup`.
        config: of the run; its seed is taken.
        where: begins every message.

    Raises:
        ConfigError: a setting is wrong, or is not to be chosen.
    """
    values = dict(training)
    if fixed := sorted(_OURS & values.keys()):
        raise ConfigError(f"{where}: training.{fixed[0]} is set by the control itself; leave it out")
    levels = values.pop("coordinate_levels", config.warmup.coordinate_levels)
    if type(levels) is not int or levels < 1:
        raise ConfigError(f"{where}: training.coordinate_levels must be a whole number from 1 on, found {levels!r}")
    values |= {"steps": 1, "evaluate_every": 1, "seed": config.seed}
    return build(FamilyWarmupConfig, values, where=f"{where}, training"), levels


def train_more(
    settings: FamilyWarmupConfig,
    start: Path,
    data: Path,
    examples: Sequence[Example],
    validation: Sequence[Example],
    *,
    levels: int,
    seconds: float,
    out: Path,
) -> None:
    """Train for so long and write `out/policy`; the same call continues what was begun.

    How many steps fit is measured once, before the first, since the learning rate falls along a cosine to the last.
    `out/supervised.json` has `steps`, `step_seconds`, and the seconds that measuring (`probe_seconds`) and training
    (`training_seconds`) took; those before a kill are not known and not counted.

    Args:
        settings: number of steps and evaluations are set here.
        start: policy to begin with.
        data: data folder of the pairs; `imagined` and `blind` read its scene files.
        examples: training pairs, all of one picture size.
        validation: pairs whose loss is watched, never trained on.
        levels: answers are rounded to multiples of 1000 / levels.
        seconds: wall clock to fill.
        out: run folder.

    Raises:
        DataError: pictures differ in size, or a scene file is needed and wrong or missing.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
    """
    pool = PairPool([shard_of_pairs(examples, data if settings.imagined or settings.blind else None)])

    def run(steps: int, folder: Path, evaluate_every: int) -> None:
        values = settings.model_copy(update={"steps": steps, "evaluate_every": evaluate_every})
        warm_up_on_families(values, start, pool, validation, levels, folder)

    record = out / SUPERVISED_FILE
    known = read_json_object(record, remedy="remove the run folder")
    if known is None:
        known = {**_measure(run, out / "probe", seconds), "training_seconds": 0.0}
        write_durably(record, json.dumps(known, indent=1) + "\n")
    if not (out / "policy" / "config.json").exists():
        print(f"{known['steps']} steps of {known['step_seconds']:.2f} s fill {seconds / 60:.1f} minutes", flush=True)
        began = time.monotonic()
        try:
            run(known["steps"], out, max(1, known["steps"] // _EVALUATIONS))
        finally:
            known["training_seconds"] = round(known["training_seconds"] + time.monotonic() - began, 3)
            write_durably(record, json.dumps(known, indent=1) + "\n")


def shard_of_pairs(examples: Sequence[Example], data: Path | None = None) -> FamilyShard:
    """Pairs as families of two pictures each.

    Args:
        examples: of one picture size.
        data: their data folder, whose scenes tell where the objects are; without it no object is known.

    Raises:
        DataError: pictures differ in size, or a scene file is missing or wrong.
    """
    if len(sizes := {example.image_size_px for example in examples}) > 1:
        raise DataError(f"pictures of supervised training must have one size, found {sorted(sizes)}")
    boxes = np.zeros((len(examples), max(example.num_differences for example in examples), 4), dtype=np.float32)
    for row, example in enumerate(examples):
        boxes[row, : example.num_differences] = np.array(example.target_boxes_px).reshape(-1, 4)
    states, objects = _objects_of_pairs(examples, data)
    return FamilyShard(
        images=np.stack([np.array(image) for example in examples for image in load_images(example)]),
        states=states,
        objects_xyxy_px=objects,
        pairs=np.arange(2 * len(examples), dtype=np.int32).reshape(-1, 2),
        num_boxes=np.array([example.num_differences for example in examples], dtype=np.int8),
        boxes_xyxy_px=boxes,
        places_m=np.zeros((0, 2)),
    )


def _objects_of_pairs(examples: Sequence[Example], data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """`states` and `objects_xyxy_px` of a shard, by casting rays into the scenes."""
    scenes = [] if data is None else _read_scenes(data, examples)
    ids = [sorted({item.object_id for scene in pair for item in scene.objects}) for pair in scenes]
    shape = (2 * len(examples), max(map(len, ids), default=0))
    states, boxes = np.full(shape, -1, dtype=np.int8), np.full((*shape, 4), np.nan, dtype=np.float32)
    renderer = NumpyRenderer(*examples[0].image_size_px, samples=1)
    for row, (pair, of_pair) in enumerate(zip(scenes, ids, strict=True)):
        first, second = ({item.object_id: item for item in scene.objects} for scene in pair)
        for picture, scene in enumerate(pair, start=2 * row):
            seen = renderer.render_ids(scene)
            for column, object_id in enumerate(of_pair):
                same = first.get(object_id) == second.get(object_id)
                states[picture, column] = 0 if same else picture % 2
                if box := box_of_mask(seen == object_id):
                    boxes[picture, column] = box
    return states, boxes


def _read_scenes(data: Path, examples: Sequence[Example]) -> list[tuple[Scene, Scene]]:
    records = {record.pair_id: record for _, record in read_records(data, allow_no_change=True)}
    scenes = []
    for example in examples:
        path = data / "scenes" / f"{example.pair_id}.json"
        found = read_scenes(path, records[example.pair_id])
        if isinstance(found, str):
            raise DataError(f"{path} {found}; imagined and blind need the scenes that the pairs were drawn from")
        try:
            scenes.append((scene_from_json(found.scene_a), scene_from_json(found.scene_b)))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return scenes


def _measure(run: Callable[[int, Path, int], None], folder: Path, seconds: float) -> dict[str, Any]:
    """Number of steps that fill `seconds`, and what finding out took."""
    began = time.monotonic()
    runtimes = []
    for steps in _PROBE_STEPS:
        shutil.rmtree(folder, ignore_errors=True)
        run(steps, folder, steps + 1)  # looks at the validation loss are not part of a step
        runtimes += [entry["train_runtime"] for entry in read_history(folder) if "train_runtime" in entry]
    shutil.rmtree(folder)
    step_seconds = max(1e-3, (runtimes[1] - runtimes[0]) / (_PROBE_STEPS[1] - _PROBE_STEPS[0]))
    return {
        "steps": max(1, round(seconds / step_seconds)),
        "step_seconds": round(step_seconds, 4),
        "probe_seconds": round(time.monotonic() - began, 3),
    }
