"""One update is the same update on one rank and on several, whatever ZeRO divides among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.actors.cluster import Actor, Cluster
from dig_rl.actors.fleet import LearnerRanks, _spawn_ranks
from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import ClusterConfig, Config, load_config
from dig_rl.policy.load import load_frontend
from tests.test_batch import make_group, make_pair
from tests.tiny import ROOT

pytestmark = pytest.mark.slow

# Adam divides by the size of a gradient; where that is rounding alone, a large eps keeps it from being blown up.
ADAM = '{type="AdamW", params={lr=1e-2, weight_decay=0.01, torch_adam=true, eps=1e-3}}'

DIVISIONS = {"1 rank": (1, 1), "2 ranks, ZeRO 1": (2, 1), "2 ranks, ZeRO 3": (2, 3)}
"""Number of ranks and ZeRO stage."""


@dataclass(frozen=True)
class Steps:
    """What two updates did."""

    statistics: list[dict[str, float]]
    weights: list[dict[str, np.ndarray]]
    """Before, between and after."""


def weights_of(learner: Any) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for bucket in learner.weight_buckets() for name, weight in bucket.items()}


def config_of(policy: Path, num_ranks: int, stage: int) -> Config:
    settings = [f'policy.path="{policy}"', f"learner.num_ranks={num_ranks}", "learner.num_threads=1"]
    # One pass a group or two; a bound on the gradient that binds.
    settings += ["learner.micro_batch_tokens=200", "learner.max_grad_norm=0.05"]
    return load_config([], [*settings, f"learner.deepspeed={{zero_optimization={{stage={stage}}}, optimizer={ADAM}}}"])


@pytest.fixture(scope="module")
def groups(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    """Three groups of different lengths, about as likely under the policy as under the sampler."""
    folder = tmp_path_factory.mktemp("pairs")
    frontend = load_frontend(config_of(random_policy, 1, 1).policy, "union")
    sizes = [(96, 64), (64, 64), (48, 80)]
    lengths = [[5, 12, 1, 20], [30, 3], [8, 8, 8]]
    made = [
        make_group(frontend, make_pair(folder, size, seed), length, seed)
        for seed, (size, length) in enumerate(zip(sizes, lengths, strict=True))
    ]
    return [
        replace(group, logprobs_rollout=tuple((-6.0,) * len(row) for row in group.completion_token_ids))
        for group in made
    ]


@pytest.fixture(scope="module")
def outcomes(
    random_policy: Path, groups: list[TrainingGroup], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Steps]]:
    logs = tmp_path_factory.mktemp("logs")
    with Cluster(ClusterConfig(), logs, num_actors=2) as cluster:
        yield {
            name: take_two_steps(cluster, config_of(random_policy, *division), groups)
            for name, division in DIVISIONS.items()
        }


def take_two_steps(cluster: Cluster, config: Config, groups: list[TrainingGroup]) -> Steps:
    ranks, joining = _spawn_ranks(cluster, config, ROOT)
    cluster.wait_until_ready(joining)
    learner = LearnerRanks(cluster, ranks, config)

    def weights() -> dict[str, np.ndarray]:
        return cluster.gather([rank.run(weights_of) for rank in ranks])[0]

    seen, statistics = [weights()], []
    for batch in (groups, groups[:1]):  # the second leaves a rank without any group
        statistics.append(learner.step(batch))
        seen.append(weights())
    end(cluster, ranks)
    return Steps(statistics, seen)


def end(cluster: Cluster, ranks: list[Actor]) -> None:
    """Make room for the next ones."""
    import ray

    for rank in ranks:
        ray.kill(rank.handle)
        cluster._actors.remove(rank)


@pytest.mark.parametrize("division", [name for name in DIVISIONS if name != "1 rank"])
def test_statistics_do_not_depend_on_the_number_of_ranks(outcomes: dict[str, Steps], division: str) -> None:
    for alone, shared in zip(outcomes["1 rank"].statistics, outcomes[division].statistics, strict=True):
        names = [name for name in alone if not name.startswith("timing/")]
        assert alone["learner/grad_norm"] > 0.05  # clipped
        for name in names:
            assert shared[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("division", [name for name in DIVISIONS if name != "1 rank"])
def test_weights_do_not_depend_on_the_number_of_ranks(outcomes: dict[str, Steps], division: str) -> None:
    alone, shared = outcomes["1 rank"].weights, outcomes[division].weights
    for step, (expected, found) in enumerate(zip(alone, shared, strict=True)):
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6, rtol=0, err_msg=f"{step} {name}")
    # Each update moved the weights by far more than that.
    for before, after in pairwise(alone):
        assert max(float(np.abs(after[name] - before[name]).max()) for name in before) > 1e-4
