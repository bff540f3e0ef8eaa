"""Validation while training goes on, and the best checkpoint, on a run whose engines are scripted.

The run is interrupted at each of its calls to the engines in turn, by Ctrl-C and by a sudden end.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dig_rl import train as training
from dig_rl.config import Config, load_config
from dig_rl.curriculum import open_curriculum
from dig_rl.metrics import read_metrics
from dig_rl.reporting.report import before_after_table, write_report
from dig_rl.run_folder import RunFolder
from dig_rl.summary import read_summary
from dig_rl.types import Completion, Example, SampledGroup
from tests.test_train_step import ROOT, Engines
from tests.test_training import what_must_repeat

NUM_STEPS = 7
RIGHT_ANSWERS = {0: 2, 2: 1, 4: 3, 6: 2, 7: 3}
"""Validation pairs of four that the policy answers rightly after so many updates."""
BOX_PX = (0.0, 0.0, 48.0, 32.0)
RIGHT, WRONG = "[[0, 0, 500, 500]]", "[[500, 500, 1000, 1000]]"


def pairs(split: str, count: int) -> list[Example]:
    return [
        Example(f"{split}-{index}", "/a.png", "/b.png", (96, 64), (BOX_PX,), ("color",), split)  # type: ignore[arg-type]
        for index in range(count)
    ]


class Killed(BaseException):
    """Stands for an end that leaves no time for anything."""


class ScriptedEngines(Engines):
    """The policy is a number, that of its updates; the call number `end_at`, counted from 1, ends in `end`."""

    def __init__(self, end: type[BaseException] = Killed, end_at: int = 0) -> None:
        super().__init__({pair.pair_id for pair in pairs("train", 8)})
        self.num_calls = 0
        self.answered: list[int] = []
        self._end, self._end_at = end, end_at
        self._learner = self._sampler = 0
        self.policy = SimpleNamespace(engine="none", frame="norm1000")
        sampling, step = self.rollouts, self.learner.step
        self.rollouts = SimpleNamespace(
            collect=self._counted(sampling.collect),
            reset_caches=lambda: None,
            watch_inputs=sampling.watch_inputs,
            policy_inputs=sampling.policy_inputs,
            answer=self._counted(self._answer),
            check_token_budget=lambda examples: None,
        )
        self.learner.step = self._counted(lambda groups: self._update(step(groups)))
        self.learner.save, self.learner.load = self._counted(self._save), self._load
        self.learner.export = self._counted(lambda folder: folder.mkdir(exist_ok=True))

    def _counted(self, method: Any) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self._end_at:
                raise self._end
            return method(*args, **named)

        return counted

    def _update(self, statistics: dict[str, float]) -> dict[str, float]:
        self._learner += 1
        return statistics | {"learner/loss": float(self._learner)}

    def _save(self, folder: Path) -> None:
        (folder / "updates.txt").write_text(str(self._learner))

    def _load(self, folder: Path) -> None:
        self._learner = int((folder / "updates.txt").read_text())

    def sync_weights(self, policy_version: int) -> float:
        assert policy_version == self._learner
        self._sampler = self._learner
        return super().sync_weights(policy_version)

    def _answer(self, examples: Sequence[Example], *, num_samples: int = 1, temperature: float = 0.0) -> list[Any]:
        assert (num_samples, temperature) == (1, 0.0)
        self.answered.append(self._sampler)
        texts = [RIGHT if index < RIGHT_ANSWERS[self._sampler] else WRONG for index in range(len(examples))]
        return [
            SampledGroup(example, (7,), (Completion((1,), (-1.0,), text, "stop", 0),), 0, (96, 64), 0)
            for example, text in zip(examples, texts, strict=True)
        ]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start, or continue, the run of a folder on the given engines."""
    (tmp_path / "stages.toml").write_text(f'[[stages]]\nname = "all"\ndifferences = [1, 1]\nsteps = {NUM_STEPS}\n')

    def read_inputs(config: Config, root: Path) -> training.Inputs:
        curriculum = open_curriculum(config, pairs("train", 8), root)
        validation = pairs("validation", 4) if config.data.validation_split else []
        return training.Inputs(pairs("train", 8), [], validation, curriculum, {})

    monkeypatch.setattr(training, "read_inputs", read_inputs)
    monkeypatch.setattr(training, "Cluster", lambda *args: nullcontext())

    def started(folder: str, engines: ScriptedEngines, *overrides: str) -> Path:
        settings = [f'curriculum="{tmp_path / "stages.toml"}"', "evaluation.every_steps=2", "checkpoint.every_steps=3"]
        config: Config = load_config(
            [], [*settings, "checkpoint.keep_last=1", "rollout.prompts_per_step=2", *overrides]
        )
        monkeypatch.setattr(training, "launch_fleet", lambda *args: engines)
        with RunFolder.open(tmp_path, folder, config) as run:
            training.train(config, run, ROOT)
        return tmp_path / folder

    return started


