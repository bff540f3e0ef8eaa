"""The stream of pairs of a run: what is drawn, what is learnt from the rewards, and when a stage ends."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dig_rl.config import Config
from dig_rl.curriculum.draws import REPLAY, Passes, WeightedDraws
from dig_rl.curriculum.stages import Promotion, Stage, check_sequence, load_stages
from dig_rl.errors import CheckpointError, ConfigError
from dig_rl.types import Example, RolloutGroup

_STATE_VERSION = 3

_TOLERANCE = 1e-9
"""A mean of equal floats may fall this short of them."""


def open_curriculum(config: Config, examples: Sequence[Example], root: Path) -> Curriculum:
    """The curriculum of a run, at its start.

    Args:
        config: names the stage file.
        examples: training pairs.
        root: folder that the stage file's name is relative to.

    Raises:
        ConfigError: the stage file is wrong, or does not fit the pairs or their looks.
    """
    stages = load_stages(root / config.curriculum)
    _refuse_swapped_kinds(stages, config)
    return Curriculum(
        stages,
        examples,
        seed=config.seed,
        prompts_per_step=config.rollout.prompts_per_step,
        reward_terms=config.reward.terms,
        source=config.curriculum,
    )


class Curriculum:
    """Draws the pairs of each step: a function of seed, stages, pairs and, where a stage asks for it, rewards seen.

    Every `next_examples` is followed by `observe` of its groups; a checkpoint is taken between two such steps.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        examples: Sequence[Example],
        *,
        seed: int,
        prompts_per_step: int,
        reward_terms: Collection[str] | None = None,
        source: str = "curriculum",
    ) -> None:
        """Sort the pairs into stages.

        Args:
            stages: in the order they are trained.
            examples: training pairs; one may belong to several stages.
            seed: of every draw.
            prompts_per_step: P, pairs of one step.
            reward_terms: names that a promotion rule may use; None leaves them unchecked.
            source: where the stages come from, for messages.

        Raises:
            ConfigError: no pair fits a stage, or lengths and rules of the stages do not go together.
        """
        check_sequence(stages, source)
        self._stages = tuple(stages)
        self._seed, self._prompts_per_step = seed, prompts_per_step
        self._spreads: dict[str, float] = {}
        self._pairs = [_admitted(stage, examples, source) for stage in stages]
        self._own = [self._own_draws(index) for index in range(len(stages))]
        self._replays = [self._replay_draws(index) if stage.replay else None for index, stage in enumerate(stages)]
        self._stage_index = 0
        self._num_steps = [0] * len(stages)
        self._levels: list[float] = []  # the promotion metric in the last steps of the current stage
        self._drawn_index = 0  # stage of the last draw
        self._num_replayed = 0  # of its pairs, those that came from earlier stages
        self._replayed: frozenset[str] = frozenset()  # ids of these that the stage did not draw itself
        self._check_rules(reward_terms, source)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order they are trained."""
        return self._stages

    @property
    def stage(self) -> Stage:
        """Stage of the next draw; the last one when the run is finished."""
        return self._stages[self.stage_index]

    @property
    def stage_index(self) -> int:
        """Index of `stage`."""
        return min(self._stage_index, len(self._stages) - 1)

    @property
    def stage_done(self) -> float:
        """Share of the stage's steps that are behind, below 1; of its longest length if a promotion rule may end it."""
        index = self.stage_index
        return self._num_steps[index] / self._longest(index, sum(self._num_steps[:index]))

    @property
    def finished(self) -> bool:
        """Whether every stage has ended."""
        return self._stage_index == len(self._stages)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; at most so many while a promotion rule may still shorten it (`is_open`)."""
        return self._total(shortest=False)

    @property
    def is_open(self) -> bool:
        """Whether a promotion rule may still end the run before `total_steps`."""
        return self._total(shortest=True) < self.total_steps

    @property
    def pairs_by_stage(self) -> list[list[Example]]:
        """The pairs that each stage admits."""
        return [list(pairs) for pairs in self._pairs]

    @property
    def num_replayed(self) -> int:
        """Pairs of the last draw that came from earlier stages: so many at its end."""
        return self._num_replayed

    def next_examples(self) -> list[Example]:
        """Draw the P pairs of the next step: the stage's own, then those replayed; none twice if there are enough.

        Raises:
            RuntimeError: the curriculum is finished.
        """
        if self.finished:
            raise RuntimeError(f"the curriculum is finished after {self.total_steps} steps; nothing is left to draw")
        index, stage, done = self._stage_index, self.stage, self._num_steps[self._stage_index]
        before, after = (stage.num_replayed(steps, self._prompts_per_step) for steps in (done, done + 1))
        own = self._own[index].draw(self._prompts_per_step - (after - before))
        own_ids = frozenset(example.pair_id for example in own)
        stream = self._replays[index]
        replayed = stream.draw(after - before, own_ids) if stream is not None else []
        self._drawn_index, self._num_replayed = index, len(replayed)
        self._replayed = frozenset(example.pair_id for example in replayed) - own_ids
        self._num_steps[index] += 1
        if self._num_steps[index] == self._longest(index, sum(self._num_steps[:index])):
            self._end_stage()
        return own + replayed

    def observe(self, groups: Sequence[RolloutGroup]) -> str | None:
        """Take note of how the groups of the step drawn last were rewarded, dropped groups included.

        Returns:
            A sentence if the promotion rule of the stage has just ended it, else None.
        """
        self._note_spreads(groups)
        rule = self.stage.promotion
        own = [group for group in groups if group.scored and group.sampled.example.pair_id not in self._replayed]
        if self.finished or rule is None or not own or own[0].stage != self.stage.name:
            return None
        value = np.mean([_mean_of(group, rule.metric) for group in own])
        self._levels = [*self._levels, float(value)][-rule.window :]
        num_steps, level = self._num_steps[self._stage_index], float(np.mean(self._levels))
        if num_steps < rule.min_steps or len(self._levels) < rule.window or level < rule.level - _TOLERANCE:
            return None
        name = self.stage.name
        self._end_stage()
        return f"stage {name} ends with its step {num_steps}: {rule.metric} {level:.3f} over the last {rule.window}"

    def figures(self) -> dict[str, float]:
        """What `dig_rl.metrics` records of the step drawn last, names as there."""
        share = self._num_replayed / self._prompts_per_step
        return {"curriculum/stage_index": self._drawn_index, "curriculum/replay_frac": share}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint between two steps needs, as JSON values."""
        return {
            "version": _STATE_VERSION,
            "fingerprint": dict(self._fingerprint),
            "stage_index": self._stage_index,
            "num_steps": list(self._num_steps),
            "levels": list(self._levels),
            "spreads": dict(self._spreads),
            "own": [draws.state_dict() for draws in self._own],
            "replays": [draws.state_dict() if draws is not None else None for draws in self._replays],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: stages, pairs, seed or pairs per step are not those of the checkpoint, or it was written
                by an earlier version.
        """
        if state.get("version") != _STATE_VERSION:
            raise CheckpointError(
                f"the checkpoint's curriculum state has version {state.get('version', 1)}, expected {_STATE_VERSION}: "
                "another version of dig-rl wrote it, and draws pairs in another way; finish the run with that version, "
                "or give RUN= a new name"
            )
        saved, current = state["fingerprint"], self._fingerprint
        differing = [name for name in current if saved[name] != current[name]]
        if differing:
            raise CheckpointError(
                f"{', '.join(differing)} differ from those of the checkpoint, so the run cannot draw the pairs it "
                "would have drawn; restore them, or give RUN= a new name"
            )
        self._stage_index, self._num_steps = state["stage_index"], list(state["num_steps"])
        self._levels = list(state["levels"])
        self._spreads.clear()  # in place: weighted draws look at this very dictionary
        self._spreads.update(state["spreads"])
        self._num_replayed, self._replayed = 0, frozenset()
        streams, states = [*self._own, *self._replays], [*state["own"], *state["replays"]]
        for draws, saved_draws in zip(streams, states, strict=True):
            if draws is not None:
                draws.load_state_dict(saved_draws)

    def _own_draws(self, index: int) -> Passes | WeightedDraws:
        adaptive = self._stages[index].adaptive
        if adaptive is None:
            return Passes(self._pairs[index], (self._seed, index))
        return WeightedDraws(self._pairs[index], (self._seed, index), adaptive.floor, self._spreads)

    def _replay_draws(self, index: int) -> Passes:
        earlier = {example.pair_id: example for pairs in self._pairs[:index] for example in pairs}
        return Passes(list(earlier.values()), (self._seed, index), REPLAY)

    def _end_stage(self) -> None:
        self._stage_index += 1
        self._levels = []

    def _note_spreads(self, groups: Sequence[RolloutGroup]) -> None:
        if all(stage.adaptive is None for stage in self._stages):
            return
        for group in groups:
            if len(group.scored) > 1:  # of fewer nothing is known, so what was known stays
                self._spreads[group.sampled.example.pair_id] = float(group.rewards.std())

    def _longest(self, index: int, start: int) -> int:
        """Steps of a stage that begins after `start` steps, if its promotion rule never holds."""
        stage = self._stages[index]
        if stage.until_step is not None:
            return stage.until_step - start
        num_pairs = (stage.epochs or 0) * len(self._pairs[index])
        return stage.steps or stage.steps_for(num_pairs, self._prompts_per_step)

    def _total(self, *, shortest: bool) -> int:
        end = 0
        for index, stage in enumerate(self._stages):
            done = self._num_steps[index]
            length = done if index < self._stage_index else self._longest(index, end)
            if shortest and stage.promotion is not None and index >= self._stage_index:
                length = min(length, max(stage.promotion.earliest_step, done + 1))
            end += length
        return end

    def _check_rules(self, reward_terms: Collection[str] | None, source: str) -> None:
        latest_start = 0
        for index, stage in enumerate(self._stages):
            where = f'{source}: stage "{stage.name}"'
            longest = self._longest(index, latest_start)
            if longest < 1:
                raise ConfigError(
                    f"{where} ends at step {stage.until_step} of the run, but may begin as late as after step "
                    f"{latest_start}; raise until_step or shorten the stages before"
                )
            if stage.promotion is not None:
                _check_promotion(stage.promotion, longest, reward_terms, where)
            latest_start += longest

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        labels = [[_labels(example) for example in pairs] for pairs in self._pairs]
        return {
            "stages": _digest([stage.model_dump(mode="json") for stage in self._stages]),
            "training pairs": _digest(labels),
            "seed": self._seed,
            "pairs per step": self._prompts_per_step,
        }


def _refuse_swapped_kinds(stages: Sequence[Stage], config: Config) -> None:
    """With its images swapped, what was added is removed: a stage cannot have the one without the other."""
    for stage in stages:
        if "swap" in config.data.looks and len({"add", "remove"} & set(stage.kinds or ())) == 1:
            raise ConfigError(
                f'{config.curriculum}: stage "{stage.name}" wants only kinds {", ".join(stage.kinds or ())}, but '
                "data.looks has swap, which turns add into remove and back; name both kinds, or take swap out"
            )


def _labels(example: Example) -> list[Any]:
    """What a pair is known by, its folder left out, so that data can be moved."""
    return [
        example.pair_id,
        example.image_size_px,
        example.target_boxes_px,
        example.kinds,
        example.visible_fractions,
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _mean_of(group: RolloutGroup, metric: str) -> float:
    if metric == "reward":
        return float(group.rewards.mean())
    return float(np.mean([score.terms[metric] for score in group.scored]))


def _check_promotion(rule: Promotion, longest: int, reward_terms: Collection[str] | None, where: str) -> None:
    if rule.earliest_step > longest:
        raise ConfigError(
            f"{where} ends after {longest} steps at the latest, before its promotion rule can hold after "
            f"{rule.earliest_step} (window {rule.window}, min_steps {rule.min_steps}); change one of these"
        )
    if reward_terms is not None and rule.metric != "reward" and rule.metric not in reward_terms:
        raise ConfigError(
            f"{where}, promotion.metric: expected reward or a term of the config's reward ({', '.join(reward_terms)}), "
            f"found {rule.metric}"
        )


def _admitted(stage: Stage, examples: Sequence[Example], source: str) -> list[Example]:
    admitted = [example for example in examples if stage.admits(example)]
    if not admitted:
        offered = sorted(Counter(example.num_differences for example in examples).items())
        described = ", ".join(f"{count} pairs with {number}" for number, count in offered) or "no pairs"
        filters = stage.filters()
        wanted = ", ".join(words for words, _ in filters)
        alone = "".join(f"; {sum(map(fits, examples))} of all have {words}" for words, fits in filters[1:])
        raise ConfigError(
            f'{source}: stage "{stage.name}" wants pairs with {wanted}, but the training data has {described}{alone}; '
            "change the stage's filter or make data that fits"
        )
    return admitted
