"""What the learner has is what every rollout worker samples with: compared by name and checksum."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dig_rl.actors.cluster import Actor, Cluster
from dig_rl.errors import PolicyError
from dig_rl.policy.records import differences

_log = logging.getLogger(__name__)


def check_weights(cluster: Cluster, ranks: Sequence[Actor], workers: Sequence[Actor]) -> None:
    """Compare every weight of the learner with what the engines compute with; nothing is changed.

    Raises:
        PolicyError: names the weights that differ.
        ClusterError: a rank or a worker failed.
    """
    expected = cluster.gather([rank.call("weight_records") for rank in ranks])[0]
    held = cluster.gather([worker.call("held_weights", list(expected)) for worker in workers])
    for worker, found in zip(workers, held, strict=True):
        if found.unread is not None:
            _log.warning("%s: weights are not compared with the learner's: %s", worker.name, found.unread)
        elif wrong := differences(expected, found.records):
            raise PolicyError(
                f"{worker.name} samples with other weights than the learner trains: {wrong}. The run stops before it "
                "learns from such samples, and checkpoints are as they were. The policy folder and rollout.vllm must "
                "leave every weight as the learner has it"
            )
