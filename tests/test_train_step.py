"""Steps of the training loop with groups that carry no signal, the engines replaced by what they would answer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dig_rl.alarms import find_alarms
from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import AlarmsConfig, Config, load_config
from dig_rl.curriculum import Curriculum, load_stages
from dig_rl.errors import NotFiniteError, PolicyError
from dig_rl.metrics import read_metrics
from dig_rl.progress import TrainProgress
from dig_rl.recording import read_recording
from dig_rl.run_folder import RunFolder
from dig_rl.tracking import Tracker
from dig_rl.train import Inputs, Training
from dig_rl.types import Completion, Example, PolicyInput, RolloutGroup, SampledGroup, Score

ROOT = Path(__file__).resolve().parent.parent


PICTURES = PolicyInput("0" * 64, (16, 6), ((1, 2, 4), (1, 2, 4)), "float32")


class Engines:
    """Answers that earn 0 and 1 on pairs of `useful`, and 0 throughout on others; counts updates and syncs."""

    def __init__(self, useful: set[str]) -> None:
        self.useful = useful
        self.asked: list[list[str]] = []
        self.updates: list[list[str]] = []
        self.synced: list[int] = []
        self.checked: list[int] = []
        self.sampled: dict[Example, PolicyInput] = {}
        self.compared: list[list[Example]] = []
        self.learned = PICTURES
        self.rollouts = SimpleNamespace(
            collect=self._collect,
            reset_caches=lambda: None,
            watch_inputs=self.sampled.clear,
            policy_inputs=lambda: self.sampled,
        )
        self.learner = SimpleNamespace(
            facts=lambda: ("none", {"device": "cpu"}), step=self._step, policy_inputs=self._policy_inputs
        )
        self.policy = SimpleNamespace(engine="none", frame="norm1000", prompt="Find it.")
        self.cluster = SimpleNamespace(ray_version="none")

    def _collect(
        self, examples: Sequence[Example], before: Sequence[RolloutGroup], *, step: int, stage: str
    ) -> tuple[list[RolloutGroup], dict]:
        self.asked.append([example.pair_id for example in examples])
        self.sampled |= dict.fromkeys(examples, PICTURES)
        groups = []
        for example in examples:
            completions = tuple(Completion((1, 2), (-1.0, -1.0), "", "stop", seed) for seed in range(2))
            best = float(example.pair_id in self.useful)
            scores = tuple(Score(reward, {}, "ok") for reward in (0.0, best))
            groups.append(RolloutGroup(SampledGroup(example, (7,), completions, 0, (96, 64), 0), scores, stage))
        return groups, {"timing/generate_s": 1.0, "timing/score_s": 1.0}

    def _step(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        self.updates.append([group.example.pair_id for group in groups])
        return {"learner/loss": 0.0}

    def _policy_inputs(self, examples: list[Example], dtypes: list[str]) -> list[PolicyInput]:
        assert dtypes == [PICTURES.dtype] * len(examples)
        self.compared.append(examples)
        return [self.learned] * len(examples)

    def configure(self, config: Config) -> None:
        pass

    def sync_weights(self, policy_version: int) -> float:
        self.synced.append(policy_version)
        return 0.0

    def check_weights(self) -> None:
        self.checked.append(self.synced[-1] if self.synced else 0)

    def memory_gib(self) -> dict[str, float]:
        return {}


def run_steps(folder: Path, engines: Any, *overrides: str) -> list[dict[str, Any]]:
    """Three steps, one a stage; the lines they leave."""
    config: Config = load_config([ROOT / "launch/configs/tiny.toml"], list(overrides))
    box = (1.0, 1.0, 9.0, 9.0)
    examples = [
        Example(f"d{count}-{index}", "/a.png", "/b.png", (96, 64), (box,) * count, ("color",) * count, "train")
        for count in (1, 2)
        for index in range(6)
    ]
    curriculum = Curriculum(
        load_stages(ROOT / config.curriculum),
        examples,
        seed=config.seed,
        prompts_per_step=config.rollout.prompts_per_step,
    )
    with (
        RunFolder.open(folder, "run", config) as run,
        Tracker(run.path, restored_step=None) as tracker,
        TrainProgress(3) as progress,
    ):
        inputs = Inputs(examples, [], [], curriculum, {})
        training = Training(config, run, inputs, engines, time.monotonic())
        for _ in range(3):
            training._train_one_step(tracker, progress)
        assert curriculum.finished
        return read_metrics(run.path)


def test_steps_without_any_signal_count_and_the_run_goes_on(tmp_path: Path) -> None:
    engines = Engines(useful=set())
    lines = run_steps(tmp_path, engines)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["groups/all_zero"] == 3
        assert line["groups/dropped_frac"] == 1
        assert line["rollout/missing_groups"] == 3
        assert "learner/loss" not in line
    assert engines.updates == engines.synced == []  # nothing changed, so nothing is sent


class Broken(Engines):
    """The second update is of NaN, and skipped."""

    def _step(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        super()._step(groups)
        lost = len(self.updates) == 2
        return {"learner/loss": math.nan if lost else 0.0, "learner/skipped_updates": float(lost)}


def test_a_figure_that_is_not_finite_ends_the_run_at_its_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engines = Broken({f"d{count}-{index}" for count in (1, 2) for index in range(6)})
    with pytest.raises(NotFiniteError, match=r"^learner/loss is nan \(DeepSpeed skipped 1 of the step's updates\)$"):
        run_steps(tmp_path, engines)
    assert engines.synced == [1]  # a broken policy is not handed on
    healthy, broken = read_metrics(tmp_path / "run")
    assert (healthy["tracking/non_finite"], broken["tracking/non_finite"]) == (0, 1)
    assert broken["learner/loss"] is None and broken["step"] == 2
    assert "alarm not_finite at step 2" in caplog.text and "alarm skipped_updates at step 2" in caplog.text
    begun = find_alarms([healthy, broken], AlarmsConfig())
    assert {alarm.name: alarm.metric for alarm in begun} == {
        "skipped_updates": "learner/skipped_updates",
        "not_finite": "learner/loss",
    }


def test_refills_come_from_the_stage_never_twice_and_the_same_in_every_run(tmp_path: Path) -> None:
    useful = {"d1-1", "d1-4", "d2-0", "d2-5"}
    first, second = Engines(useful), Engines(useful)
    lines = run_steps(tmp_path / "a", first, "rollout.max_refills=1")
    run_steps(tmp_path / "b", second, "rollout.max_refills=1")
    assert (first.asked, first.updates) == (second.asked, second.updates)
    # Six pairs a stage: three drawn at first, of which at most two are useful.
    assert [len(round_) for round_ in first.asked[:2]] == [3, 3 - len(useful & set(first.asked[0]))]
    assert all(pair_id.startswith("d1") for round_ in first.asked[:2] for pair_id in round_)
    assert len(set(first.asked[0] + first.asked[1])) == len(first.asked[0] + first.asked[1])
    for line, learned in zip(lines, first.updates, strict=True):
        assert set(learned) <= useful
        assert line["rollout/missing_groups"] == 3 - len(learned)
        assert line["rollout/refilled_groups"] > 0


def test_refills_do_not_move_what_the_curriculum_draws(tmp_path: Path) -> None:
    with_refills, without = Engines(set()), Engines(set())
    run_steps(tmp_path / "a", with_refills, "rollout.max_refills=1")
    run_steps(tmp_path / "b", without)
    assert with_refills.asked[::2] == without.asked


@pytest.mark.parametrize("max_refills", [0, 5])
def test_a_full_step_needs_no_refill(tmp_path: Path, max_refills: int) -> None:
    engines = Engines({f"d{count}-{index}" for count in (1, 2) for index in range(6)})
    lines = run_steps(tmp_path, engines, f"rollout.max_refills={max_refills}")
    assert [len(round_) for round_ in engines.asked] == [3, 3, 3]
    assert engines.synced == [1, 2, 3]
    assert engines.checked == [1]  # sampler against learner, after the first sync alone
    assert {line["rollout/missing_groups"] for line in lines} == {0.0}


def test_the_rollouts_of_the_newest_steps_are_on_record(tmp_path: Path) -> None:
    run_steps(tmp_path / "without", Engines(set()), "rollout.record_last=0")
    assert not (tmp_path / "without/run/rollouts").exists()
    engines = Engines({"d1-1"})
    run_steps(tmp_path, engines, "rollout.record_last=2", "rollout.max_refills=1")
    folder = tmp_path / "run/rollouts"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2.jsonl.gz", "step-3.jsonl.gz"]
    recording = read_recording(folder, 3)
    assert (recording.step, recording.stage, recording.prompt) == (3, "mixed", "Find it.")
    # Refilled pairs are in it, and groups without signal.
    asked = [pair_id for round_ in engines.asked[-2:] for pair_id in round_]
    assert [group.sampled.example.pair_id for group in recording.groups] == asked


def test_the_first_step_alone_compares_all_its_pictures_refills_included(tmp_path: Path) -> None:
    engines = Engines(useful={"d1-0"})
    run_steps(tmp_path, engines, "rollout.max_refills=1", 'data.looks=["mirror"]')
    (compared,) = engines.compared
    assert [example.pair_id for example in compared] == engines.asked[0] + engines.asked[1]
    assert {example.look.mirror for example in compared} == {True, False}


def test_different_pictures_end_a_run_before_it_learns_from_them(tmp_path: Path) -> None:
    engines = Engines(useful={f"d1-{index}" for index in range(6)})
    engines.learned = replace(PICTURES, shape=(8, 6))
    with pytest.raises(PolicyError, match=r"pair d1-\d: sampler and learner see different pictures .* 16x6 .* 8x6 "):
        run_steps(tmp_path, engines)
    assert engines.updates == [] and engines.synced == []
