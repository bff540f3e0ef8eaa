"""What is measured at every step: the list of names, the reward and rollout figures, and reading them back.

`METRICS` is the only list; `docs/metrics.md` is its printed form. `<...>` in a name stands for one word chosen
elsewhere: a reward term of the config, a reason for dropping a group, a process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dig_rl.durable import json_lines
from dig_rl.errors import DigRlError
from dig_rl.types import RolloutGroup

METRICS_FILE = "metrics.jsonl"


class Metric(NamedTuple):
    """One documented scalar."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("reward/total", "0-1", "Mean reward of all scored completions of the step, before any group is dropped"),
    Metric("reward/<term>", "0-1", "Mean raw value of one reward term, unweighted"),
    Metric("reward/parse_rate", "fraction", "Scored completions whose answer could be read (status `ok` or `empty`)"),
    Metric("reward/group_std", "0-1", "Mean over groups of the standard deviation (ddof 1) of the rewards in a group"),
    Metric("reward/failed_frac", "fraction", "Completions masked because a reward plugin broke on them; never scored"),
    Metric(
        "answers/f1", "0-1", "Mean F1 at IoU 0.5 of the sampled answers, whatever the reward; unreadable ones count 0"
    ),
    Metric("answers/boxes", "boxes", "Mean number of boxes of a readable answer"),
    Metric("answers/whole_image_frac", "fraction", "Readable answers with a box over 70 % of the image"),
    Metric("answers/duplicate_frac", "fraction", "Boxes that repeat an earlier box of their answer (IoU 0.9)"),
    Metric("answers/one_box_frac", "fraction", "Readable answers of exactly one box, to pairs with several changes"),
    Metric(
        "answers/same_count_excess",
        "fraction",
        "Share of the most common number of boxes, minus that of the most common true number where these differ",
    ),
    Metric("answers/same_box_frac", "fraction", "Other pairs answered with the same box (IoU 0.9), mean over boxes"),
    Metric("answers/readable_minus_f1", "0-1", "Readable share of the answers minus their F1"),
    Metric("answers/thinking_characters", "characters", "Mean length of what is written before `</think>`"),
    Metric("control/same_answer_frac", "fraction", "Greedy answers that stay the same when the changed image is blank"),
    Metric(
        "rollout/mismatch_kl", "nats", "Mean of exp(d) - 1 - d over completion tokens, d = learner - rollout log-prob"
    ),
    Metric("rollout/importance_max", "1", "Largest importance weight of a token, learner over rollout, before the cap"),
    Metric("rollout/importance_mean", "1", "Mean importance weight of a token before the cap"),
    Metric("rollout/importance_cut_frac", "fraction", "Completion tokens whose importance weight was cut or masked"),
    Metric(
        "rollout/sequence_importance_max", "1", "Largest geometric mean of the importance weights of a completion, raw"
    ),
    Metric(
        "rollout/sequence_importance_min", "1", "Smallest geometric mean of the importance weights of a completion, raw"
    ),
    Metric("rollout/refilled_groups", "groups", "Groups sampled in addition, to make up for groups without signal"),
    Metric("rollout/missing_groups", "groups", "Groups that the update has fewer than pairs a step were asked for"),
    Metric("rollout/completion_tokens", "tokens", "Mean length of a completion, the end-of-text token included"),
    Metric("rollout/truncated_frac", "fraction", "Completions cut off at the token budget"),
    Metric(
        "rollout/cached_token_frac",
        "fraction",
        "Prompt tokens that the last completion of a pair took from the prefix cache",
    ),
    Metric(
        "rollout/tokens_per_s", "tokens/s", "Completion tokens sampled per second of generation, all workers together"
    ),
    Metric("groups/dropped_frac", "fraction", "Groups left out of the update, for any reason"),
    Metric("groups/<reason>", "groups", "Groups left out of the update for this reason"),
    Metric("advantage/std", "1", "Standard deviation of the advantages that entered the update"),
    Metric("learner/loss", "1", "Loss that was minimised: clipped policy term plus the KL term, mean over updates"),
    Metric(
        "learner/kl",
        "nats",
        "KL to the frozen reference (k3 estimate), mean over completion tokens; absent without one",
    ),
    Metric("learner/clip_low_frac", "fraction", "Completion tokens whose ratio was clipped from below"),
    Metric("learner/clip_high_frac", "fraction", "Completion tokens whose ratio was clipped from above"),
    Metric("learner/clip_dual_frac", "fraction", "Completion tokens whose ratio was clipped by the dual clip"),
    Metric("learner/ratio_max", "1", "Largest ratio of new to old probability, before clipping"),
    Metric("learner/updates", "updates", "Optimiser steps made on this step's groups"),
    Metric(
        "learner/skipped_updates", "updates", "Optimiser steps left out by DeepSpeed, because a gradient was not finite"
    ),
    Metric(
        "learner/grad_norm",
        "1",
        "Gradient norm before it was limited, mean over updates; absent where DeepSpeed is told not to compute it",
    ),
    Metric("learner/lr", "1", "Learning rate of the last update"),
    Metric("learner/entropy", "nats", "Mean entropy of the policy over completion tokens"),
    Metric("curriculum/stage_index", "index", "Stage the step was drawn from, counted from 0"),
    Metric("curriculum/replay_frac", "fraction", "Pairs of the step that were drawn from those of earlier stages"),
    Metric("timing/generate_s", "s", "Busy seconds of sampling"),
    Metric("timing/score_s", "s", "Busy seconds of parsing, matching and reward terms"),
    Metric("timing/learn_s", "s", "Busy seconds of log-probabilities, backward pass and optimiser"),
    Metric("timing/sync_s", "s", "Busy seconds of sending the weights to the samplers"),
    Metric("timing/step_s", "s", "Wall-clock seconds of the whole step"),
    Metric("memory/<process>_gib", "GiB", "Memory of an actor and the processes it started, the largest of its kind"),
    Metric("heldout/<figure>", "see figure", "Greedy evaluation on the held-out split, as in `summary.json`"),
    Metric(
        "validation/<figure>",
        "see figure",
        "Greedy evaluation on the validation split, every `evaluation.every_steps` steps; figures as in `heldout/`",
    ),
    Metric(
        "heldout_by_count/<figure>_<count>",
        "see figure",
        "`f1`, `mean_iou` and `count_accuracy` of the held-out pairs with so many changes",
    ),
    Metric(
        "validation_by_count/<figure>_<count>",
        "see figure",
        "`f1`, `mean_iou` and `count_accuracy` of the validation pairs with so many changes",
    ),
    Metric("tracking/non_finite", "values", "Metrics of this step that were NaN or infinite; stored as null"),
)


