"""Which runs `make ablations` plans, in which order, at which budget, and when it takes one for done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dig_rl.ablations.ledger import Entry, append_entries, read_entries
from dig_rl.ablations.plan import Budget, PlannedRun, common_budget, plan_runs
from dig_rl.ablations.recipe import AblationRecipe, load_recipe
from dig_rl.config import load_config
from dig_rl.errors import ConfigError, DataError, DigRlError, PolicyError
from dig_rl.layers import build
from dig_rl.reporting.ablation_report import ARMS
from launch import ablation_runs, ablations
from tests.data_folders import line_of, write_folder
from tests.tiny import CONFIG, ROOT

SHIPPED = ROOT / "launch/configs/ablations.toml"
CONTRACT = {
    "reward": ["format", "format_iou", "format_f1", "all"],
    "curriculum": ["mixed_only", "single_only", "single_dual", "staged", "adaptive"],
    "control": ["shuffled_labels", "blank_image_b", "sft_more"],
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A data folder with one training pair of each number of changes, and a policy folder."""
    difference = line_of("p0")["differences"][0]
    lines = [
        line_of(f"p{index}", num_differences=count, differences=[difference] * count, split=split)
        for index, (count, split) in enumerate([(1, "train"), (2, "train"), (3, "train"), (4, "train"), (1, "test")])
    ]
    write_folder(tmp_path / "data", lines)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text("{}")
    (tmp_path / "policy/model.safetensors").write_bytes(b"weights")
    return tmp_path


def settings(world: Path) -> list[str]:
    return [f'data.path="{world / "data"}"', f'policy.path="{world / "policy"}"']


def shipped(world: Path, **changes: Any) -> AblationRecipe:
    """The shipped recipe on the folders of a test."""
    return load_recipe(SHIPPED).model_copy(update={"config": str(CONFIG), "set": tuple(settings(world)), **changes})


def planned(world: Path, arm: str = "all", **changes: Any) -> PlannedRun:
    return plan_runs(shipped(world, **changes), ROOT, arms=[arm], seeds=[0])[0]


def test_shipped_recipe_has_the_arms_of_the_contract() -> None:
    recipe = load_recipe(SHIPPED)
    for axis, names in CONTRACT.items():
        there = {name for name, arm in recipe.arms.items() if arm.axis == axis}
        assert there - {"sft_exact"} == set(names)
        assert there == {arm.name for arm in ARMS[axis]}  # each has its row in the report
    assert len(recipe.seeds) >= 3


def test_runs_that_decide_the_orderings_come_first_seed_by_seed(world: Path) -> None:
    runs = plan_runs(shipped(world, seeds=(0, 1)), ROOT)
    deciding = ["all", "format", "format_iou", "format_f1", "mixed_only", "single_only", "single_dual"]
    others = ["adaptive", "shuffled_labels", "blank_image_b", "sft_more", "sft_exact"]
    assert [run.name for run in runs] == [
        *(f"{arm}-{seed}" for seed in (0, 1) for arm in deciding),
        *(f"{arm}-{seed}" for seed in (0, 1) for arm in others),
    ]
    assert runs[0].keys == [("reward", "all", 0), ("curriculum", "staged", 0)]
    assert all(len(run.keys) == 1 for run in runs if run.arm != "all")
    assert {run.config.seed for run in runs if run.name.endswith("-1")} == {1}


def test_every_arm_differs_from_the_full_method_in_one_thing(world: Path) -> None:
    by_arm = {run.arm: run for run in plan_runs(shipped(world), ROOT, seeds=[0])}
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
            assert run.config.model_copy(update={"curriculum": full.curriculum}) == full
    used = {name: Path(run.config.curriculum).stem for name, run in by_arm.items()}
    curricula = ("mixed_only", "single_only", "single_dual", "adaptive")
    assert used == {name: name if name in curricula else "staged" for name in by_arm}


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


def entry_of(run: PlannedRun, axis: str, arm: str, **changes: Any) -> Entry:
    before = {"f1": 0.25, "mean_iou": 0.25, "count_accuracy": 0.5, "parse_rate": 1.0}
    values = {"axis": axis, "arm": arm, "seed": run.seed, "steps": 75, "seconds": 60.0, "training_seconds": 40.0}
    after = before | {"f1": 0.5, "completions": 900, "before": before, "fingerprint": run.fingerprint}
    return Entry.model_validate(values | after | changes)


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


