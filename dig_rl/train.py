"""The training run on one page: draw pairs, sample and score groups, update, sync, record.

Everything heavy lives in actors; this file holds the order of things and what has to survive an interruption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import Fleet, launch_fleet, num_actors
from dig_rl.alarms import AlarmWatch
from dig_rl.algo.advantages import drop_groups_without_signal
from dig_rl.algo.batch import training_group
from dig_rl.answers import summarise_answers
from dig_rl.board import evaluation_summaries, first_summaries, stage_summaries
from dig_rl.checkpoint import CheckpointStore
from dig_rl.config import Config
from dig_rl.controls import same_answer_frac
from dig_rl.curriculum import Stage, stage_config
from dig_rl.deepspeed_table import with_schedule_length
from dig_rl.errors import AlarmError, DataError, NotFiniteError, PluginError
from dig_rl.evaluate import evaluate_greedily, figures_by_count
from dig_rl.finite import describe_end, not_finite
from dig_rl.first_step import FirstStep
from dig_rl.inputs import Inputs, read_inputs
from dig_rl.looks import with_looks
from dig_rl.metrics import read_metrics, summarise_dropped, summarise_groups
from dig_rl.policy_files import STATE_KEY, check_policy_files, hash_policy_files, is_from_hub
from dig_rl.progress import TrainProgress
from dig_rl.recording import cut_recordings, write_recording
from dig_rl.refill import Collected, collect_with_refills, spare_examples
from dig_rl.run_folder import RunFolder
from dig_rl.splits import may_choose
from dig_rl.summary import Summary
from dig_rl.tracking import Tracker
from dig_rl.types import Example, RolloutGroup

_log = logging.getLogger(__name__)


def train(config: Config, run: RunFolder, root: Path, *, allow_changed_plugins: bool = False) -> dict[str, Any]:
    """Run, or continue, one training run to its end.

    Args:
        config: the run.
        run: its open folder.
        root: folder that plugins and curricula are found in.
        allow_changed_plugins: continue although reward plugins are not those that the run was trained with.

    Returns:
        The contents of `summary.json`.

    Raises:
        DigRlError: anything a user can mend; the summary then says `failed`.
        KeyboardInterrupt: after Ctrl-C; the summary then says `interrupted`.
    """
    started = time.monotonic()
    inputs = read_inputs(config, root)
    curriculum = inputs.curriculum
    config = with_schedule_length(config, curriculum.total_steps, is_bound=curriculum.is_open)
    check_policy_files(run.checkpoints, inputs.policy_files, config)
    run.record_plugins(inputs.plugin_hashes, allow_changed=allow_changed_plugins)
    _log.info("starting Ray, vLLM and DeepSpeed; what they print goes to %s", run.logs)
    with Cluster(config.cluster, run.logs, num_actors(config)) as cluster:
        fleet = launch_fleet(cluster, config, root)
        if is_from_hub(config):  # its files are here only now
            inputs = replace(inputs, policy_files=hash_policy_files(config))
            check_policy_files(run.checkpoints, inputs.policy_files, config)
        fleet.rollouts.check_token_budget([*inputs.examples, *inputs.heldout, *inputs.validation])
        _log.info("engines are ready after %.0f s", time.monotonic() - started)
        training = Training(config, run, inputs, fleet, started)
        try:
            try:
                training.run_to_end()
            except (KeyboardInterrupt, AlarmError, PluginError, DataError):
                training.save()  # the engines are well: nothing that was learned need be lost
                raise
        except KeyboardInterrupt:
            training.summary.write("interrupted")
            raise
        except NotFiniteError as error:
            training.summary.write_failed()
            raise training.end_of(error) from None
        except BaseException:
            training.summary.write_failed()
            raise
        return training.summary.write("finished")


class Training:
    """A run between two steps, and the step."""

    def __init__(self, config: Config, run: RunFolder, inputs: Inputs, fleet: Fleet, started: float) -> None:
        self._config, self._run, self._inputs, self._fleet = config, run, inputs, fleet
        self._curriculum = inputs.curriculum
        checkpoint = config.checkpoint
        self._store = CheckpointStore(run.checkpoints, checkpoint.keep_last, keep_best=may_choose(config))
        self._step = 0
        self._curriculum_state = self._curriculum.state_dict()  # as of the last finished step
        self._is_mid_step = False  # learner, log and curriculum disagree then
        self._configured: Config | None = None  # the settings that the actors hold
        self._validation_f1: dict[int, float] = {}
        """By step, as far as the run's metrics go."""
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._alarms = AlarmWatch(config.alarms)
        self._first_step = FirstStep(fleet)
        learner_engine, card = fleet.learner.facts()
        self.summary = Summary(
            run.path,
            rollout_engine=fleet.policy.engine,
            learner_engine=learner_engine,
            ray=fleet.cluster.ray_version,
            device=card.pop("device"),
            model=card,
            started=started,
        )

    def run_to_end(self) -> None:
        """Everything from the newest checkpoint, or the start, to the exported policy."""
        restored_step = self._restore()
        self._first_step.same_weights()
        cut_recordings(self._run.rollouts, restored_step or 0)
        with (
            Tracker(self._run.path, restored_step=restored_step, head=first_summaries(self._config)) as tracker,
            TrainProgress(self._curriculum.total_steps, self._step) as progress,
        ):
            for line in read_metrics(self._run.path):
                self._alarms.observe(line)
                if "validation/f1" in line:
                    self._validation_f1[line["step"]] = line["validation/f1"]
            self.summary.write("running")
            if self._step == 0 and "before" not in self.summary.heldout:
                self._evaluate("before", tracker, progress)
            self._validate_if_due(tracker, progress)
            while not self._curriculum.finished:
                self._train_one_step(tracker, progress)
                self._validate_if_due(tracker, progress)
                if self._checkpoint_is_due():
                    self.save()
            self._evaluate("after", tracker, progress)
        self._fleet.learner.export(self._run.policy)

    def _train_one_step(self, tracker: Tracker, progress: TrainProgress) -> None:
        started = time.perf_counter()
        stage = self._curriculum.stage
        settings = stage_config(self._config, stage, self._curriculum.stage_done)
        if settings != self._configured:
            self._fleet.configure(settings)
            self._configured = settings
        examples = self._curriculum.next_examples()
        with self._first_step.same_pictures():
            collected = self._collect(examples, stage)
        groups, figures = collected.groups, collected.figures
        self._record(groups, settings)
        stage_end = self._curriculum.observe(groups)
        figures |= summarise_groups(groups) | summarise_dropped(collected.dropped, len(groups))
        figures |= summarise_answers(groups, thinking=self._config.policy.thinking)
        num_tokens = sum(len(completion.token_ids) for group in groups for completion in group.sampled.completions)
        figures["rollout/tokens_per_s"] = num_tokens / figures["timing/generate_s"]
        step = self._step + 1
        self._is_mid_step = True
        if collected.kept:  # otherwise the step counts, but there is nothing to learn from
            batch = [training_group(group, self._config) for group in collected.kept]
            figures["advantage/std"] = float(np.std([advantage for group in batch for advantage in group.advantages]))
            figures |= self._fleet.learner.step(batch)
            if not not_finite(figures):
                figures["timing/sync_s"] = self._fleet.sync_weights(step)
                self._first_step.same_weights_after_sync()
        else:  # as after a sync: what a step finds in the caches must not depend on where the run was continued
            self._fleet.rollouts.reset_caches()
        figures |= self._fleet.memory_gib()
        figures |= self._curriculum.figures() | {"timing/step_s": time.perf_counter() - started}
        tracker.log(step, figures, stage=stage.name, summaries=stage_summaries(stage.name, figures))
        self._step, self._curriculum_state, self._is_mid_step = step, self._curriculum.state_dict(), False
        reward = f"reward {figures['reward/total']:.3f}"
        progress.set_total(self._curriculum.total_steps, is_bound=self._curriculum.is_open)
        progress.update(step, stage=stage.name, figure=reward, seconds=figures["timing/step_s"])
        if stage_end is not None:
            progress.note(stage_end)
        busy = {phase: figures.get(f"timing/{phase}_s", 0.0) for phase in ("generate", "score", "learn", "sync")}
        self.summary.add_seconds(**busy)
        self._alarms.heed(step, figures)

    def end_of(self, error: NotFiniteError) -> NotFiniteError:
        """What a run that is not finite ends with: where, what is broken, what is left."""
        steps, best = self._store.steps(), self._store.best(up_to=self._step)
        return NotFiniteError(describe_end(error, self._step, self._fleet.learner.describe_weights(), steps, best))

    def _collect(self, examples: Sequence[Example], stage: Stage) -> Collected:
        config = self._config
        admitted = [example for example in self._inputs.examples if stage.admits(example)]
        return collect_with_refills(
            lambda drawn, before: self._fleet.rollouts.collect(
                with_looks(drawn, config.data.looks, seed=config.seed, step=self._step),
                before,
                step=self._step,
                stage=stage.name,
            ),
            partial(drop_groups_without_signal, learner=config.learner),
            examples,
            spare_examples(admitted, examples, seed=config.seed, step=self._step),
            config.rollout.max_refills,
        )

    def _record(self, groups: Sequence[RolloutGroup], config: Config) -> None:
        if keep_last := config.rollout.record_last:
            policy, folder = self._fleet.policy, self._run.rollouts
            write_recording(folder, self._step + 1, groups, policy.frame, policy.prompt, config, keep_last)

    def _evaluate(self, moment: Literal["before", "after"], tracker: Tracker, progress: TrainProgress) -> None:
        if not self._inputs.heldout:
            return
        started = time.perf_counter()
        path = self._run.heldout / f"predictions_{moment}.jsonl"
        figures, logged, summaries = self._answer_greedily("heldout", self._inputs.heldout, path)
        if any(example.num_differences for example in self._inputs.heldout):
            folder = self._run.heldout / "controls"
            logged["control/same_answer_frac"] = same_answer_frac(self._fleet.rollouts, self._inputs.heldout, folder)
        tracker.log(self._step, logged, summaries=summaries)
        self.summary.set_heldout(moment, figures)
        self.summary.add_seconds(evaluate=time.perf_counter() - started)
        self.summary.write("running")
        self._alarms.heed(self._step, logged)
        progress.note(f"held-out {moment}: {_in_short(figures)}")

    def _answer_greedily(
        self, split: str, examples: Sequence[Example], path: Path
    ) -> tuple[dict[str, float], dict[str, float], list[Any]]:
        """Figures, the same and more under the names they are logged by, and what TensorBoard shows beside them."""
        fleet, config = self._fleet, self._config
        figures, answers = evaluate_greedily(fleet.rollouts, fleet.policy, examples, config, path)
        logged = {f"{split}/{name}": value for name, value in figures.items()}
        by_count = figures_by_count(examples, answers, config)
        logged |= {f"{split}_by_count/{name}": value for name, value in by_count.items()}
        return figures, logged, evaluation_summaries(split, examples, answers, config)

    def _validate_if_due(self, tracker: Tracker, progress: TrainProgress) -> None:
        """Evaluate on the validation split, unless that is on record for this step, and save a new best step."""
        step, every = self._step, self._config.evaluation.every_steps
        if every is None or not self._inputs.validation or (step % every and not self._curriculum.finished):
            return
        if step not in self._validation_f1:
            self._validate(tracker, progress)
        best = self._store.best(up_to=step)
        if step and self._store.keep_best and (best is None or self._validation_f1[step] > best.score):
            self.save(again=True)

    def _validate(self, tracker: Tracker, progress: TrainProgress) -> None:
        started = time.perf_counter()
        path = self._run.validation / f"predictions_step-{self._step}.jsonl"
        figures, logged, summaries = self._answer_greedily("validation", self._inputs.validation, path)
        tracker.log(self._step, logged, summaries=summaries)
        self._validation_f1[self._step] = figures["f1"]
        self.summary.add_seconds(evaluate=time.perf_counter() - started)
        best = max(self._validation_f1, key=lambda step: (self._validation_f1[step], -step))
        progress.note(
            f"validation after step {self._step}: {_in_short(figures)}; "
            f"best F1 so far {self._validation_f1[best]:.3f} after step {best}"
        )

    def _restore(self) -> int | None:
        checkpoint = self._store.latest()
        if checkpoint is None:
            return None
        self._fleet.learner.load(checkpoint.path / "learner")
        self._curriculum.load_state_dict(checkpoint.state["curriculum"])
        self._curriculum_state = checkpoint.state["curriculum"]
        self._step = self._saved_step = checkpoint.step
        self._fleet.sync_weights(self._step)
        _log.info("continuing after step %d", self._step)
        return self._step

    def _checkpoint_is_due(self) -> bool:
        config = self._config.checkpoint
        is_time = time.monotonic() - self._saved_at > 60 * config.every_minutes
        return self._curriculum.finished or self._step % config.every_steps == 0 or is_time

    def save(self, *, again: bool = False) -> None:
        """Write a checkpoint of the last finished step, unless the next step has begun to count, or there is one.

        Args:
            again: replace the one that there is: the step's score was not known to it.
        """
        if self._is_mid_step or (self._step == self._saved_step and not again):
            return

        def write(folder: Path) -> None:
            (folder / "learner").mkdir()
            self._fleet.learner.save(folder / "learner")

        state = {"curriculum": self._curriculum_state, "plugins": self._inputs.plugin_hashes}
        state[STATE_KEY] = self._inputs.policy_files
        self._store.save(self._step, write, state, score=self._validation_f1.get(self._step))
        self._saved_step, self._saved_at = self._step, time.monotonic()
        self.summary.write("running")


def _in_short(figures: dict[str, float]) -> str:
    return f"F1 {figures['f1']:.3f}, mean IoU {figures['mean_iou']:.3f} ({figures['pairs']} pairs)"