def undocumented(names: Iterable[str]) -> list[str]:
    """Those of `names` that no entry of `METRICS` describes, sorted."""
    patterns = [re.compile(re.sub(r"<\w+>", r"[^/]+", re.escape(metric.name))) for metric in METRICS]
    return sorted(name for name in set(names) if not any(pattern.fullmatch(name) for pattern in patterns))


def summarise_groups(groups: list[RolloutGroup]) -> dict[str, float]:
    """Reward and rollout figures of one step.

    Args:
        groups: every group of the step, at least one, before groups without signal are dropped. Groups may differ in
            size; means are over completions. Masked completions count in `reward/failed_frac` and `rollout/` alone.

    Returns:
        `reward/total`, `reward/<term>`, `reward/parse_rate`, `reward/group_std` (absent if no group has two scores),
        `reward/failed_frac`, `rollout/completion_tokens`, `rollout/truncated_frac`, `rollout/cached_token_frac`.

    Raises:
        ValueError: `groups` holds no scored completion.
    """
    scores = [score for group in groups for score in group.scored]
    if not scores:
        raise ValueError(f"expected at least one scored completion, found none in {len(groups)} groups")
    completions = [completion for group in groups for completion in group.sampled.completions]
    spreads = [group.rewards.std(ddof=1) for group in groups if len(group.scored) > 1]
    spread = {"reward/group_std": np.mean(spreads)} if spreads else {}
    prompt_tokens = sum(len(group.sampled.prompt_token_ids) for group in groups)
    cached_tokens = sum(group.sampled.num_cached_tokens for group in groups)
    figures: dict[str, Any] = {"reward/total": np.mean([score.total for score in scores])}
    for term in scores[0].terms:
        figures[f"reward/{term}"] = np.mean([score.terms[term] for score in scores])
    figures |= {
        "reward/parse_rate": np.mean([score.status in ("ok", "empty") for score in scores]),
        **spread,
        "reward/failed_frac": 1 - len(scores) / len(completions),
        "rollout/completion_tokens": np.mean([len(completion.token_ids) for completion in completions]),
        "rollout/truncated_frac": np.mean([completion.finish_reason == "length" for completion in completions]),
        "rollout/cached_token_frac": cached_tokens / prompt_tokens,
    }
    return {name: float(value) for name, value in figures.items()}


def summarise_dropped(dropped: Mapping[str, int], num_groups: int) -> dict[str, float]:
    """`groups/<reason>` for each reason and `groups/dropped_frac`, from counts by reason among `num_groups` >= 1."""
    counts = {f"groups/{reason}": float(count) for reason, count in dropped.items()}
    return {**counts, "groups/dropped_frac": sum(dropped.values()) / num_groups}


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in the order written; an empty list where there is no file.

    A last line without its newline was torn by a kill and is left out.

    Raises:
        DigRlError: another line is not a JSON object with an integer `step`.
    """
    path = Path(run_dir) / METRICS_FILE
    try:
        whole, _newline, _torn = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    return [_parse_line(path, number, line) for number, line in enumerate(json_lines(whole), start=1)]


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if isinstance(entry["step"], int):
            return entry
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    found = line[:80].decode(errors="replace")
    raise DigRlError(
        f'{path} line {number}: expected a JSON object with an integer "step", found {found!r}; '
        "remove the line, or choose another RUN= name"
    )
