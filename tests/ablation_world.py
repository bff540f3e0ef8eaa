"""Folders, recipe and entries that tests of `make ablations` share; nothing here starts an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dig_rl.ablations.ledger import Entry
from dig_rl.ablations.plan import PlannedRun, plan_runs
from dig_rl.ablations.recipe import AblationRecipe, load_recipe
from tests.data_folders import line_of, write_folder
from tests.tiny import CONFIG, ROOT

SHIPPED = ROOT / "launch/configs/recipes/ablations.toml"


def make_world(folder: Path) -> Path:
    """A data folder with one training pair of each number of changes, and a policy folder."""
    difference = line_of("p0")["differences"][0]
    lines = [
        line_of(f"p{index}", num_differences=count, differences=[difference] * count, split=split)
        for index, (count, split) in enumerate([(1, "train"), (2, "train"), (3, "train"), (4, "train"), (1, "test")])
    ]
    write_folder(folder / "data", lines)
    (folder / "policy").mkdir()
    (folder / "policy/config.json").write_text("{}")
    (folder / "policy/model.safetensors").write_bytes(b"weights")
    return folder


def settings(world: Path) -> list[str]:
    return [f'data.path="{world / "data"}"', f'policy.path="{world / "policy"}"']


def shipped(world: Path, **changes: Any) -> AblationRecipe:
    """The shipped recipe on the folders of a test."""
    return load_recipe(SHIPPED).model_copy(update={"config": str(CONFIG), "set": tuple(settings(world)), **changes})


def planned(world: Path, arm: str = "all", **changes: Any) -> PlannedRun:
    return plan_runs(shipped(world, **changes), ROOT, arms=[arm], seeds=[0])[0]


def entry_of(run: PlannedRun, axis: str, arm: str, **changes: Any) -> Entry:
    before = {"f1": 0.25, "mean_iou": 0.25, "count_accuracy": 0.5, "parse_rate": 1.0}
    values = {"axis": axis, "arm": arm, "seed": run.seed, "steps": 75, "seconds": 60.0, "training_seconds": 40.0}
    after = before | {"f1": 0.5, "completions": 900, "before": before, "fingerprint": run.fingerprint}
    return Entry.model_validate(values | after | changes)
