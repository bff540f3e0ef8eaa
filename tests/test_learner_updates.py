"""Several epochs and mini-batches on one rollout batch, through the real DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import LearnerRanks, _spawn_ranks
from dig_rl.algo.batch import TrainingGroup, pack_group
from dig_rl.config import ClusterConfig, Config, load_config
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from tests.loss_reference import token_losses
from tests.test_batch import make_group, make_pair
from tests.test_learner_ranks import end, weights_of
from tests.test_loss import Batch
from tests.tiny import ROOT

pytestmark = pytest.mark.slow

LR, EPS, WEIGHT_DECAY, MAX_NORM = 3e-3, 1e-3, 0.01, 0.05


def config_of(policy: Path, *more: str, lr: float = LR, stage: int = 1) -> Config:
    adam = f'{{type="AdamW", params={{lr={lr}, weight_decay={WEIGHT_DECAY}, torch_adam=true, eps={EPS}}}}}'
    settings = [f'policy.path="{policy}"', "learner.num_threads=1", "learner.micro_batch_tokens=200"]
    settings += ["learner.num_epochs=2", "learner.num_minibatches=2", f"learner.max_grad_norm={MAX_NORM}"]
    settings += ["learner.kl_coef=0.1", "learner.clip_low=0.01", "learner.clip_high=0.01"]  # both clips at work
    deepspeed = f"learner.deepspeed={{zero_optimization={{stage={stage}}}, optimizer={adam}}}"
    return load_config([], [*settings, deepspeed, *more])


@pytest.fixture(scope="module")
def groups(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    """Three groups, so mini-batches of one and two; about as likely under the policy as under the sampler."""
    folder = tmp_path_factory.mktemp("pairs")
    frontend = load_frontend(config_of(random_policy).policy, "union")
    lengths = [[5, 12, 1, 20], [30, 3], [8, 8, 8]]
    made = [make_group(frontend, make_pair(folder, (96, 64), seed), row, seed) for seed, row in enumerate(lengths)]
    return [
        replace(group, logprobs_rollout=tuple((-6.0,) * len(row) for row in group.completion_token_ids))
        for group in made
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(ClusterConfig(), tmp_path_factory.mktemp("logs"), num_actors=2) as started:
        yield started


def learn(
    cluster: Cluster, config: Config, groups: list[TrainingGroup]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Statistics of one rollout batch, and the weights after it."""
    ranks, joining = _spawn_ranks(cluster, config, ROOT)
    cluster.wait_until_ready(joining)
    statistics = LearnerRanks(cluster, ranks, config).step(groups)
    weights: dict[str, np.ndarray] = cluster.gather([rank.run(weights_of) for rank in ranks])[0]
    end(cluster, ranks)
    return statistics, weights


