"""Alarms: signs that a policy games its reward or stops learning, read from the metrics that a run writes anyway.

An alarm is a function of `metrics.jsonl` and the config alone, so a continued run, the report and a program that reads
the file later all see the same ones.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dig_rl.config import AlarmsConfig
from dig_rl.errors import AlarmError
from dig_rl.finite import COUNT, check_figures, not_finite

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """One sign: a metric whose mean over a window leaves the good side of a threshold."""

    name: str
    """Also the name of its threshold in `AlarmsConfig`."""
    metric: str
    bad_side: Literal["above", "below"]
    """Where alarms are: at the threshold or beyond."""
    sentence: str
    """What it means and what to try, in plain words."""
    is_relative: bool = False
    """The threshold is a fraction of the metric's mean over the run's first window."""
    window: int | None = None
    """Steps that the mean is taken over; None: as many as `AlarmsConfig` says."""


RULES = (
    Rule(
        "whole_image",
        "answers/whole_image_frac",
        "above",
        "Answers box the whole image: it points at nothing. See what `make reward-report` says of this reward.",
    ),
    Rule(
        "duplicates",
        "answers/duplicate_frac",
        "above",
        "Answers repeat the same box. The reward should charge for copies: see `make reward-report`.",
    ),
    Rule(
        "one_box",
        "answers/one_box_frac",
        "above",
        "Pairs with several changes are answered with a single box. Shorten the stage with one change, replay later "
        "ones, or use iou_reduction = union_count.",
    ),
    Rule(
        "count_collapse",
        "answers/same_count_excess",
        "above",
        "Nearly all answers have the same number of boxes although the numbers of changes differ.",
    ),
    Rule(
        "same_box",
        "answers/same_box_frac",
        "above",
        "Different pairs are answered with the same box: the policy does not look at the images.",
    ),
    Rule(
        "images_ignored",
        "control/same_answer_frac",
        "above",
        "Answers stay the same when the changed image is blanked: the policy does not compare the images.",
        window=1,  # evaluations are few, and each is a mean over many answers already
    ),
    Rule(
        "format_hacking",
        "answers/readable_minus_f1",
        "above",
        "Answers can be read and hit nothing: the policy lives on the format reward.",
    ),
    Rule(
        "thinking_collapse",
        "answers/thinking_characters",
        "below",
        "The policy has nearly stopped thinking before it answers.",
        is_relative=True,
    ),
    Rule(
        "entropy_collapse",
        "learner/entropy",
        "below",
        "The policy hardly varies its answers any more, so groups carry no signal. Lower learner.lr or raise "
        "learner.kl_coef or rollout.temperature.",
    ),
    Rule(
        "mismatch",
        "rollout/mismatch_kl",
        "above",
        "Sampler and learner disagree on how likely the same tokens are. Compare their dtypes and kernels; expect "
        "biased updates until they agree.",
    ),
    Rule(
        "no_signal",
        "groups/dropped_frac",
        "above",
        "Most groups are dropped, because all of their answers earn the same. Choose pairs of another difficulty, a "
        "larger rollout.group_size, or another reward.",
    ),
    Rule(
        "skipped_updates",
        "learner/skipped_updates",
        "above",
        "DeepSpeed left out updates, because a gradient was not finite. Lower learner.lr.",
        window=1,
    ),
    Rule(
        "not_finite",
        COUNT,
        "above",
        "Metrics are NaN or infinite: nothing learned from them can be trusted. Such a run ends by itself.",
        window=1,
    ),
)


@dataclass(frozen=True)
class Alarm:
    """One stretch of steps at which a rule held."""

    name: str
    metric: str
    first_step: int
    """First step at which the mean over the window was on the bad side."""
    last_step: int
    """Last such step of the stretch."""
    value: float
    """The mean at `first_step`."""
    threshold: float
    """In the units of the metric."""
    sentence: str

    def describe(self) -> str:
        """One line for a log."""
        return f"{self.sentence} ({self.metric} {self.value:.3g}, threshold {self.threshold:.3g})"


class AlarmWatch:
    """Looks at one line of `metrics.jsonl` after the other.

    The mean is taken over the last `window` values of a metric, never over fewer; a step that cannot show it has none.
    An alarm ends with the first mean on the good side. A value that is not finite enters no mean: it is an alarm.
    """

    def __init__(self, config: AlarmsConfig) -> None:
        """Args: `config` has the window and, by the name of each rule, its threshold."""
        self._stop = config.stop
        self._seats = [
            _Seat(rule, getattr(config, rule.name), rule.window or config.window)
            for rule in RULES
            if rule.name not in config.off
        ]

    @property
    def alarms(self) -> list[Alarm]:
        """Every alarm so far, by first step."""
        found = [alarm for seat in self._seats for alarm in seat.alarms]
        return sorted(found, key=lambda alarm: (alarm.first_step, alarm.name))

    def observe(self, line: Mapping[str, Any]) -> list[Alarm]:
        """Take note of one line, `step` among its keys; returns the alarms that begin with it."""
        names = not_finite(line)
        line = {**line, COUNT: len(names)}
        return [alarm for seat in self._seats if (alarm := seat.observe(line, ", ".join(names)))]

    def heed(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of a step's figures and warn of every alarm that begins.

        Raises:
            AlarmError: the config says to stop at it.
            NotFiniteError: a figure is not finite, whatever the config says.
        """
        begun = self.observe({"step": step, **figures})
        for alarm in begun:
            _log.warning("alarm %s at step %d: %s", alarm.name, step, alarm.describe())
        check_figures(figures)  # first: such a step must not be saved
        for alarm in begun:
            if alarm.name in self._stop:
                raise AlarmError(
                    f"stopped at step {step} by alarms.stop: {alarm.name}. {alarm.describe()}. Mend it in a new run, "
                    "or run the same command again to go on regardless"
                )


def find_alarms(lines: Sequence[Mapping[str, Any]], config: AlarmsConfig) -> list[Alarm]:
    """Every alarm of a run by first step, from the entries of `metrics.jsonl` in the order written."""
    watch = AlarmWatch(config)
    for line in lines:
        watch.observe(line)
    return watch.alarms


class _Seat:
    """One rule and the values that it has seen."""

    def __init__(self, rule: Rule, threshold: float, window: int) -> None:
        self.rule = rule
        self.alarms: list[Alarm] = []
        self._threshold = None if rule.is_relative else threshold
        self._share = threshold
        self._values: deque[float] = deque(maxlen=window)
        self._is_on = False

    def observe(self, line: Mapping[str, Any], broken: str) -> Alarm | None:
        step, value = line["step"], line.get(self.rule.metric)
        if value is None or not math.isfinite(value):  # the latter is told by the rule that counts such values
            return None
        self._values.append(value)
        if len(self._values) < (self._values.maxlen or 0):
            return None
        mean = math.fsum(self._values) / len(self._values)
        if self._threshold is None:
            self._threshold = self._share * mean
        was_on, self._is_on = self._is_on, self._is_bad(mean, self._threshold)
        if not self._is_on:
            return None
        if was_on:
            self.alarms[-1] = replace(self.alarms[-1], last_step=step)
            return None
        rule = self.rule
        metric = broken if rule.metric == COUNT else rule.metric
        self.alarms.append(Alarm(rule.name, metric, step, step, mean, self._threshold, rule.sentence))
        return self.alarms[-1]

    def _is_bad(self, mean: float, threshold: float) -> bool:
        return mean >= threshold if self.rule.bad_side == "above" else mean < threshold
