"""`make nano`: dig-nano from random weights: families of pictures, supervised training on them, then GRPO.

Stop it whenever you like; the same command goes on from the last checkpoint, minutes back at most.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dig_rl.data import load_examples
from dig_rl.datagen.families import FamilyRecipe
from dig_rl.datagen.family_shards import FamilyShard, make_families, read_families, refuse_shared_scenes
from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import ConfigError
from dig_rl.layers import build, differing_keys, read_toml
from dig_rl.metrics import read_metrics
from dig_rl.policy.build import SmallPolicyConfig, build_small_policy
from dig_rl.prompts import instruction
from launch.arguments import add_list, add_overrides, split_numbers
from launch.terminal import end_with_message, run_part

RECIPE = "launch/configs/recipes/nano.toml"
WORK = Path("runs/nano-warmup")
DATA = Path("nano/data")
POLICY = Path("policies/nano-warm")
CONFIG = "launch/configs/demo.toml"
FIGURES = {"f1": "F1 at IoU 0.5", "mean_iou": "mean IoU", "count_accuracy": "right number of boxes"}
"""Of the validation split: what GRPO is judged by."""


class Stage(BaseModel):
    """One supervised stage: which families, and how long."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    families: tuple[str, ...] = Field(min_length=1)
    """Names of tables under `families`."""
    training: dict[str, object]
    """`dig_rl.family_warmup.FamilyWarmupConfig`."""


