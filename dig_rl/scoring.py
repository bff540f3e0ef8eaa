"""Turn the completions of one pair into rewards: parse once, assign once, run the weighted terms.

A bad answer is data and earns 0. A bad plugin stops the run: nothing is ever scored 0 because something broke.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path

import numpy as np

from dig_rl.boxes import assign, px_to_unit
from dig_rl.config import RewardConfig
from dig_rl.errors import PluginError
from dig_rl.parsing import CoordinateFrame, ParsedAnswer, parse_answer
from dig_rl.plugins import RewardFunction, load_plugin
from dig_rl.types import Completion, RewardInput, SampledGroup, Score

_EXCERPT_CHARACTERS = 200


class Scorer:
    """Scores groups of completions under one reward config; holds no state between calls."""

    def __init__(
        self,
        reward_config: RewardConfig,
        *,
        root: Path,
        thinking: bool,
        frame: CoordinateFrame,
        prompt: str,
        watch: Callable[[str, RewardFunction], RewardFunction] | None = None,
    ) -> None:
        """Load and check every plugin.

        Args:
            reward_config: terms, weights, matching costs, limits of an answer.
            root: folder that plugin paths start from.
            thinking: the policy thinks before it answers.
            frame: coordinate convention of the policy's family.
            prompt: text that the policy was asked, shown to plugins.
            watch: given a term's name and function, returns what is called in its place.

        Raises:
            PluginError: a plugin cannot be loaded or its kwargs do not fit.
        """
        self._config = reward_config
        self._thinking = thinking
        self._frame = frame
        self._prompt = prompt
        self._functions = {name: load_plugin(term.use, term.kwargs, root) for name, term in reward_config.terms.items()}
        if watch is not None:
            self._functions = {name: watch(name, function) for name, function in self._functions.items()}

    def score(self, group: SampledGroup, *, step: int, stage: str) -> tuple[Score, ...]:
        """Score the completions of one pair.

        Every status but `ok` earns 0 on every term, and plugins are not asked. On a pair without changes, an empty list
        earns 1 on every term and boxes earn 0.

        Args:
            group: G completions of one pair.
            step: training step, shown to plugins.
            stage: curriculum stage, shown to plugins.

        Returns:
            G scores in the order of the completions.

        Raises:
            PluginError: a plugin raises, or returns anything but a number in [0, 1].
        """
        return tuple(map(self.for_group(group, step=step, stage=stage), group.completions))

    def for_group(self, group: SampledGroup, *, step: int, stage: str) -> Callable[[Completion], Score]:
        """`score` for one completion of `group` at a time: what is returned raises for that completion alone."""
        target_boxes_px = np.array(group.example.target_boxes_px, dtype=np.float64).reshape(-1, 4)
        target_unit = _read_only(px_to_unit(target_boxes_px, group.example.image_size_px))
        return lambda completion: self._score_one(group, completion, target_unit, step, stage)

    def _score_one(
        self,
        group: SampledGroup,
        completion: Completion,
        target_unit: np.ndarray,
        step: int,
        stage: str,
    ) -> Score:
        answer = parse_answer(
            completion.text,
            self._config,
            thinking=self._thinking,
            frame=self._frame,
            model_image_size_px=group.model_image_size_px,
        )
        if answer.boxes_unit is None or answer.status != "ok" or not len(target_unit):
            return self._settled(answer, is_right=answer.status == "empty" and not len(target_unit))
        predicted_unit = _read_only(answer.boxes_unit)
        item = RewardInput(
            pair_id=group.example.pair_id,
            prompt=self._prompt,
            completion=completion.text,
            status=answer.status,
            predicted_boxes_unit=predicted_unit,
            target_boxes_unit=target_unit,
            assignment=assign(predicted_unit, target_unit, self._config.cost_l1, self._config.cost_giou),
            image_size_px=group.example.image_size_px,
            model_image_size_px=group.model_image_size_px,
            finish_reason=completion.finish_reason,
            num_tokens=len(completion.token_ids),
            metadata={"kinds": group.example.kinds},
            step=step,
            stage=stage,
        )
        terms = {name: self._run_term(name, item) for name in self._functions}
        return Score(self._total(terms), terms, answer.status, _as_tuples(predicted_unit))

    def _settled(self, answer: ParsedAnswer, *, is_right: bool) -> Score:
        value = 1.0 if is_right else 0.0
        boxes = () if answer.boxes_unit is None else _as_tuples(answer.boxes_unit)
        return Score(value, dict.fromkeys(self._functions, value), answer.status, boxes)

    def _total(self, terms: Mapping[str, float]) -> float:
        weighted = math.fsum(term.weight * terms[name] for name, term in self._config.terms.items())
        return min(weighted, 1.0)  # weights may sum to 1 only within a rounding error

    def _run_term(self, name: str, item: RewardInput) -> float:
        try:
            value = self._functions[name](item)
        except Exception as error:
            raise self._broken(name, item, f"raised {type(error).__name__}: {error}") from error
        if not isinstance(value, Real) or not 0.0 <= value <= 1.0:
            raise self._broken(name, item, f"returned {_excerpt(value)}, expected a number in [0, 1]")
        return float(value)

    def _broken(self, name: str, item: RewardInput, what: str) -> PluginError:
        return PluginError(broken_plugin(self._config, name, what, item.pair_id, item.step, item.completion))


def broken_plugin(
    reward_config: RewardConfig, term: str | None, what: str, pair_id: str, step: int, completion: str
) -> str:
    """One sentence: which plugin did `what`, on which pair and completion; `term` None: parsing or matching."""
    blamed = f'reward plugin "{reward_config.terms[term].use}" (term {term})' if term else "parsing or matching"
    return f"{blamed} {what}, on pair {pair_id} at step {step} for the completion {_excerpt(completion)}"


def _as_tuples(boxes: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, boxes.tolist()))


def _read_only(boxes: np.ndarray) -> np.ndarray:
    # All terms share these arrays; a plugin that sorts in place must fail, not change the other terms.
    boxes.setflags(write=False)
    return boxes


def _excerpt(value: object) -> str:
    if isinstance(value, str):
        value = value[-_EXCERPT_CHARACTERS:]  # the answer stands at the end
    text = repr(value)
    return text if len(text) <= 2 * _EXCERPT_CHARACTERS else text[:_EXCERPT_CHARACTERS] + "..."
