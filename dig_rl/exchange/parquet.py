"""A data folder as the parquet files that TRL and EasyR1 train from, pictures and truth included.

Source: TRL 1.16, `GRPOTrainer` (columns `prompt` and `images`, the others go to the reward function); EasyR1,
`verl/utils/dataset.py` and `examples/config.yaml` (columns `problem`, `answer`, `images`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from dig_rl.adapters.answer_scorer import ground_truth
from dig_rl.data import Split, load_examples, read_records
from dig_rl.errors import ConfigError
from dig_rl.exchange.new_folder import new_folder
from dig_rl.image_files import has_tag, untagged_png
from dig_rl.parsing import CoordinateFrame
from dig_rl.prompts import instruction
from dig_rl.types import BoxTarget, Example

Trainer = Literal["trl", "easyr1"]

_MESSAGES = List({"role": Value("string"), "content": Value("string")})
_FEATURES = {
    "trl": Features({"prompt": _MESSAGES, "images": List(Image()), "ground_truth": Value("string")}),
    "easyr1": Features({"problem": Value("string"), "images": List(Image()), "answer": Value("string")}),
}
_ROWS_IN_MEMORY = 100


def export_parquet(
    trainer: Trainer,
    data_dir: Path,
    out: Path,
    *,
    box_target: BoxTarget = "union",
    allow_no_change: bool = False,
    frame: CoordinateFrame = "norm1000",
    model_image_size_px: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write one parquet file a split into a new folder; pictures are carried as the bytes of their files.

    The truth column is what the reward functions of `dig_rl.adapters` read.

    Args:
        trainer: whose columns.
        data_dir: data folder; its pictures are checked.
        out: folder to make; must not exist.
        box_target: which image a box refers to; said in the prompt.
        allow_no_change: accept pairs without any difference; the prompt is the same, and the empty list is right.
        frame: coordinate convention of the policy's family.
        model_image_size_px: (width, height) after the policy's resize rule, from the stored one; needed for
            `absolute_px`.
        on_progress: called with pairs done and pairs in all.

    Returns:
        Pairs by split.

    Raises:
        ConfigError: `absolute_px` without the resize rule.
        DataError: the data folder is wrong, or `out` exists or cannot be written.
    """
    if frame == "absolute_px" and model_image_size_px is None:
        raise ConfigError(
            "answers in pixels of the resized image need the policy's resize rule; name a config with policy.path"
        )
    resized = model_image_size_px or (lambda size: size)
    present = {record.split for _line, record in read_records(data_dir, allow_no_change=allow_no_change)}
    splits = {
        split: load_examples(data_dir, split, allow_no_change=allow_no_change, box_target=box_target)
        for split in get_args(Split)
        if split in present
    }
    total, done = sum(map(len, splits.values())), 0
    text = instruction(box_target, frame)
    schema = _FEATURES[trainer].arrow_schema
    with new_folder(out) as folder:
        for split, examples in splits.items():
            with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
                for start in range(0, len(examples), _ROWS_IN_MEMORY):
                    some = examples[start : start + _ROWS_IN_MEMORY]
                    rows = [_row(trainer, example, text, resized(example.image_size_px)) for example in some]
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    done += len(rows)
                    on_progress(done, total)
    return {split: len(examples) for split, examples in splits.items()}


def _row(trainer: Trainer, example: Example, text: str, model_image_size_px: tuple[int, int]) -> dict[str, Any]:
    paths = (Path(example.image_a_path), Path(example.image_b_path))
    images = [_picture(path) for path in paths]
    truth = ground_truth(example, model_image_size_px)
    if trainer == "trl":
        # TRL puts the pictures before the text of the first user message.
        return {"prompt": [{"role": "user", "content": text}], "images": images, "ground_truth": truth}
    return {"problem": f"<image><image>{text}", "images": images, "answer": truth}


def _picture(path: Path) -> dict[str, Any]:
    """The file itself, or its stored pixels as PNG where it has a tag that `datasets` would turn it by."""
    if has_tag(path):
        return {"bytes": untagged_png(path), "path": f"{path.name}.png"}
    return {"bytes": path.read_bytes(), "path": path.name}
