"""Sampler and learner of a bfloat16 policy: float32 logits on both sides in both families, before and after a sync."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import Fleet, launch_fleet, num_actors
from dig_rl.data import load_examples
from dig_rl.types import Example
from tests.qwen2_5 import build_tiny_qwen2_5
from tests.test_engines import as_training_group, sample, update
from tests.tiny import ROOT, TinyWorld

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module", params=["Qwen3-VL", "Qwen2.5-VL"])
def fleet(
    request: pytest.FixtureRequest, tiny_world: TinyWorld, random_policy: Path, tmp_path_factory: Any
) -> Iterator[Fleet]:
    policy = tiny_world.policy
    if request.param == "Qwen2.5-VL":
        policy = build_tiny_qwen2_5(random_policy, tmp_path_factory.mktemp("qwen2.5") / "policy")
    config = TinyWorld(tiny_world.data, policy).config("policy.dtype=bfloat16", "learner.lr=1e-3")
    with Cluster(config.cluster, tmp_path_factory.mktemp("logs"), num_actors(config)) as cluster:
        yield launch_fleet(cluster, config, ROOT)


@pytest.fixture(scope="module")
def examples(tiny_world: TinyWorld) -> list[Example]:
    return load_examples(tiny_world.data, "train")[:3]


def _head_dtype(worker: Any) -> str:
    dtypes: list[str] = worker._engine.collective_rpc(
        lambda rank: str(rank.get_model().language_model.logits_processor.head_dtype)
    )
    return dtypes[0]


def test_both_sides_agree_as_far_as_bfloat16_states_do(fleet: Fleet, examples: list[Example]) -> None:
    assert fleet.cluster.gather([fleet.workers[0].run(_head_dtype)]) == ["torch.float32"]
    for version in range(2):
        groups = sample(fleet, examples, step=version)
        calls = [fleet.ranks[0].call("logprobs", as_training_group(group)) for group in groups]
        of_learner = [value for rows in fleet.cluster.gather(calls) for row in rows for value in row]
        of_sampler = [value for group in groups for one in group.completions for value in one.logprobs_rollout]
        difference = np.subtract(of_learner, of_sampler)
        print(f"rms {np.sqrt(np.mean(difference**2)):.1e}, largest {np.abs(difference).max():.1e}")
        assert np.sqrt(np.mean(difference**2)) < 0.02
        statistics = update(fleet, groups)
        assert statistics["rollout/mismatch_kl"] < 1e-3 and np.isfinite(statistics["learner/grad_norm"])
        fleet.sync_weights(version + 1)
