"""Learner to rollout workers: gathered weights travel through Ray's object store in buckets, versioned.

Order: every rank gathers -> rank 0 stores the buckets -> every worker reloads in place and drops its caches -> the
workers carry the new policy version. The learner does not go on before all workers have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from dig_rl.actors.cluster import Actor, Cluster


def sync_weights(cluster: Cluster, ranks: Sequence[Actor], workers: Sequence[Actor], policy_version: int) -> None:
    """Give every rollout worker the learner's current weights.

    Raises:
        ClusterError: a rank or a worker failed.
    """
    references = cluster.gather([rank.run(_store_weights, index == 0) for index, rank in enumerate(ranks)])[0]
    cluster.gather([worker.run(_take_weights, references, policy_version) for worker in workers])


def _store_weights(learner: Any, keep: bool) -> list[Any]:
    return [ray.put(bucket) for bucket in learner.weight_buckets() if keep]


def _take_weights(worker: Any, references: list[Any], policy_version: int) -> None:
    worker.load_weights((ray.get(reference) for reference in references), policy_version)
