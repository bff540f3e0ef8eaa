"""Which runs `make ablations` plans, in which order, at which budget, and when it takes one for done."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dig_rl.ablations.plan import Budget, common_budget, plan_runs
from dig_rl.ablations.recipe import AblationRecipe, load_recipe
from dig_rl.config import Config
from dig_rl.errors import ConfigError, DataError, PolicyError
from dig_rl.layers import build
from dig_rl.looks import LookKind
from dig_rl.reporting.ablation_arms import ARMS
from tests.ablation_world import SHIPPED, entry_of, make_world, planned, settings, shipped
from tests.tiny import CONFIG, ROOT

CONTRACT = {
    "reward": ["format", "format_iou", "format_f1", "all"],
    "curriculum": ["mixed_only", "single_only", "single_dual", "staged", "adaptive"],
    "control": ["shuffled_labels", "blank_image_b", "sft_more"],
}
REASONS = {
    "format_iou_matched": ("format_iou", "iou", {"iou_reduction": "matched"}),
    "all_matched": ("all", "iou", {"iou_reduction": "matched"}),
}
"""Arms that test why an ordering may not come out: the arm whose reward they share, all but arguments of one term."""
SPARSE = {"mixed_only_sparse": "mixed_only", "staged_sparse": "all", "many_first_sparse": "many_first"}
"""Arms that test whether a curriculum is worth more where reward is rare: arms that differ in the reward alone."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


def test_shipped_recipe_has_the_arms_of_the_contract() -> None:
    recipe = load_recipe(SHIPPED)
    for axis, names in CONTRACT.items():
        there = {name for name, arm in recipe.arms.items() if arm.axis == axis}
        assert there - REASONS.keys() - SPARSE.keys() - {"many_first", "sft_exact"} == set(names)
        assert there == {arm.name for arm in ARMS[axis]}  # each has its row in the report
    assert len(recipe.seeds) >= 3


def test_runs_that_decide_the_orderings_come_first_seed_by_seed(world: Path) -> None:
    runs = plan_runs(shipped(world, seeds=(0, 1)), ROOT)
    deciding = ["all", "format", "format_iou", "format_f1", "mixed_only", "single_only", "single_dual"]
    sparse = ["mixed_only_sparse", "staged_sparse", "many_first", "many_first_sparse"]
    others = [*REASONS, *sparse, "adaptive", "shuffled_labels", "blank_image_b", "sft_more", "sft_exact"]
    assert [run.name for run in runs] == [
        *(f"{arm}-{seed}" for seed in (0, 1) for arm in deciding),
        *(f"{arm}-{seed}" for seed in (0, 1) for arm in others),
    ]
    assert runs[0].keys == [("reward", "all", 0), ("curriculum", "staged", 0)]
    assert all(len(run.keys) == 1 for run in runs if run.arm != "all")
    assert {run.config.seed for run in runs if run.name.endswith("-1")} == {1}


def _with_looks(config: Config, looks: tuple[LookKind, ...]) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"looks": looks})})


def test_more_supervised_training_has_the_labels_of_the_last_stage(world: Path) -> None:
    with (ROOT / "launch/configs/recipes/nano.toml").open("rb") as file:
        *_, last = tomllib.load(file)["stages"].values()
    (more,) = (run.training for run in plan_runs(shipped(world), ROOT, seeds=[0]) if run.arm == "sft_more")
    names = ("imagined", "blind", "hints", "single_steps")
    assert {name: more[name] for name in names} == {name: last["training"][name] for name in names}


def test_every_arm_differs_from_the_full_method_in_one_thing(world: Path) -> None:
    testing_reasons = REASONS.keys() | SPARSE.keys()
    by_arm = {run.arm: run for run in plan_runs(shipped(world), ROOT, seeds=[0]) if run.arm not in testing_reasons}
    full = by_arm["all"].config
    weights = {
        name: {key: term.weight for key, term in run.config.reward.terms.items()} for name, run in by_arm.items()
    }
    assert weights["format"] == {"format": 1.0}
    assert weights["format_iou"] == {"format": 0.1, "iou": 0.9}
    assert weights["format_f1"] == {"format": 0.1, "f1": 0.9}
    for name, run in by_arm.items():
        if name.startswith("format"):
            assert run.config.model_copy(update={"reward": full.reward}) == full
            for key, term in run.config.reward.terms.items():
                assert term.use == full.reward.terms[key].use
        else:
            assert weights[name] == {"format": 0.1, "f1": 0.45, "iou": 0.45}
            expected = full if name != "blank_image_b" else _with_looks(full, ("mirror", "recolor"))
            assert run.config.model_copy(update={"curriculum": full.curriculum}) == expected
    used = {name: Path(run.config.curriculum).stem for name, run in by_arm.items()}
    curricula = ("mixed_only", "single_only", "single_dual", "many_first", "adaptive")
    assert used == {name: name if name in curricula else "staged" for name in by_arm}


