"""Numbers that are NaN or infinite: found wherever training meets them, and told in one message.

A metric that has nothing to say is left out, and `metrics.jsonl` has null for a value that was not finite, so a metric
that is there and null was NaN or infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dig_rl.errors import NotFiniteError
from dig_rl.types import SampledGroup

COUNT = "tracking/non_finite"
"""The metric that counts the others."""


def not_finite(figures: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are not finite, in order: of a step's figures, or of a line of `metrics.jsonl`."""
    others = ("step", "stage", COUNT)
    return [
        name for name, value in figures.items() if name not in others and (value is None or not math.isfinite(value))
    ]


def check_figures(figures: Mapping[str, float]) -> None:
    """Make sure that a step's figures are finite.

    Raises:
        NotFiniteError: names those that are not.
    """
    if names := not_finite(figures):
        skipped = figures.get("learner/skipped_updates", 0)
        because = f" (DeepSpeed skipped {skipped:.0f} of the step's updates)" if skipped else ""
        raise NotFiniteError(", ".join(f"{name} is {figures[name]}" for name in names) + because)


def check_sampled(groups: Sequence[SampledGroup]) -> None:
    """Make sure that the sampler knows how likely each of its tokens was.

    Raises:
        NotFiniteError: names the first pair and token.
    """
    for group in groups:
        for number, completion in enumerate(group.completions):
            check_logprobs(completion.logprobs_rollout, f"the sampler, answer {number} to pair {group.example.pair_id}")


def check_logprobs(logprobs: Iterable[float], where: str) -> None:
    """The same for one answer; `where` says whose it is.

    Raises:
        NotFiniteError: names the first token.
    """
    for position, logprob in enumerate(logprobs):
        if not math.isfinite(logprob):
            raise NotFiniteError(
                f"the log-probability of token {position} is {logprob} ({where}): the policy's weights are not finite, "
                "or too large to compute with"
            )


def check_loss(logs: Mapping[str, float], step: int) -> None:
    """Make sure that what a supervised trainer logs is finite; whatever else it logs is not looked at.

    Raises:
        NotFiniteError: names loss or gradient norm.
    """
    for name in ("loss", "grad_norm"):
        if not math.isfinite(logs.get(name, 0.0)):
            raise NotFiniteError(
                f"the warm-up's {name} is {logs[name]} at step {step}: its learning rate is too high, or a weight or a "
                "label is broken. Lower the rate (warmup.lr) and start again; no policy was written"
            )


def describe_weights(broken: Sequence[str], largest: tuple[float, str]) -> str:
    """One sentence on a policy's weights.

    Args:
        broken: one clause for each weight with values that are not finite.
        largest: size and name of the largest value of the others.
    """
    if not broken:
        size, name = largest
        return f"All weights are finite; the largest value is {size:.3g}, in {name}"
    more = f" and {len(broken) - 3} other weights" if len(broken) > 3 else ""
    return f"Not finite: {', '.join(broken[:3])}{more}"


def describe_end(
    error: NotFiniteError, step: int, weights: str, kept: Iterable[int], best: tuple[int, float] | None
) -> str:
    """What a run of NaN ends with: what was found and when, and what is left.

    Args:
        error: what was found.
        step: the last one whose update the policy has.
        weights: of `describe_weights`.
        kept: steps that have a checkpoint.
        best: step and score of the best one.
    """
    when = f"after step {step}" if step else "before the first step"
    steps = ", ".join(map(str, sorted(kept)))
    left = f"Kept as they were: the checkpoints of steps {steps}" if steps else "No checkpoint was made before"
    favourite = f", of which {best[0]} is the best" if best is not None else ""
    return f"stopped {when}: {error}. {weights}. {left}{favourite}; what came after is in no checkpoint."
