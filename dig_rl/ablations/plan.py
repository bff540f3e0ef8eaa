"""From a recipe to runs: what each one differs in, in which order they come, and that all have the same budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dig_rl.ablations.ledger import Entry
from dig_rl.ablations.recipe import AblationRecipe, ArmRecipe, Axis, Control
from dig_rl.config import Config
from dig_rl.curriculum import load_stages, open_curriculum, stage_config
from dig_rl.data import METADATA_NAME, load_examples
from dig_rl.errors import ConfigError, PolicyError
from dig_rl.layers import build, read_layers, with_overrides
from dig_rl.types import Example

SUPERVISED_FILE = "supervised.json"
"""Of a run folder of `sft_more`: how many steps it has and what they took."""

_DECIDES_NOTHING = {"checkpoint", "cluster", "alarms"}
"""Sections of the config that a run's figures do not depend on."""


@dataclass(frozen=True)
class PlannedRun:
    """One run, before any of it has happened."""

    arm: str
    seed: int
    written_as: tuple[tuple[Axis, str], ...]
    """Axis and arm of each of its entries."""
    config: Config
    """Its settings; `data.path` is the folder that a control's data are derived from."""
    control: Control | None
    minutes_of: str | None
    """`sft_more`: arm whose training time it gets."""
    training: dict[str, Any]
    """`sft_more`: settings of the supervised training."""
    fingerprint: str

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.arm}-{self.seed}"

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """Of its entries."""
        return [(axis, arm, self.seed) for axis, arm in self.written_as]

    def is_in(self, entries: Sequence[Entry]) -> bool:
        """Whether all its entries are there.

        Raises:
            ConfigError: one is there, but was measured with other settings, stages, weights or pairs.
        """
        found = {entry.key: entry for entry in entries if entry.key in self.keys}
        for key, entry in found.items():
            if entry.fingerprint != self.fingerprint:
                raise ConfigError(
                    f"the entry of {' '.join(map(str, key))} was measured with other settings, stages, policy or pairs "
                    f"than the recipe asks for now (fingerprint {entry.fingerprint}, expected {self.fingerprint}); "
                    "restore them, or remove the entries to measure anew"
                )
        return len(found) == len(self.keys)


@dataclass(frozen=True)
class Budget:
    """What every run of GRPO is given."""

    steps: int
    prompts_per_step: int
    group_size: int

    @property
    def completions(self) -> int:
        """Answers sampled and scored."""
        return self.steps * self.prompts_per_step * self.group_size

    def __str__(self) -> str:
        factors = f"{self.steps} steps x {self.prompts_per_step} pairs x {self.group_size} answers"
        return f"{factors} = {self.completions} scored answers"