class NanoRecipe(BaseModel):
    """Everything that decides what dig-nano is before GRPO."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    policy: SmallPolicyConfig
    families: dict[str, FamilyRecipe]
    stages: dict[str, Stage] = Field(min_length=1)
    """In their order; each begins with the policy of the one before."""

    @model_validator(mode="after")
    def _families_are_there(self) -> NanoRecipe:
        for name, stage in self.stages.items():
            missing = set(stage.families) - set(self.families)
            if missing:
                raise ValueError(f"stages.{name} names families {sorted(missing)}, there are {sorted(self.families)}")
        return self


def main() -> None:
    """Make what is missing, in order."""
    parser = argparse.ArgumentParser(prog="make nano", description=__doc__)
    parser.add_argument("--recipe", default=RECIPE, help="TOML file (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="families and checkpoints (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with a validation split (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=POLICY, help="policy to write (default: %(default)s)")
    add_list(parser, "--seeds", "of GRPO, a run each (SEEDS=; default: 0)", split_numbers, default=[0])
    add_overrides(parser, "GRPO's settings")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="renderers (default: one a core)")
    arguments = parser.parse_args()
    recipe = build(NanoRecipe, read_toml(arguments.recipe), where=arguments.recipe)
    if (arguments.out / "config.json").exists():
        print(f"{arguments.out} is there already; remove it to train it anew", flush=True)
    else:
        _warm_up(recipe, arguments)
    for seed in arguments.seeds:
        _learn_from_reward(seed, arguments)
    _draw_curves(arguments.runs_dir, arguments.seeds)


def _warm_up(recipe: NanoRecipe, arguments: argparse.Namespace) -> None:
    """Make `out` from random weights."""
    for name, families in recipe.families.items():
        print(f"== families {name}: {families.num_families} layouts, drawn by {families.pictures.renderer}", flush=True)
        folder = arguments.work / "families" / name
        make_families(families, folder, arguments.workers, _show_families)
        refuse_shared_scenes(folder, arguments.data)
    start = arguments.work / "random"
    if not (arguments.work / next(iter(recipe.stages))).exists():
        shutil.rmtree(start, ignore_errors=True)
        build_small_policy(recipe.policy, [instruction("union", "norm1000")], start)
    for name in recipe.stages:
        start = _train(recipe, name, start, arguments)
    partial = arguments.out.with_name(arguments.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(start, partial)
    partial.rename(arguments.out)
    print(f"warm policy written to {arguments.out}", flush=True)


def _learn_from_reward(seed: int, arguments: argparse.Namespace) -> None:
    """Train the warm policy with GRPO, or what is left of that, and say what became of its validation figures."""
    run = _run_folder(arguments.runs_dir, seed)
    print(f"== GRPO, seed {seed}: {CONFIG}", flush=True)
    settings = [f"seed={seed}", f"policy.path={json.dumps(str(arguments.out))}"]
    settings += [f"data.path={json.dumps(str(arguments.data))}", *arguments.set]
    folders = ["--run", run.name, "--runs-dir", str(arguments.runs_dir)]
    # A finished run, too: only there are its settings compared with those asked for.
    if code := run_part("launch.train", "--config", CONFIG, *folders, "--set", *settings):
        sys.exit(code)
    figures = [line for line in read_metrics(run) if "validation/f1" in line]
    for name in FIGURES if figures else ():
        first, last = (line[f"validation/{name}"] for line in (figures[0], figures[-1]))
        pairs = f"{figures[-1]['validation/pairs']:.0f} pairs"
        print(f"seed {seed}: validation {name} {first:.3f} -> {last:.3f} ({last - first:+.3f}), {pairs}", flush=True)


def _run_folder(runs_dir: Path, seed: int) -> Path:
    return runs_dir / f"nano-{seed}"


def _draw_curves(runs_dir: Path, seeds: Sequence[int]) -> None:
    """Validation figures over the steps, every seed in one picture, beside the runs."""
    # Imported here: what comes before needs no matplotlib.
    from dig_rl.reporting.plots import overlay

    runs = {f"seed {seed}": read_metrics(_run_folder(runs_dir, seed)) for seed in seeds}
    for name, title in FIGURES.items():
        if picture := overlay(runs, f"validation/{name}", unit=title):
            path = runs_dir / f"nano-{name.replace('_', '-')}.svg"
            write_durably(path, picture)
            print(f"curves: {path}", flush=True)


def _train(recipe: NanoRecipe, name: str, start: Path, arguments: argparse.Namespace) -> Path:
    # Imported here: torch and TRL take seconds, and drawing needs neither.
    from dig_rl.family_batches import PairPool
    from dig_rl.family_warmup import FamilyWarmupConfig, last_tenth_gain, read_history, warm_up_on_families

    stage = recipe.stages[name]
    out = arguments.work / name
    settings = build(FamilyWarmupConfig, dict(stage.training), where=f"{arguments.recipe}, stages.{name}.training")
    decides = {"families": list(stage.families), "training": settings.model_dump(mode="json")}
    _refuse_other_settings(out, {"policy": recipe.policy.model_dump(mode="json"), **decides})
    if not (out / "policy" / "config.json").exists():
        pool = PairPool(_shards(arguments.work / "families" / families for families in stage.families))
        validation = load_examples(arguments.data, "validation")
        print(
            f"== stage {name}: {settings.steps} steps on {len(pool)} pairs of {', '.join(stage.families)}", flush=True
        )
        warm_up_on_families(settings, start, pool, validation, recipe.policy.coordinate_levels, out)
    gain = last_tenth_gain(read_history(out))
    if gain is not None:
        print(f"stage {name}: over its last tenth the validation loss fell by {100 * gain:.2f} %")
    return Path(out / "policy")


def _refuse_other_settings(out: Path, wanted: dict[str, Any]) -> None:
    path = out / "stage.json"
    saved = read_json_object(path, remedy=f"delete the folder {out}")
    if saved is None and (out / "checkpoints").exists():
        saved = {}  # by a version that wrote none down
    if saved is not None and saved != wanted:
        listed = "\n  ".join(differing_keys(saved, wanted))
        raise ConfigError(
            f"{out} was trained with other settings:\n  {listed}\nname another --work folder, or delete this one and "
            "those of the stages after it"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(wanted, indent=1) + "\n")


def _shards(folders: Iterable[Path]) -> Iterable[FamilyShard]:
    for folder in folders:
        yield from read_families(folder)


def _show_families(done: int, total: int) -> None:
    print(f"{done}/{total} families", flush=True)


if __name__ == "__main__":
    sys.exit(end_with_message(main, "make nano continues where it stopped"))