def validation_f1(run: Path) -> dict[int, float]:
    return {line["step"]: line["validation/f1"] for line in read_metrics(run) if "validation/f1" in line}


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_validation_is_logged_every_so_many_steps_and_at_both_ends(
    start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = ScriptedEngines()
    run = start("run", engines)
    told = capsys.readouterr().out
    assert "validation after step 2: F1 0.250, mean IoU 0.250 (4 pairs); best F1 so far 0.500 after step 0" in told
    assert engines.answered == [0, 2, 4, 6, 7]
    assert validation_f1(run) == {0: 0.5, 2: 0.25, 4: 0.75, 6: 0.5, 7: 0.75}
    lines = [line for line in read_metrics(run) if "validation/f1" in line]
    assert all(line["stage"] is None and line["validation/pairs"] == 4 for line in lines)
    answers = [json.loads(line) for line in (run / "validation/predictions_step-4.jsonl").read_text().splitlines()]
    assert [answer["f1"] for answer in answers] == [1, 1, 1, 0]


def test_the_first_of_the_best_steps_is_kept_and_named(start: Any) -> None:
    run = start("run", ScriptedEngines())
    assert checkpoints(run) == ["best.json", "step-4", "step-7"]  # step 7 is as good, and the last
    best = {"step": 4, "score": 0.75}
    assert json.loads((run / "checkpoints/best.json").read_text()) == {"folder": "step-4", **best}
    for step in (4, 7):
        state = json.loads((run / f"checkpoints/step-{step}/state.json").read_text())
        assert (state["score"], state["best"]) == (0.75, best)


def test_without_keep_best_or_without_validation_only_the_last_are_kept(start: Any) -> None:
    run = start("last", ScriptedEngines(), "checkpoint.keep_best=false")
    assert checkpoints(run) == ["step-7"] and len(validation_f1(run)) == 5
    settings = ("evaluation={every_steps=1000}", "checkpoint.keep_best=true")
    assert list(validation_f1(start("seldom", ScriptedEngines(), *settings))) == [0, 7]
    unvalidated = ScriptedEngines()
    run = start("unvalidated", unvalidated, "data.validation_split=none")
    assert (checkpoints(run), unvalidated.answered) == (["step-7"], [])


def test_no_checkpoint_is_chosen_by_the_pairs_that_the_run_is_measured_on(start: Any) -> None:
    run = start("run", ScriptedEngines(), "data.validation_split=test")
    assert checkpoints(run) == ["step-7"]  # step 4 would be the best
    assert list(validation_f1(run)) == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("end", [KeyboardInterrupt, Killed])
def test_an_end_at_any_moment_neither_loses_nor_repeats_an_evaluation(start: Any, end: type[BaseException]) -> None:
    whole = ScriptedEngines()
    expected = start("whole", whole)
    assert whole.num_calls > 20
    for call in range(1, whole.num_calls + 1):
        name = f"ended-{call}"
        with pytest.raises(end):
            start(name, ScriptedEngines(end, call))
        run = start(name, ScriptedEngines())
        assert what_must_repeat(run) == what_must_repeat(expected), call
        assert checkpoints(run) == checkpoints(expected), call
        pointer, its_file = ((folder / "checkpoints/best.json").read_text() for folder in (run, expected))
        assert pointer == its_file, call


def test_a_run_that_falls_back_forgets_the_best_step_that_it_cuts(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    whole = ScriptedEngines()
    expected = start("whole", whole)
    with pytest.raises(Killed):  # after the save of step 4, the best
        start("run", ScriptedEngines(Killed, 16), "checkpoint.keep_last=2")
    run = expected.with_name("run")
    assert checkpoints(run) == ["best.json", "step-3", "step-4"]
    damaged = run / "checkpoints/step-4/learner/updates.txt"
    damaged.write_text("9")
    engines = ScriptedEngines()
    with pytest.raises(Killed):
        start("run", ScriptedEngines(Killed, 1), "checkpoint.keep_last=2")
    assert "checkpoint of step 4 is damaged" in caplog.text
    # Step 2, the best before, went when step 4 took its place; step 3 was not measured.
    assert "best.json" not in checkpoints(run)
    assert start("run", engines, "checkpoint.keep_last=2") == run
    assert engines.answered[0] == 4
    assert what_must_repeat(run) == what_must_repeat(expected)
    assert json.loads((run / "checkpoints/best.json").read_text())["step"] == 4


def test_a_run_without_held_out_pairs_is_whole(start: Any) -> None:
    engines = ScriptedEngines()
    engines.learner.facts = lambda: ("none", {"device": "cpu", "architecture": "Scripted", "parameters": 1})
    run = start("run", engines)
    summary = read_summary(run)
    assert summary is not None
    assert (summary["status"], summary["heldout"]) == ("finished", {})
    sentence = before_after_table(summary)
    assert "the run had no held-out pairs (data.heldout_split)" in sentence
    assert sentence in html.unescape(write_report(run).read_text())
