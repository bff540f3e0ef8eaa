"""Finished runs are written down, skipped and never mixed; a run that fails or is stopped loses nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dig_rl.ablations.ledger import Entry, append_entries, read_entries
from dig_rl.ablations.plan import Budget, PlannedRun
from dig_rl.config import load_config
from dig_rl.errors import ConfigError, DigRlError
from launch import ablation_runs, ablations
from tests.ablation_world import entry_of, make_world, planned, settings
from tests.tiny import CONFIG


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


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
    (world / "configs").mkdir(exist_ok=True)
    (world / "configs" / f"{run.name}.fingerprint").write_text(run.fingerprint)
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


@pytest.mark.parametrize("record", [None, "0123456789abcdef"])
def test_a_folder_of_another_run_is_not_taken_for_this_one(world: Path, monkeypatch: Any, record: str | None) -> None:
    run = planned(world)
    folder, fingerprint = world / run.name, world / "configs" / f"{run.name}.fingerprint"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(finished_summary()))
    if record is not None:
        fingerprint.parent.mkdir()
        fingerprint.write_text(record)
    monkeypatch.setattr(ablation_runs, "_run", lambda *command: pytest.fail("nothing may be begun"))
    told = f"begun with other settings, .*fingerprint {record or 'unknown'}, expected {run.fingerprint}.*; remove it"
    with pytest.raises(ablation_runs.RunFailed, match=told):
        ablation_runs.execute(run, Budget(75, 3, 4), world, [])
    shutil.rmtree(folder)
    monkeypatch.setattr(ablation_runs, "_run", lambda *command: folder.mkdir())
    with pytest.raises(ablation_runs.RunFailed, match="ended as nothing"):
        ablation_runs.execute(run, Budget(75, 3, 4), world, [])
    assert fingerprint.read_text() == run.fingerprint


def test_supervised_control_needs_the_time_of_its_model(world: Path) -> None:
    other_seed = entry_of(planned(world), "reward", "all", seed=1)
    with pytest.raises(DigRlError, match="run that first: make ablations ONLY=all SEEDS=0"):
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


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ('set=["reward.terms.iou.kwargs.iou_reduction=mached"]', r"arm late, reward.terms.iou: .*mached"),
        ('set=["reward.terms.iou.use=rewards/gone.py:box_iou"]', r"arm late, reward.terms.iou: .*no file at"),
    ],
)
def test_a_mistake_in_an_arm_that_comes_late_is_found_first(world: Path, command: Any, arm: str, message: str) -> None:
    recipe = world / "recipe.toml"
    recipe.write_text(recipe.read_text() + f'[arms.late]\naxis="reward"\nlater=true\n{arm}\n')
    runs = Runs()
    for options in ([], ["--dry-run"]):
        with pytest.raises(ConfigError, match=message):
            command(runs, *options)
    assert runs.asked == []


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
