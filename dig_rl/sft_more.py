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
from dig_rl.datagen.family_shards import FamilyShard
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import DataError
from dig_rl.family_batches import PairPool
from dig_rl.family_warmup import FamilyWarmupConfig, read_history, warm_up_on_families
from dig_rl.layers import build
from dig_rl.policy.load import load_images
from dig_rl.types import Example

_PROBE_STEPS = (2, 12)
"""Two short trainings; by their difference a step is timed without what a start takes."""
_EVALUATIONS = 10


def train_more(
    training: dict[str, Any],
    start: Path,
    examples: Sequence[Example],
    validation: Sequence[Example],
    *,
    levels: int,
    seconds: float,
    seed: int,
    out: Path,
) -> None:
    """Train for so long and write `out/policy`; the same call continues what was begun.

    How many steps fit is measured once, before the first, since the learning rate falls along a cosine to the last.
    `out/supervised.json` has `steps`, `step_seconds`, and the seconds that measuring (`probe_seconds`) and training
    (`training_seconds`) took; those before a kill are not known and not counted.

    Args:
        training: settings of `FamilyWarmupConfig`; number of steps, evaluations and seed are set here.
        start: policy to begin with.
        examples: training pairs, all of one picture size.
        validation: pairs whose loss is watched, never trained on.
        levels: answers are rounded to multiples of 1000 / levels.
        seconds: wall clock to fill.
        seed: of all draws.
        out: run folder.

    Raises:
        ConfigError: a setting is wrong.
        DataError: pictures differ in size.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
    """
    pool = PairPool([shard_of_pairs(examples)])

    def run(steps: int, folder: Path, evaluate_every: int) -> None:
        values = {**training, "steps": steps, "evaluate_every": evaluate_every, "seed": seed}
        settings = build(FamilyWarmupConfig, values, where="training")
        warm_up_on_families(settings, start, pool, validation, levels, folder)

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


def shard_of_pairs(examples: Sequence[Example]) -> FamilyShard:
    """Pairs as families of two pictures each.

    Raises:
        DataError: pictures differ in size.
    """
    if len(sizes := {example.image_size_px for example in examples}) > 1:
        raise DataError(f"pictures of supervised training must have one size, found {sorted(sizes)}")
    boxes = np.zeros((len(examples), max(example.num_differences for example in examples), 4), dtype=np.float32)
    for row, example in enumerate(examples):
        boxes[row, : example.num_differences] = np.array(example.target_boxes_px).reshape(-1, 4)
    return FamilyShard(
        images=np.stack([np.array(image) for example in examples for image in load_images(example)]),
        pairs=np.arange(2 * len(examples), dtype=np.int32).reshape(-1, 2),
        num_boxes=np.array([example.num_differences for example in examples], dtype=np.int8),
        boxes_xyxy_px=boxes,
        places_m=np.zeros((0, 2)),
    )


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