@pytest.fixture(scope="module")
def learned(
    cluster: Cluster, random_policy: Path, groups: list[TrainingGroup]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    return learn(cluster, config_of(random_policy), groups)


class PlainLoop:
    """The same updates in a few lines of PyTorch: one pass a completion, old log-probabilities taken once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        frontend = load_frontend(config.policy, "union")
        self.scorer = PolicyScorer(load_model(config.policy).train(), frontend, config)
        self.reference = PolicyScorer(load_model(config.policy), frontend, config)
        self.norms: list[float] = []

    def logprobs(self, scorer: PolicyScorer, group: TrainingGroup) -> list[torch.Tensor]:
        lengths = [len(row) for row in group.completion_token_ids]
        return list(scorer(pack_group(group)).logprobs_N.split(lengths))

    def run(self, minibatches: list[list[TrainingGroup]], num_epochs: int) -> None:
        optimizer = torch.optim.AdamW(self.scorer.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, eps=EPS)
        with torch.no_grad():
            old = [[self.logprobs(self.scorer, group) for group in batch] for batch in minibatches]
            ref = [[self.logprobs(self.reference, group) for group in batch] for batch in minibatches]
        for _ in range(num_epochs):
            for batch, old_rows, ref_rows in zip(minibatches, old, ref, strict=True):
                optimizer.zero_grad()
                num_completions = sum(len(group.completion_token_ids) for group in batch)
                for group, group_old, group_ref in zip(batch, old_rows, ref_rows, strict=True):
                    (self._loss(group, group_old, group_ref) / num_completions).backward()
                norm = torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), MAX_NORM)
                self.norms.append(float(norm))
                optimizer.step()

    def _loss(self, group: TrainingGroup, old: list[torch.Tensor], ref: list[torch.Tensor]) -> torch.Tensor:
        """Sum of sequence means; the slope of each token's loss comes from the float64 reference."""
        total = torch.zeros(())
        new = self.logprobs(self.scorer, group)
        for index, row in enumerate(new):
            slopes = []
            for token in range(len(row)):
                sides = [self._token_loss(group, index, token, shift, row, old, ref) for shift in (1e-6, -1e-6)]
                slopes.append((sides[0] - sides[1]) / 2e-6)
            total = total + (row * torch.tensor(slopes)).mean()
        return total

    def _token_loss(
        self,
        group: TrainingGroup,
        index: int,
        token: int,
        shift: float,
        new: torch.Tensor,
        old: list[torch.Tensor],
        ref: list[torch.Tensor],
    ) -> float:
        columns = (new[token].item() + shift, old[index][token].item(), group.logprobs_rollout[index][token])
        rows = [[[value]] for value in (*columns, ref[index][token].item())]
        return token_losses(Batch(*rows, [group.advantages[index]]), 0, self.config.learner)[0]


def test_two_epochs_of_two_minibatches_equal_a_plain_pytorch_loop(
    learned: tuple[dict[str, float], dict[str, np.ndarray]], random_policy: Path, groups: list[TrainingGroup]
) -> None:
    statistics, weights = learned
    loop = PlainLoop(config_of(random_policy))
    before = {name: weight.detach().clone() for name, weight in loop.scorer.model.named_parameters()}
    loop.run([groups[:1], groups[1:]], num_epochs=2)
    assert statistics["learner/updates"] == 4
    assert statistics["learner/grad_norm"] == pytest.approx(np.mean(loop.norms), rel=1e-4)
    # The old log-probabilities are those before the first update, so later updates have ratios beyond the clips.
    assert statistics["learner/ratio_max"] > 1.01
    assert statistics["learner/clip_high_frac"] > 0
    after = dict(loop.scorer.model.named_parameters())
    moved = 0.0
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, after[name].detach().numpy(), atol=1e-6, rtol=0, err_msg=name)
        moved = max(moved, (after[name] - before[name]).abs().max().item())
    assert moved > 1e-3


def test_two_ranks_make_the_same_updates_also_with_divided_weights(
    cluster: Cluster,
    random_policy: Path,
    groups: list[TrainingGroup],
    learned: tuple[dict[str, float], dict[str, np.ndarray]],
) -> None:
    statistics, weights = learn(cluster, config_of(random_policy, "learner.num_ranks=2", stage=3), groups)
    for name, value in learned[0].items():
        if not name.startswith("timing/"):
            assert statistics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, weight in learned[1].items():
        np.testing.assert_allclose(weights[name], weight, atol=1e-6, rtol=0, err_msg=name)


def has_reference(learner: Any) -> bool:
    return learner._reference is not None


def test_on_policy_every_ratio_is_one_and_the_kl_is_zero_however_often_a_batch_is_used(
    cluster: Cluster, random_policy: Path, groups: list[TrainingGroup]
) -> None:
    # A learning rate of 0 keeps the policy where it was sampled, through all four updates.
    statistics, _ = learn(cluster, config_of(random_policy, lr=0.0), groups)
    assert statistics["learner/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert statistics["learner/clip_low_frac"] == statistics["learner/clip_high_frac"] == 0
    assert statistics["learner/kl"] == pytest.approx(0.0, abs=1e-6)


def test_without_a_kl_term_no_reference_is_loaded(
    cluster: Cluster, random_policy: Path, groups: list[TrainingGroup]
) -> None:
    config = config_of(random_policy, "learner.kl_coef=0")
    ranks, joining = _spawn_ranks(cluster, config, ROOT)
    cluster.wait_until_ready(joining)
    assert cluster.gather([ranks[0].run(has_reference)]) == [False]
    assert "learner/kl" not in LearnerRanks(cluster, ranks, config).step(groups)
    end(cluster, ranks)