@pytest.mark.parametrize("name", REASONS)
def test_arms_that_test_a_reason_differ_in_arguments_of_one_term(world: Path, name: str) -> None:
    like, term, arguments = REASONS[name]
    with_reason, without = planned(world, name).config, planned(world, like).config
    terms = dict(without.reward.terms)
    terms[term] = terms[term].model_copy(update={"kwargs": arguments})
    assert with_reason.reward.terms == terms
    assert with_reason == without.model_copy(update={"reward": with_reason.reward})


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_arms_pay_whole_answers_and_differ_in_nothing_else(world: Path, name: str) -> None:
    sparse, dense = planned(world, name).config, planned(world, SPARSE[name]).config
    assert sparse == dense.model_copy(update={"reward": sparse.reward})
    assert {key: term.weight for key, term in sparse.reward.terms.items()} == {"format": 0.1, "all_right": 0.9}
    assert sparse.reward.terms["all_right"].use == "rewards/all_or_nothing.py:all_or_nothing"


def test_weights_replace_terms_and_keep_what_the_config_says_of_them(world: Path) -> None:
    iou = 'reward.terms.iou={use="rewards/box_iou.py:box_iou", weight=0.5, kwargs={iou_reduction="union_count"}}'
    form = 'reward.terms.format={use="rewards/answer_format.py:answer_format", weight=0.5}'
    f1 = 'reward.terms.f1={use="rewards/box_f1.py:box_f1", weight=0.5}'
    recipe = shipped(world, set=(*settings(world), form, iou, f1.replace("0.5", "1e-9")))
    (run,) = plan_runs(recipe, ROOT, arms=["format_iou"], seeds=[0])
    assert run.config.reward.terms.keys() == {"format", "iou"}
    assert run.config.reward.terms["iou"].weight == 0.9
    assert run.config.reward.terms["iou"].kwargs == {"iou_reduction": "union_count"}


def test_some_arms_and_other_seeds_can_be_asked_for(world: Path) -> None:
    runs = plan_runs(shipped(world), ROOT, arms=["sft_more", "staged", "format"], seeds=[7])
    assert [run.name for run in runs] == ["all-7", "format-7", "sft_more-7"]
    with pytest.raises(ConfigError, match=r"no arm is called fromat; there are all, staged"):
        plan_runs(shipped(world), ROOT, arms=["fromat"])


RECIPE: dict[str, Any] = {
    "config": str(CONFIG),
    "seeds": [0],
    "curriculum": "curricula/tiny.toml",
    "reward_weights": {"format": 1.0},
    "arms": {"all": {"axis": "reward"}, "more": {"axis": "control", "control": "sft_more", "minutes_of": "all"}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"arms": {}}, "arms"),
        ({"armz": {}}, "armz: no such key; did you mean arms"),
        ({"arms": {"all": {"axis": "rewards"}}}, "arms.all.axis"),
        ({"arms": {"all": {"axis": "reward", "reward_weight": {}}}}, "did you mean arms.all.reward_weights"),
        ({"arms": {"x": {"axis": "control"}}}, "only they, name a control"),
        ({"arms": {"x": {"axis": "control", "control": "sft_more"}}}, "minutes_of belongs"),
        ({"arms": {"x": {"axis": "reward", "training": {"lr": 1}}}}, "training belongs"),
        ({"arms": {"x": {"axis": "reward", "same_run_as": "y"}}}, "names 'y'; arms are x"),
        (
            {"arms": {"y": {"axis": "reward"}, "x": {"axis": "reward", "same_run_as": "y", "curriculum": "c"}}},
            "no settings of its own",
        ),
        (
            {"arms": {"y": {"axis": "reward", "same_run_as": "x"}, "x": {"axis": "reward", "same_run_as": "y"}}},
            "no GRPO run of its own",
        ),
    ],
)
def test_mistakes_in_a_recipe_are_named(change: dict[str, Any], message: str) -> None:
    build(AblationRecipe, RECIPE, where="recipe.toml")
    with pytest.raises(ConfigError, match=r"recipe\.toml") as error:
        build(AblationRecipe, RECIPE | change, where="recipe.toml")
    assert message in str(error.value)