def test_ledger_has_the_keys_of_the_contract_and_keeps_what_it_holds(world: Path) -> None:
    run, path = planned(world), world / "docs/ablations.json"
    assert read_entries(path) == []
    pair = [entry_of(run, "reward", "all"), entry_of(run, "curriculum", "staged")]
    append_entries(path, pair)
    append_entries(path, [entry_of(run, "reward", "all", seed=1)])
    assert read_entries(path)[:2] == pair and len(read_entries(path)) == 3
    contract = {"axis", "arm", "seed", "steps", "f1", "mean_iou", "count_accuracy", "parse_rate", "seconds"}
    assert json.loads(path.read_text())[0].keys() - contract == {
        "before",
        "completions",
        "fingerprint",
        "training_seconds",
    }
    before = path.read_bytes()
    with pytest.raises(DigRlError, match="has an entry for"):
        append_entries(path, [entry_of(run, "reward", "format"), pair[1]])
    assert path.read_bytes() == before  # all or none


def test_runs_that_end_at_one_time_are_all_written_down(world: Path) -> None:
    run, path = planned(world), world / "ablations.json"

    def finish(arm: str) -> None:
        for seed in range(10):
            append_entries(path, [entry_of(run, "reward", arm, seed=seed)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finish, "abcd"))
    assert len(read_entries(path)) == 40


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace('"f1": 0.5', '"f1": NaN'), "is damaged"),
        (lambda text: text.replace('"arm": "all"', '"arm": 3'), "0.arm"),
        (lambda text: json.dumps(json.loads(text) * 2), "twice"),
    ],
)
def test_a_damaged_ledger_is_refused(world: Path, damage: Any, message: str) -> None:
    path = world / "ablations.json"
    append_entries(path, [entry_of(planned(world), "reward", "all")])
    path.write_text(damage(path.read_text()))
    with pytest.raises(DigRlError, match=message):
        read_entries(path)


def finished_summary(**changes: Any) -> dict[str, Any]:
    before = {"f1": 0.25, "mean_iou": 0.3, "precision": 0.1, "count_accuracy": 0.5, "parse_rate": 1.0, "pairs": 200}
    seconds = {
        "total": 90.0,
        "generate": 10.0,
        "score": 1.0,
        "learn": 20.0,
        "sync": 2.0,
        "evaluate": 30.0,
        "other": 27.0,
    }
    stages = [{"name": "single", "steps": 25}, {"name": "dual", "steps": 50}]
    heldout = {"before": before, "after": before | {"f1": 0.375}}
    return {"status": "finished", "stages": stages, "heldout": heldout, "seconds": seconds} | changes


def run_that_leaves(summary: dict[str, Any], run: PlannedRun, world: Path, monkeypatch: Any) -> list[Entry]:
    """Entries of a run whose process leaves this summary."""
    (world / run.name).mkdir()
    (world / run.name / "summary.json").write_text(json.dumps(summary))
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(ablation_runs, "_run", lambda *command: asked.append(command))
    made = ablation_runs.execute(run, Budget(75, 3, 4), world, [])
    config = world / "configs" / f"{run.name}.json"
    assert asked == [("launch.train", "--config", str(config), "--run", run.name, "--runs-dir", str(world))]
    assert load_config([config]) == run.config
    return made


def test_entries_are_taken_from_the_summary(world: Path, monkeypatch: Any) -> None:
    reward, curriculum = run_that_leaves(finished_summary(), planned(world), world, monkeypatch)
    assert (reward.key, curriculum.key) == (("reward", "all", 0), ("curriculum", "staged", 0))
    assert (reward.before.f1, reward.f1, reward.mean_iou, reward.count_accuracy) == (0.25, 0.375, 0.3, 0.5)
    assert (reward.steps, reward.completions, reward.seconds, reward.training_seconds) == (75, 900, 90.0, 33.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "interrupted"}, "ended as interrupted"),
        ({"stages": [{"name": "single", "steps": 74}]}, "has 74 steps, expected 75; remove it"),
    ],
)
def test_a_run_that_is_not_what_was_planned_is_not_written_down(
    world: Path, monkeypatch: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ablation_runs.RunFailed, match=message):
        run_that_leaves(finished_summary(**change), planned(world), world, monkeypatch)


def test_supervised_control_needs_the_time_of_its_model(world: Path) -> None:
    other_seed = entry_of(planned(world), "reward", "all", seed=1)
    with pytest.raises(DigRlError, match='run that first: make ablations ONLY="all" SEEDS="0"'):
        ablation_runs.execute(planned(world, "sft_more"), Budget(75, 3, 4), world, [other_seed])


