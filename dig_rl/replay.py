"""Recorded rollouts once more, without an engine: what another reward pays them, and what the loss makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dig_rl.algo.advantages import drop_groups_without_signal
from dig_rl.algo.aggregation import aggregate
from dig_rl.algo.batch import MiniBatch, TrainingGroup, make_minibatches, training_group
from dig_rl.algo.loss import policy_loss
from dig_rl.algo.packing import PackedBatch, micro_batches, pack
from dig_rl.algo.statistics import UpdateStatistics, reduce_statistics
from dig_rl.config import Config
from dig_rl.errors import ConfigError
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.policy.targets import part_of
from dig_rl.policy.trainable import prepare_for_training
from dig_rl.recording import Recording
from dig_rl.scoring import Scorer
from dig_rl.types import RolloutGroup, Score

_SAME = 1e-9


@dataclass(frozen=True)
class ScoreChange:
    """A completion that is paid otherwise than it was."""

    pair_id: str
    sample: int
    before: Score | None
    """None where its plugin broke then."""
    after: Score
    text: str


def score_again(recording: Recording, config: Config, root: Path) -> list[RolloutGroup]:
    """The recorded groups with the scores that `config.reward` gives.

    Args:
        recording: the step.
        config: its table `reward`, and `policy.thinking`, count.
        root: folder that plugin paths start from.

    Raises:
        PluginError: a plugin cannot be loaded, raises, or returns anything but a number in [0, 1].
    """
    scorer = Scorer(
        config.reward, root=root, thinking=config.policy.thinking, frame=recording.frame, prompt=recording.prompt
    )
    # Plugins were shown the number of finished steps.
    return [
        replace(group, scores=scorer.score(group.sampled, step=recording.step - 1, stage=recording.stage))
        for group in recording.groups
    ]


def score_changes(before: Sequence[RolloutGroup], after: Sequence[RolloutGroup]) -> list[ScoreChange]:
    """Completions whose total, status or terms differ, in order; terms of one side alone do not count."""
    changes = []
    for old_group, new_group in zip(before, after, strict=True):
        rows = zip(old_group.scores, new_group.scores, new_group.sampled.completions, strict=True)
        for sample, (old, new, completion) in enumerate(rows):
            if new is not None and (old is None or _differ(old, new)):
                pair_id = new_group.sampled.example.pair_id
                changes.append(ScoreChange(pair_id, sample, old, new, completion.text))
    return changes


def _differ(old: Score, new: Score) -> bool:
    shared = old.terms.keys() & new.terms.keys()
    values = [(old.total, new.total), *((old.terms[name], new.terms[name]) for name in shared)]
    return old.status != new.status or any(abs(a - b) > _SAME for a, b in values)


def loss_figures(
    recording: Recording, groups: Sequence[RolloutGroup], config: Config, *, reference_path: str | None = None
) -> dict[str, float]:
    """Loss, gradient and statistics of a step's first update, at the weights of `config.policy`, on the CPU.

    As `Learner.step` computes them, without an optimiser: every mini-batch is taken at the same weights, so figures
    equal those of the recorded step where that had one mini-batch and one epoch.

    Args:
        recording: the step; its temperature and token budget count.
        groups: its groups, with the scores to learn from.
        config: of the run; `policy.path` names the weights.
        reference_path: policy folder of the KL term's reference; None takes the policy itself, so that the term is 0.

    Returns:
        Keys as in `dig_rl.metrics`; `learner/grad_norm` is before clipping, and `replay/grad_norm_<part>` that of the
        vision tower, the projector and the text model.

    Raises:
        ConfigError: no group has signal.
        PolicyError: the policy cannot be opened, or its prompt differs from the recorded one.
    """
    config = _on_cpu(config, recording)
    kept, _ = drop_groups_without_signal(list(groups), learner=config.learner)
    if not kept:
        raise ConfigError(
            f"step {recording.step}: no group has signal, so there is no loss; NO_LOSS=1 looks at scores alone"
        )
    batch = [training_group(group, config) for group in kept]
    frontend = load_frontend(config.policy, config.data.box_target)
    scorer = PolicyScorer(prepare_for_training(load_model(config.policy), config), frontend, config)
    reference = None
    if config.learner.kl_coef > 0 and reference_path is not None:
        frozen = load_model(config.policy.model_copy(update={"path": reference_path}))
        reference = PolicyScorer(frozen, frontend, config).requires_grad_(False)
    statistics, norms = UpdateStatistics(), []
    squares: dict[str, float] = {}
    [minibatches] = make_minibatches(batch, num_minibatches=config.learner.num_minibatches, num_ranks=1)
    for minibatch in minibatches:
        scorer.zero_grad()
        for packed in map(pack, _micro_batches(minibatch, config)):
            _accumulate(scorer, reference, packed, minibatch, config, statistics)
        by_part = _squares_by_part(scorer)
        norms.append(math.sqrt(sum(by_part.values())))
        for part, square in by_part.items():
            squares[part] = squares.get(part, 0.0) + square / len(minibatches)
    return reduce_statistics([statistics.sums], len(minibatches)) | {
        "learner/grad_norm": sum(norms) / len(norms),
        **{f"replay/grad_norm_{part}": math.sqrt(square) for part, square in squares.items()},
    }


def _on_cpu(config: Config, recording: Recording) -> Config:
    """The settings of the recorded step's stage, for one process without a GPU."""
    rollout = {"temperature": recording.temperature, "max_completion_tokens": recording.max_completion_tokens}
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update=rollout),
            "learner": config.learner.model_copy(update={"attention": "sdpa", "num_gpus": 0}),
            "policy": config.policy.model_copy(update={"dtype": "float32"}),
        }
    )


def _micro_batches(minibatch: MiniBatch, config: Config) -> list[list[TrainingGroup]]:
    learner = config.learner
    return micro_batches(
        minibatch.groups, max_tokens=learner.micro_batch_tokens, shared_prefix=learner.shared_prefix, one_row=False
    )


def _accumulate(
    scorer: PolicyScorer,
    reference: PolicyScorer | None,
    packed: PackedBatch,
    minibatch: MiniBatch,
    config: Config,
    statistics: UpdateStatistics,
) -> None:
    encoded = scorer.encode(packed)
    logprobs_ref_N = None
    current = scorer(packed, encoded)
    if config.learner.kl_coef > 0:
        with torch.no_grad():
            logprobs_ref_N = current.logprobs_N.detach() if reference is None else reference(packed, encoded).logprobs_N
    terms = policy_loss(
        current.logprobs_N,
        current.logprobs_N.detach(),
        packed.logprobs_rollout_N,
        logprobs_ref_N,
        packed.advantage_N,
        packed.completion_N,
        config.learner,
    )
    loss = aggregate(
        terms.loss_N,
        packed.token_weight_N,
        config.learner.loss,
        num_completions=minibatch.num_completions,
        num_tokens=minibatch.num_tokens,
        max_completion_tokens=config.rollout.max_completion_tokens,
    )
    loss.backward()
    statistics.add(terms, current.entropy_N, float(loss.detach()))


def _squares_by_part(scorer: PolicyScorer) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, parameter in scorer.named_parameters():
        if parameter.grad is not None:
            part = part_of(name)
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().pow(2).sum())
    return squares
