"""A folder of families on disk: one file a hundred families, whole or absent, so that making them can stop anywhere."""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dig_rl.datagen.families import Family, FamilyRecipe, make_family
from dig_rl.datagen.renderers import open_renderer
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import ConfigError, DataError
from dig_rl.layers import differing_keys

FAMILIES_A_SHARD = 100
RECIPE_NAME = "families.json"


@dataclass(frozen=True)
class FamilyShard:
    """Some families as arrays."""

    images: np.ndarray
    """`[P, H, W, 3]` uint8 sRGB, all families one after the other."""
    states: np.ndarray
    """`[P, S]` int8: the state in which a picture shows each object of its layout; -1 for none."""
    objects_xyxy_px: np.ndarray
    """`[P, S, 4]` float32: what a picture shows of each object; NaN for nothing."""
    pairs: np.ndarray
    """`[N, 2]` int32, indices of two pictures."""
    num_boxes: np.ndarray
    """`[N]` int8."""
    boxes_xyxy_px: np.ndarray
    """`[N, M, 4]` float32, of which the first `num_boxes` count."""
    places_m: np.ndarray
    """`[K, 2]` float64, where the objects of all layouts stand."""


def make_families(recipe: FamilyRecipe, out: Path, workers: int, on_progress: Callable[[int, int], None]) -> None:
    """Make a folder of families, or finish one that was begun, one process a worker.

    Args:
        recipe: what to make.
        out: the folder; new, or begun with the same recipe.
        workers: shards at work at one time.
        on_progress: called with finished and all families, at the start and after every shard.

    Raises:
        ConfigError: the folder belongs to another recipe.
        RenderError: a renderer failed twice in a row.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = recipe.model_dump(mode="json")
    saved = read_json_object(out / RECIPE_NAME, remedy=f"delete the folder {out} and make it again")
    if saved is not None and saved != wanted:
        listed = "\n  ".join(differing_keys(saved, wanted))
        raise ConfigError(f"{out} was made with other settings:\n  {listed}\nname another folder, or delete it")
    write_durably(out / RECIPE_NAME, json.dumps(wanted, indent=1) + "\n")
    firsts = range(0, recipe.num_families, FAMILIES_A_SHARD)
    missing = [first for first in firsts if not _path(out, first).exists()]
    done = sum(_size(recipe, first) for first in firsts if first not in missing)
    on_progress(done, recipe.num_families)
    if not missing:
        return
    with ProcessPoolExecutor(max_workers=max(1, min(workers, len(missing)))) as pool:
        running = {pool.submit(_make_shard, recipe, out, first): first for first in missing}
        try:
            for finished in as_completed(running):
                finished.result()
                done += _size(recipe, running[finished])
                on_progress(done, recipe.num_families)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():  # or the command would wait for shards that take a minute
                worker.kill()  # it inherits what the command does at SIGTERM, and has nothing to save
            raise


def read_families(folder: Path) -> Iterator[FamilyShard]:
    """Every shard of a finished folder, in order.

    Raises:
        DataError: the folder is not finished, or a file of it is damaged.
    """
    values = read_json_object(folder / RECIPE_NAME, remedy=f"delete the folder {folder} and make it again")
    if values is None:
        raise DataError(f"{folder} is no folder of families ({RECIPE_NAME} is missing)")
    for first in range(0, int(values["num_families"]), FAMILIES_A_SHARD):
        path = _path(folder, first)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                yield FamilyShard(**{name: arrays[name] for name in FamilyShard.__dataclass_fields__})
        except FileNotFoundError:
            raise DataError(f"{path} is missing: the folder is not finished; run the same command again") from None
        except KeyError as error:
            raise DataError(
                f"{path} was made by another version of dig-rl ({error}); delete the folder {folder} and run the same "
                "command again"
            ) from None
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def refuse_shared_scenes(folder: Path, data_dir: Path) -> None:
    """Make sure that no object of the families stands where one of a data folder's scenes does.

    Places are drawn from a continuum: two scenes share one only if they are the same scene, changed or not.

    Raises:
        DataError: a place occurs in both; one pair that has it is named. Or the data folder has no scenes.
    """
    ours = {tuple(place) for shard in read_families(folder) for place in shard.places_m.tolist()}
    scenes = sorted((data_dir / "scenes").glob("*.json"))
    if not scenes:
        raise DataError(f"{data_dir} has no scenes/*.json, so nothing says whether the families share a scene with it")
    for path in scenes:
        values = json.loads(path.read_text(encoding="utf-8"))
        items = [*values["scene_a"]["objects"], *values["scene_b"]["objects"]]
        if any((item["x_m"], item["y_m"]) in ours for item in items):
            raise DataError(f"{path} shows a scene of the families in {folder}; give one of them another seed")


def as_shard(families: list[Family], max_boxes: int, max_objects: int) -> FamilyShard:
    """Families one after the other, as arrays."""
    starts = np.cumsum([0, *(len(family.images) for family in families)])
    pairs = [(start, pair) for start, family in zip(starts, families, strict=False) for pair in family.pairs]
    boxes = np.zeros((len(pairs), max_boxes, 4), dtype=np.float32)
    for row, (_, pair) in enumerate(pairs):
        boxes[row, : len(pair.boxes_xyxy_px)] = pair.boxes_xyxy_px
    return FamilyShard(
        images=np.concatenate([family.images for family in families]),
        states=np.concatenate([_padded(family.states, max_objects, -1) for family in families]),
        objects_xyxy_px=np.concatenate([_padded(family.objects_xyxy_px, max_objects, np.nan) for family in families]),
        pairs=np.array([start + np.array(pair.pictures) for start, pair in pairs], dtype=np.int32).reshape(-1, 2),
        num_boxes=np.array([len(pair.boxes_xyxy_px) for _, pair in pairs], dtype=np.int8),
        boxes_xyxy_px=boxes,
        places_m=np.concatenate([np.array(family.places_m).reshape(-1, 2) for family in families]),
    )


def _padded(values: np.ndarray, length: int, fill: float) -> np.ndarray:
    """`[V, S, ...]` with the second axis filled up."""
    widths = [(0, 0), (0, length - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, widths, constant_values=fill)


def _make_shard(recipe: FamilyRecipe, out: Path, first: int) -> None:
    with closing(open_renderer(recipe.pictures)) as renderer:
        families = [make_family(index, recipe, renderer) for index in range(first, first + _size(recipe, first))]
    shard = as_shard(families, recipe.max_differences, recipe.num_objects[1])
    partial = _path(out, first).with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **{name: getattr(shard, name) for name in FamilyShard.__dataclass_fields__})
    partial.replace(_path(out, first))


def _size(recipe: FamilyRecipe, first: int) -> int:
    return min(FAMILIES_A_SHARD, recipe.num_families - first)


def _path(folder: Path, first: int) -> Path:
    return folder / f"families-{first:06d}.npz"