class Runs:
    """Stands in for `execute`: writes down what is asked for, fails or is interrupted where told."""

    def __init__(self, *, fail: Sequence[str] = (), interrupt: str = "") -> None:
        self.asked: list[str] = []
        self._fail, self._interrupt = fail, interrupt

    def __call__(self, run: PlannedRun, budget: Budget, work: Path, entries: Sequence[Entry]) -> list[Entry]:
        self.asked.append(run.name)
        if run.name == self._interrupt:
            raise KeyboardInterrupt
        if run.name in self._fail:
            raise ablation_runs.RunFailed("it broke")
        (work / run.name / "checkpoints").mkdir(parents=True)
        return [entry_of(run, axis, arm) for axis, arm in run.written_as]


@pytest.fixture
def command(world: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls `make ablations` with two seeds of two arms on the folders of the test."""
    recipe = world / "recipe.toml"
    arms = '[arms.all]\naxis="reward"\n[arms.staged]\naxis="curriculum"\nsame_run_as="all"\n'
    arms += '[arms.format]\naxis="reward"\nreward_weights={format=1.0}\n'
    weights = "reward_weights = { format = 0.1, f1 = 0.45, iou = 0.45 }"
    shared = f'config="{CONFIG}"\nset={json.dumps(settings(world))}\nseeds=[0, 1]\ncurriculum="curricula/tiny.toml"'
    recipe.write_text(f"{shared}\n{weights}\n{arms}")

    def call(runs: Runs, *options: str) -> None:
        monkeypatch.setattr(ablations, "execute", runs)
        folders = ["--ledger", str(world / "docs/ablations.json"), "--work", str(world / "work")]
        monkeypatch.setattr("sys.argv", ["x", "--recipe", str(recipe), *folders, *options])
        ablations.main()

    return call


def keys_in(world: Path) -> list[tuple[str, int]]:
    return [(entry.arm, entry.seed) for entry in read_entries(world / "docs/ablations.json")]


def test_finished_runs_are_written_down_and_skipped(world: Path, command: Any, capsys: Any) -> None:
    first = Runs(interrupt="all-1")
    with pytest.raises(KeyboardInterrupt):
        command(first)
    assert first.asked == ["all-0", "format-0", "all-1"]
    assert keys_in(world) == [("all", 0), ("staged", 0), ("format", 0)]
    assert "`format`" in (world / "docs/ablations.md").read_text()
    assert (world / "docs/images/ablations-reward.png").is_file()
    assert not (world / "work/all-0/checkpoints").exists()
    second = Runs()
    command(second)
    assert second.asked == ["all-1", "format-1"]
    third = Runs()
    command(third)
    assert third.asked == [] and len(keys_in(world)) == 6
    output = capsys.readouterr().out
    assert "4 runs of 3 steps x 3 pairs x 4 answers = 36 scored answers; 2 are finished" in output
    assert "== run 1 of 2: all, also staged, seed 1; 0 minutes so far, about 0 h 02 min left" in output


def test_a_failed_run_is_told_and_tried_again_and_the_others_go_on(world: Path, command: Any, capsys: Any) -> None:
    with pytest.raises(DigRlError, match="failed: format-0; "):
        command(Runs(fail=["format-0"]))
    assert "run format-0 failed: it broke" in capsys.readouterr().err
    assert ("format", 1) in keys_in(world) and ("format", 0) not in keys_in(world)
    again = Runs()
    command(again)
    assert again.asked == ["format-0"]


def test_no_run_is_begun_that_would_end_too_late(world: Path, command: Any, capsys: Any) -> None:
    first = Runs()
    command(first, "--minutes", "0.5")
    assert first.asked == ["all-0"]  # how long a run takes is not known before; then, a minute as that one
    assert "3 runs are left: format-0 would take about 1 minutes more" in capsys.readouterr().out
    (world / "work/format-0").mkdir(parents=True)
    (world / "work/format-0/summary.json").write_text(json.dumps({"seconds": {"total": 50.0}}))
    second = Runs()
    command(second, "--minutes", "0.5")
    assert second.asked == ["format-0"]  # begun before: 10 seconds are left of it


def test_entries_of_other_settings_stop_everything_also_where_other_arms_are_asked_for(command: Any) -> None:
    command(Runs(), "--only", "format", "--seeds", "5")
    runs = Runs()
    with pytest.raises(ConfigError, match="entry of reward format 5 was measured with other settings"):
        command(runs, "--only", "staged", "--set", "learner.lr=0.5")
    assert runs.asked == []
    command(runs, "--dry-run")
    assert runs.asked == []
