"""A staged run stopped in each of its stages, at each moment of a step, draws the pairs of one left in peace.

The engines are scripted; tests/test_kill_schedule.py does the same with the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dig_rl import train as loop
from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import Config, load_config
from dig_rl.curriculum import open_curriculum
from dig_rl.errors import CheckpointError
from dig_rl.metrics import read_metrics
from dig_rl.run_folder import RunFolder
from dig_rl.summary import read_summary
from dig_rl.types import Completion, Example, RolloutGroup, SampledGroup, Score

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261121
EVERY = 4
"""Steps from one checkpoint to the next."""
FIGURES: dict[str, float] = {"f1": 0.5, "mean_iou": 0.5, "count_accuracy": 0.5, "parse_rate": 1.0, "pairs": 1}


class Engines:
    """What a run talks to; rewards are a function of pair and step, and Ctrl-C comes in one phase of one step."""

    def __init__(self, stop: tuple[int, str] | None) -> None:
        self._stop, self._step = stop, 0
        self.draws: list[tuple[int, list[str]]] = []
        self.rollouts = SimpleNamespace(
            collect=self._collect,
            reset_caches=lambda: None,
            check_token_budget=lambda examples: None,
            watch_inputs=lambda: None,
            policy_inputs=dict,
        )
        self.learner = SimpleNamespace(
            facts=lambda: ("none", {"device": "cpu"}),
            step=self._learn,
            policy_inputs=lambda examples, dtypes: [],
            save=self._save,
            load=lambda folder: None,
            export=lambda folder: None,
        )
        self.policy = SimpleNamespace(engine="none", frame="norm1000", prompt="")
        self.cluster = SimpleNamespace(ray_version="none")

    def _reach(self, phase: str) -> None:
        if self._stop == (self._step, phase):
            self._stop = None  # the checkpoint that follows is left alone
            raise KeyboardInterrupt

    def _collect(
        self, examples: Sequence[Example], before: Sequence[RolloutGroup], *, step: int, stage: str
    ) -> tuple[list[RolloutGroup], dict]:
        self._step = step + 1
        self.draws.append((self._step, [example.pair_id for example in examples]))
        self._reach("collect")
        groups = []
        for example in examples:
            rewards = np.random.default_rng([step, *example.pair_id.encode()]).random(4)
            scores = tuple(Score(value, {"f1": value}, "ok") for value in rewards.tolist())
            completions = tuple(Completion((1, 2), (-1.0, -1.0), "", "stop", seed) for seed in range(4))
            groups.append(RolloutGroup(SampledGroup(example, (7,), completions, 0, (96, 64), 0), scores, stage))
        return groups, {"timing/generate_s": 1.0, "timing/score_s": 1.0}

    def _learn(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        self._reach("learn")
        return {"learner/loss": 0.0}

    def _save(self, folder: Path) -> None:
        self._reach("save")
        (folder / "weights").write_text("none")

    def configure(self, config: Config) -> None:
        pass

    def sync_weights(self, policy_version: int) -> float:
        self._reach("sync")
        return 0.0

    def check_weights(self) -> None:
        pass

    def memory_gib(self) -> dict[str, float]:
        self._reach("log")
        return {}


def answer_greedily(_: Any, split: str, *__: Any) -> tuple[dict[str, float], dict[str, float], list[Any]]:
    return dict(FIGURES), {f"{split}/{name}": value for name, value in FIGURES.items()}, []


def train(
    folder: Path,
    curriculum: str,
    monkeypatch: pytest.MonkeyPatch,
    stop: tuple[int, str] | None,
    policy_files: dict[str, str] | None = None,
    *more: str,
) -> Engines:
    """Begin or continue the run; returns the engines it talked to."""
    settings = [f'curriculum="{curriculum}"', f"checkpoint.every_steps={EVERY}", *more]
    config = load_config([ROOT / "launch/configs/tiny.toml"], settings)
    box = (1.0, 1.0, 9.0, 9.0)
    examples = [
        Example(f"d{count}-{index}", "/a.png", "/b.png", (96, 64), (box,) * count, ("color",) * count, "train")
        for count in (1, 2, 3, 4)
        for index in range(7)
    ]
    source = open_curriculum(config, examples, ROOT)
    engines = Engines(stop)
    monkeypatch.setattr(loop, "read_inputs", lambda *_: loop.Inputs(examples, [], [], source, {}, policy_files or {}))
    monkeypatch.setattr(loop, "Cluster", lambda *_: nullcontext())
    monkeypatch.setattr(loop, "launch_fleet", lambda *_: engines)
    monkeypatch.setattr(loop.Training, "_answer_greedily", answer_greedily)
    with RunFolder.open(folder, "run", config) as run:
        if stop is None:
            loop.train(config, run, ROOT)
        else:
            with pytest.raises(KeyboardInterrupt):
                loop.train(config, run, ROOT)
    return engines


def measured(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "run")
    return [{key: value for key, value in line.items() if not key.startswith("timing/")} for line in lines]


def moments(lengths: Sequence[int], phases: Sequence[str]) -> list[tuple[int, str]]:
    """A random step of each stage with the phase to stop in; only some steps save."""
    chance, first, stops = random.Random(SEED), 0, []
    for length, phase in zip(lengths, phases, strict=True):
        steps = [step for step in range(first + 1, first + length + 1) if phase != "save" or step % EVERY == 0]
        stops.append((chance.choice(steps), phase))
        first += length
    return stops


@pytest.mark.parametrize(
    ("curriculum", "phases"),
    [
        ("curricula/staged.toml", ("collect", "learn", "save")),
        ("curricula/adaptive.toml", ("log", "collect", "sync")),
    ],
)
def test_a_run_stopped_in_each_stage_draws_and_measures_as_if_it_had_not_been(
    curriculum: str, phases: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaceful = train(tmp_path / "peaceful", curriculum, monkeypatch, None)
    expected = dict(peaceful.draws)
    assert len(expected) == len(peaceful.draws) == 75
    stages = (read_summary(tmp_path / "peaceful/run") or {})["stages"]
    assert [stage["name"] for stage in stages] == ["single", "dual", "mixed"]

    drawn: list[tuple[int, list[str]]] = []
    for stop in moments([stage["steps"] for stage in stages], phases):
        drawn += train(tmp_path / "stopped", curriculum, monkeypatch, stop).draws
        assert drawn[-1][0] == stop[0]
    drawn += train(tmp_path / "stopped", curriculum, monkeypatch, None).draws
    assert {step for step, _ in drawn} == set(range(1, 76))
    assert len(drawn) > 75  # some steps were begun twice
    for step, pairs in drawn:
        assert pairs == expected[step], step
    assert measured(tmp_path / "stopped") == measured(tmp_path / "peaceful")


def test_a_run_continues_from_the_policy_that_it_began_with_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curriculum = "curricula/staged.toml"
    train(tmp_path, curriculum, monkeypatch, (EVERY + 1, "collect"), {"model.safetensors": "one"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 one -> another"):
        train(tmp_path, curriculum, monkeypatch, (EVERY + 2, "collect"), {"model.safetensors": "another"})
    again = train(tmp_path, curriculum, monkeypatch, (EVERY + 2, "collect"), {"model.safetensors": "one"})
    assert again.draws[0][0] == EVERY + 1


def test_the_files_of_a_hubs_policy_are_hashed_once_a_start_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curriculum, hub = "curricula/staged.toml", ("policy.path=nobody/here", "policy.hub=true")
    hashed: list[str] = []

    def start(step: int, digest: str) -> Engines:
        monkeypatch.setattr(loop, "hash_policy_files", lambda _: hashed.append(digest) or {"model.safetensors": digest})
        return train(tmp_path, curriculum, monkeypatch, (step, "collect"), None, *hub)

    start(2 * EVERY + 1, "one")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 one -> another"):
        start(2 * EVERY + 2, "another")
    assert start(2 * EVERY + 2, "one").draws[0][0] == 2 * EVERY + 1
    assert hashed == ["one", "another", "one"]
