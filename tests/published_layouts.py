"""Small copies of published data sets, file by file in their layout; each maker names the source of the layout."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (64, 32)


def picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, **options: Any) -> np.ndarray:
    """Write a picture of noise; give its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def outline(x_min: float, y_min: float, x_max: float, y_max: float) -> dict[str, Any]:
    """A COCO annotation whose polygon, a diamond, has this extent; `bbox` is COCO's x, y, width, height."""
    x, y = (x_min + x_max) / 2, (y_min + y_max) / 2
    polygon = [x, y_min, x_max, y, x, y_max, x_min, y]
    return {"segmentation": [polygon], "bbox": [x_min, y_min, x_max - x_min, y_max - y_min], "iscrowd": 0, "id": 7}


OBJECTS = [outline(1, 2, 9, 12), outline(20.5, 4, 31.25, 16), outline(40, 10, 60, 30)]
"""Three annotated objects: boxes 1-9 x 2-12, 20.5-31.25 x 4-16 and 40-60 x 10-30."""


def coco_inpainted(root: Path) -> Path:
    """Source: README.md and data/inpainted_coco_dataset.py of ragavsachdeva/The-Change-You-Want-to-See.

    Train: picture 9 with two inpainted ones, and 10 (validation). Test, small: picture 9 with one.
    """
    subset(root / "train", {"train": np.array([9]), "val": np.array([10])}, {9: ["1", "6"], 10: [""]})
    subset(root / "test" / "small", {"test": np.array([9])}, {9: ["2"]})
    return root


def subset(folder: Path, splits: dict[str, np.ndarray], masks: dict[int, list[str]]) -> None:
    """One subset; `masks` has the numbers in the inpainted pictures' names, by picture."""
    for index, numbers in masks.items():
        picture(folder / "images_and_masks" / f"{index}.png", seed=index)
        for number in numbers:
            picture(folder / "images_and_masks" / f"{index}_mask{number}.png")
            picture(folder / "inpainted" / f"{index}_mask{number}.png", seed=index + 1)
        (folder / "metadata").mkdir(exist_ok=True)
        np.save(folder / "metadata" / f"{index}.npy", np.array(OBJECTS, dtype=object))
    np.save(folder / "list_of_indices.npy", np.array(sorted(masks)))
    (folder / "data_split.pkl").write_bytes(pickle.dumps(splits))


def kubric_change(root: Path) -> Path:
    """Source: README.md and data/kubric_change.py of ragavsachdeva/The-Change-You-Want-to-See.

    Pair 12: one part of each mask overlapping, one part in the second mask alone; pair 3: one part in the first.
    """
    for index in (12, 3):
        for side in (0, 1):
            picture(root / f"{index}_{side}.png", seed=index + side)
    first, second = (np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8) for _ in range(2))
    first[4:10, 2:8] = 255
    second[5:11, 3:9] = 255
    second[20:32, 60:64] = 255
    Image.fromarray(first).save(root / "mask_12_00000.png")
    Image.fromarray(second).save(root / "mask_12_00001.png")
    Image.fromarray(first).save(root / "mask_3_00000.png")
    Image.fromarray(np.zeros_like(first)).save(root / "mask_3_00001.png")
    table = [[f"/far/away/{index}_{side}.png" for side in (0, 1)] for index in (12, 3)]
    np.save(root / "metadata.npy", np.array(table))
    return root


def virat_std(root: Path, annotations: dict[Any, Any] | None = None) -> Path:
    """Source: README.md and data/std.py of ragavsachdeva/The-Change-You-Want-to-See."""
    root.mkdir(parents=True, exist_ok=True)
    labels = annotations or {"10": [[1, 2, 9, 12], [20.0, 4.0, 30.0, 16.0]], 11: np.array([[0, 0, 64, 32]])}
    for index in labels:
        if str(index).isalnum():
            picture(root / f"{index}.png", seed=1)
            picture(root / f"{index}_2.png", seed=2)
    np.save(root / "annotations.npy", labels)  # type: ignore[arg-type]
    return root


CLEVR_BOXES: dict[str, dict[str, Any]] = {
    "0": {"bbox_before": [1, 2, 8, 10], "bbox_after": [2, 2, 8, 10]},
    "1": {"bbox_before": None, "bbox_after": [5, 6, 7, 8]},
    "2": {"bbox_before": [5, 6, 7, 8], "bbox_after": None},
    "3": {"bbox_before": [1, 2, 8, 10], "bbox_after": [40, 12, 8, 10]},
    "4": {"bbox_before": [30, 3, 10, 10], "bbox_after": [30, 3, 10, 10]},
}


def clevr_change(root: Path) -> Path:
    """Source: README.md, datasets/rcc_dataset.py, evaluate_pointing_by_IOU.py of Seth-Park/RobustChangeCaptioning."""
    for index in range(5):
        picture(root / "images" / f"CLEVR_default_{index:06d}.png", seed=index)
        picture(root / "sc_images" / f"CLEVR_semantic_{index:06d}.png", seed=index + 10)
        picture(root / "nsc_images" / f"CLEVR_nonsemantic_{index:06d}.png", seed=index + 20)
    kinds = {"color": 0, "add": 1, "drop": 2, "move": 3, "material": 4}
    files: dict[str, Any] = {
        "change_captions_with_bbox": CLEVR_BOXES,
        "change_captions": {f"CLEVR_default_{index:06d}.png": ["the cube moved"] for index in range(5)},
        "splits": {"train": [0, 3], "val": [1], "test": [2, 4]},
        "type_mapping": {kind: [f"{index:06d}.png"] for kind, index in kinds.items()},
    }
    for name, contents in files.items():
        (root / f"{name}.json").write_text(json.dumps(contents))
    return root


def mig_entry(task: str, names: list[str], answer: Any) -> dict[str, Any]:
    """One entry of `MIG_data.json`."""
    question = "Compare these two images carefully and give me the coordinates of their difference. "
    asked = {"question": question, "answer": answer, "additional_info": "", "need_format": True}
    return {"task": task, "images": [f"./MIG-Bench/images/{name}" for name in names], **asked}


def mig_bench(root: Path, more: list[Any] | None = None) -> Path:
    """Source: the data set Michael4933/MIG-Bench (MIG_data.json, images.zip) and its README."""
    static = ["static_diff/7996_1_source.png", "static_diff/7996_1_target.png"]
    view = ["view_diff/DSC_1975.jpg", "view_diff/DSC_1976_r.jpg"]
    other = ["common/Cup/cup_1.jpg", "common/Cup/cup_2.jpg", "common/Cup/cup_3.jpg"]
    for seed, name in enumerate([*static, *view, *other]):
        picture(root / "images" / name, seed=seed)
    entries = [
        mig_entry("common_object", other, [0.1, 0.1, 0.9, 1.035]),
        mig_entry("diff", static, [0.25, 0.5, 0.5, 0.998]),
        mig_entry("view_diff", view, [0.0, 0.0, 0.125, 0.25]),
        *(more or []),
    ]
    (root / "MIG_data.json").write_text(json.dumps(entries))
    return root