def plan_runs(
    recipe: AblationRecipe,
    root: Path,
    *,
    arms: Collection[str] | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> list[PlannedRun]:
    """All runs in their order: first those that decide the orderings, seed by seed, then the others, seed by seed.

    Args:
        recipe: what there is.
        root: folder that stage files are found in; other paths are relative to the working folder, as in `make train`.
        arms: some of its arms; None takes all. An arm that shares its run stands for that run.
        seeds: in place of the recipe's.
        overrides: `section.key=value`, after the recipe's own.

    Raises:
        ConfigError: an arm is unknown, or its settings do not make a valid config.
    """
    if unknown := sorted(set(arms or ()) - set(recipe.arms)):
        raise ConfigError(f"no arm is called {', '.join(unknown)}; there are {', '.join(recipe.arms)}")
    wanted = {recipe.arms[name].same_run_as or name for name in (recipe.arms if arms is None else arms)}
    values = read_layers([recipe.config], [*recipe.set, *overrides])
    base = build(Config, values, where=recipe.config)
    contents = _contents(base)
    runs = []
    for later in (False, True):
        for seed in recipe.seeds if seeds is None else seeds:
            for name, arm in recipe.arms.items():
                if name in wanted and arm.later == later:
                    runs.append(_planned(recipe, name, seed, base, contents, root))
    return runs


def common_budget(recipe: AblationRecipe, root: Path, overrides: Sequence[str] = ()) -> Budget:
    """The budget of every arm, GRPO's stages walked through on the training pairs.

    Raises:
        ConfigError: arms differ, or the settings let a run take more or less than planned.
        DataError, PolicyError: the data folder is wrong, or there is no policy.
    """
    runs = plan_runs(recipe, root, seeds=recipe.seeds[:1], overrides=overrides)
    policy, data = runs[0].config.policy, runs[0].config.data
    if not policy.hub and not Path(policy.path, "config.json").exists():
        raise PolicyError(
            f"no policy at {policy.path}, which {recipe.config} begins with; make it first, as with make nano"
        )
    options: dict[str, Any] = {"allow_no_change": data.allow_no_change, "box_target": data.box_target}
    examples = load_examples(data.path, data.train_split, **options)
    load_examples(data.path, data.heldout_split, **options)
    budgets = {run.arm: _budget(run, examples, root) for run in runs if run.control != "sft_more"}
    if len({budget.completions for budget in budgets.values()}) > 1:
        listed = "\n  ".join(f"{arm}: {budget}" for arm, budget in budgets.items())
        raise ConfigError(f"arms must have the same number of scored answers, found\n  {listed}")
    return next(iter(budgets.values()))


def _budget(run: PlannedRun, examples: Sequence[Example], root: Path) -> Budget:
    config = run.config
    fixed: dict[str, tuple[Any, Any]] = {
        "rollout.max_refills": (config.rollout.max_refills, 0),  # they are scored as well
        "alarms.stop": (config.alarms.stop, ()),
        "evaluation.max_pairs": (config.evaluation.max_pairs, None),
    }
    for key, (found, needed) in fixed.items():
        if found != needed:
            raise ConfigError(f"{key} must be left out in ablations, or runs could not be compared; found {found!r}")
    curriculum = open_curriculum(config, examples, root)
    sizes = {stage_config(config, stage).rollout.group_size for stage in curriculum.stages}
    if curriculum.is_open or len(sizes) > 1:
        raise ConfigError(
            f"arm {run.arm}: {config.curriculum} does not fix the number of scored answers; end its last stage with "
            "until_step, and let all stages have one group_size"
        )
    return Budget(curriculum.total_steps, config.rollout.prompts_per_step, sizes.pop())


def _planned(
    recipe: AblationRecipe, name: str, seed: int, base: Config, contents: dict[str, str], root: Path
) -> PlannedRun:
    arm = recipe.arms[name]
    config = _config(recipe, name, arm, seed, base)
    also = [(other.axis, key) for key, other in recipe.arms.items() if other.same_run_as == name]
    return PlannedRun(
        arm=name,
        seed=seed,
        written_as=((arm.axis, name), *also),
        config=config,
        control=arm.control,
        minutes_of=arm.minutes_of,
        training=dict(arm.training),
        fingerprint=_fingerprint(config, arm, contents, root),
    )


def _config(recipe: AblationRecipe, name: str, arm: ArmRecipe, seed: int, base: Config) -> Config:
    """The shared settings with what is the arm's own; tables of terms would merge, so they are replaced here."""
    weights = recipe.reward_weights if arm.reward_weights is None else arm.reward_weights
    if unknown := sorted(weights.keys() - base.reward.terms.keys()):
        raise ConfigError(
            f"arm {name}: reward_weights names {', '.join(unknown)}; terms of {recipe.config} are "
            f"{', '.join(base.reward.terms)}"
        )
    values = base.model_dump()
    values["reward"]["terms"] = {term: values["reward"]["terms"][term] | {"weight": w} for term, w in weights.items()}
    values |= {"seed": seed, "curriculum": arm.curriculum or recipe.curriculum}
    return build(Config, with_overrides(values, arm.set), where=f"{recipe.config} with the settings of arm {name}")


def _contents(config: Config) -> dict[str, str]:
    """Hashes of the weights and of the labels; a policy of the hub goes by its name."""
    weights = sorted(Path(config.policy.path).glob("*.safetensors"))
    policy = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights] or [config.policy.path]
    metadata = Path(config.data.path, METADATA_NAME)
    labels = hashlib.sha256(metadata.read_bytes()).hexdigest() if metadata.is_file() else config.data.path
    return {"policy": " ".join(policy), "data": labels}


def _fingerprint(config: Config, arm: ArmRecipe, contents: dict[str, str], root: Path) -> str:
    """Of what decides a run; defaults are left out, so that a new setting changes no fingerprint."""
    values = json.loads(config.model_dump_json(exclude_defaults=True, exclude=_DECIDES_NOTHING))
    for section in ("policy", "data"):
        values.get(section, {}).pop("path", None)
    values["curriculum"] = [
        stage.model_dump(mode="json", exclude_defaults=True) for stage in load_stages(root / config.curriculum)
    ]
    decides = [values, contents, arm.control, arm.training]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