def test_weights_that_make_no_valid_reward_are_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"arm all: reward_weights names f2; terms of .* are format, f1, iou"):
        planned(world, reward_weights={"format": 0.1, "f2": 0.9})
    with pytest.raises(ConfigError, match=r"(?s)with the settings of arm all .*must sum to 1, found 0.9"):
        planned(world, reward_weights={"format": 0.1, "f1": 0.8})


def test_shipped_arms_have_one_budget(world: Path) -> None:
    budget = common_budget(shipped(world), ROOT)
    assert budget == Budget(75, 3, 4)
    assert budget.completions == 900


def stage_file(path: Path, steps: int, more: str = "") -> str:
    path.write_text(f'[[stages]]\nname = "s"\ndifferences = [1, 4]\nsteps = {steps}\n{more}')
    return str(path)


def test_arms_with_other_budgets_are_refused_by_name(world: Path) -> None:
    arms = dict(load_recipe(SHIPPED).arms)
    arms["mixed_only"] = arms["mixed_only"].model_copy(update={"curriculum": stage_file(world / "s.toml", 74)})
    with pytest.raises(ConfigError, match="same number of scored answers") as error:
        common_budget(shipped(world, arms=arms), ROOT)
    assert "mixed_only: 74 steps x 3 pairs x 4 answers = 888 scored answers" in str(error.value)
    assert "all: 75 steps x 3 pairs x 4 answers = 900 scored answers" in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.max_refills=1", "rollout.max_refills must be left out"),
        ('alarms.stop=["mismatch"]', "alarms.stop must be left out"),
        ("evaluation.max_pairs=1", "evaluation.max_pairs must be left out"),
        ('policy.path="nowhere"', "no policy at nowhere"),
        ('data.path="nowhere"', "nowhere"),
    ],
)
def test_settings_that_would_make_runs_differ_are_refused(world: Path, override: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError, PolicyError), match=message):
        common_budget(shipped(world), ROOT, [override])


@pytest.mark.parametrize("more", ["promotion = { level = 0.5, window = 1 }", None])
def test_stages_that_leave_the_budget_open_are_refused(world: Path, more: str | None) -> None:
    file = world / "open.toml"
    stage_file(file, 75, more or "")
    if more is None:  # the same steps, but groups of another size in some of them
        later = '[[stages]]\nname = "t"\ndifferences = [1, 4]\nsteps = 5\noverrides = { group_size = 2 }\n'
        stage_file(file, 70, later)
    with pytest.raises(ConfigError, match="does not fix the number of scored answers"):
        common_budget(shipped(world, curriculum=str(file)), ROOT)


def test_a_run_is_done_when_all_its_entries_are_there(world: Path) -> None:
    run = planned(world)
    reward, curriculum = entry_of(run, "reward", "all"), entry_of(run, "curriculum", "staged")
    assert not run.is_in([])
    assert not run.is_in([reward, entry_of(run, "curriculum", "staged", seed=1)])
    assert run.is_in([curriculum, reward])
    with pytest.raises(ConfigError, match="entry of reward all 0 was measured with other settings"):
        run.is_in([entry_of(run, "reward", "all", fingerprint="other")])


def test_a_fingerprint_stands_for_settings_stages_policy_and_pairs_and_for_nothing_else(
    world: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def now(**changes: Any) -> str:
        return planned(world, **changes).fingerprint

    first = now()
    assert planned(world, "format").fingerprint != first
    assert now(set=(*settings(world), "learner.lr=0.5")) != first
    assert now(set=(*settings(world), "checkpoint.every_steps=7")) == first
    stages = stage_file(world / "s.toml", 3)
    by_file = now(curriculum=stages)
    assert by_file != first
    stage_file(world / "s.toml", 4)
    assert now(curriculum=stages) != by_file
    moved = tmp_path_factory.mktemp("elsewhere") / "world"
    world.rename(moved)
    assert planned(moved).fingerprint == first
    (moved / "policy/model.safetensors").write_bytes(b"other weights")
    retrained = planned(moved).fingerprint
    assert retrained != first
    with (moved / "data/metadata.jsonl").open("a") as file:
        file.write("\n")
    assert planned(moved).fingerprint not in (first, retrained)
