"""The actors of a training run as three handles: rollouts, learner, and the sync between them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dig_rl.actors.cluster import Actor, Cluster, Pending
from dig_rl.actors.weight_check import check_weights
from dig_rl.actors.weight_sync import sync_weights
from dig_rl.algo.batch import TrainingGroup, make_minibatches
from dig_rl.config import Config
from dig_rl.errors import CheckpointError, NotFiniteError
from dig_rl.finite import check_logprobs, describe_weights
from dig_rl.masking import mask_failures, max_failed
from dig_rl.parsing import CoordinateFrame
from dig_rl.rollout import group_seeds
from dig_rl.scoring_pool import hash_plugins
from dig_rl.types import Example, PolicyInput, Question, Reply, RolloutGroup, SampledGroup


@dataclass(frozen=True)
class PolicyFacts:
    """What the driver needs to know about the policy without opening it."""

    engine: str
    frame: CoordinateFrame
    prompt: str


class Rollouts:
    """Rollout workers and the reward service behind one door."""

    def __init__(
        self, cluster: Cluster, workers: Sequence[Actor], reward_services: Sequence[Actor], config: Config
    ) -> None:
        self._cluster = cluster
        self._run_seed = config.seed
        self._max_failed_frac = config.reward.max_failed_frac
        self._workers = workers
        self._reward_services = reward_services

    def collect(
        self, examples: Sequence[Example], before: Sequence[RolloutGroup], *, step: int, stage: str
    ) -> tuple[list[RolloutGroup], dict[str, float]]:
        """Sample and score one group for each pair, in order.

        Args:
            examples: pairs.
            before: groups that the same step has already; the budget of failures is the step's.
            step: number of finished steps.
            stage: curriculum stage of the step.

        Returns:
            The groups, and seconds by phase (`timing/generate_s`, `timing/score_s`).

        Raises:
            PluginError: reward plugins broke on more completions than the budget allows.
        """
        started = time.perf_counter()
        seeds = group_seeds(self._run_seed, step, examples)
        sampled = self._deal(self._workers, "sample_groups", list(examples), seeds)
        generated = time.perf_counter()
        allowed = max_failed(sampled, self._max_failed_frac, before)
        slim = [_without_logprobs(group) for group in sampled]
        outcomes = self._deal(self._reward_services, "score_groups", slim, step=step, stage=stage, max_failed=allowed)
        groups = mask_failures(sampled, outcomes, stage=stage, max_failed=allowed)
        scored = time.perf_counter()
        return groups, {"timing/generate_s": generated - started, "timing/score_s": scored - generated}

    def reset_caches(self) -> None:
        """Let every worker forget prompts and images that it has computed."""
        self._cluster.gather([worker.call("reset_caches") for worker in self._workers])

    def watch_inputs(self) -> None:
        """Let every worker note what the pictures of each pair are when they reach the policy."""
        self._cluster.gather([worker.call("watch_inputs") for worker in self._workers])

    def policy_inputs(self) -> dict[Example, PolicyInput]:
        """What the workers noted since `watch_inputs`."""
        noted = self._cluster.gather([worker.call("policy_inputs") for worker in self._workers])
        return {example: found for of_worker in noted for example, found in of_worker.items()}

    def check_token_budget(self, examples: Sequence[Example]) -> None:
        """Make sure that every prompt and the longest answer fit the context.

        Raises:
            ConfigError: names the first pair that is too long.
        """
        self._cluster.gather([self._workers[0].call("check_token_budget", list(examples))])

    def answer(
        self, examples: Sequence[Example], *, num_samples: int = 1, temperature: float = 0.0
    ) -> list[SampledGroup]:
        """Answers without scores, in order of the pairs: by default one of the most likely tokens.

        Args:
            examples: pairs.
            num_samples: answers a pair, up to `dig_rl.rollout.MAX_GROUP_SIZE`; 1 at temperature 0.
            temperature: 0 takes the most likely token each time.
        """
        seeds = group_seeds(self._run_seed, 0, examples)
        return self._deal(
            self._workers, "answer", list(examples), seeds, num_samples=num_samples, temperature=temperature
        )

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """The most likely answers to free questions, in order."""
        return self._deal(self._workers, "ask", list(questions))

    def engine_seconds(self) -> float:
        """Seconds inside vLLM so far, of the worker that was there longest: workers answer side by side."""
        return max(self._cluster.gather([worker.call("engine_seconds") for worker in self._workers]))

    def _deal(self, actors: Sequence[Actor], method: str, *columns: Sequence[Any], **same: Any) -> list[Any]:
        return _deal(self._cluster, actors, method, *columns, **same)


class LearnerRanks:
    """All DeepSpeed ranks as one learner."""

    def __init__(self, cluster: Cluster, ranks: Sequence[Actor], config: Config) -> None:
        self._cluster = cluster
        self._ranks = ranks
        self._num_minibatches = config.learner.num_minibatches
        self._smallest: TrainingGroup | None = None

    def step(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        """Every update on one rollout batch; statistics as in `dig_rl.metrics`."""
        self._smallest = min(groups, key=lambda group: group.num_tokens)
        shares = make_minibatches(groups, num_minibatches=self._num_minibatches, num_ranks=len(self._ranks))
        return self._cluster.gather(
            [rank.call("step", share) for rank, share in zip(self._ranks, shares, strict=True)]
        )[0]

    def save(self, folder: Path) -> None:
        """Write every rank's state.

        Raises:
            NotFiniteError: the weights, or what they give the smallest group of the last step, are not finite.
        """
        broken, largest = self._examine_weights()
        if broken:
            raise NotFiniteError(describe_weights(broken, largest))
        if self._smallest is not None:  # an update may leave weights that are finite, and too large to compute with
            for row in self._everywhere("logprobs", self._smallest)[0]:
                check_logprobs(row, f"the learner, pair {self._smallest.example.pair_id}, before a checkpoint")
        self._everywhere("save", str(folder))

    def load(self, folder: Path) -> None:
        """Restore every rank's state.

        Raises:
            CheckpointError: it does not fit this run, or holds weights that are not finite.
        """
        self._everywhere("load", str(folder))
        broken, largest = self._examine_weights()
        if broken:
            raise CheckpointError(
                f"checkpoint {folder.parent}: {describe_weights(broken, largest)}. Delete that folder to fall back to "
                "the one before"
            )

    def describe_weights(self) -> str:
        """One sentence on the policy's weights: which are not finite, or how large they are."""
        return describe_weights(*self._examine_weights())

    def _examine_weights(self) -> tuple[list[str], tuple[float, str]]:
        ranks = self._everywhere("examine_weights")
        return list(dict.fromkeys(clause for broken, _ in ranks for clause in broken)), max(top for _, top in ranks)

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        self._everywhere("export", str(folder))

    def policy_inputs(self, examples: Sequence[Example], dtypes: Sequence[str]) -> list[PolicyInput]:
        """What the learner makes of each pair's pictures, in order, for a sampler that gives the policy `dtypes`."""
        return _deal(self._cluster, self._ranks, "policy_inputs", list(examples), list(dtypes))

    def facts(self) -> tuple[str, dict[str, Any]]:
        """Engine name, and architecture and size of the policy."""
        first = self._ranks[0]
        engine, card = self._cluster.gather([first.call("engine_name"), first.call("model_card")])
        return engine, card

    def _everywhere(self, method: str, *args: Any) -> list[Any]:
        return self._cluster.gather([rank.call(method, *args) for rank in self._ranks])


@dataclass(frozen=True)
class Fleet:
    """Everything that a training loop talks to."""

    cluster: Cluster
    rollouts: Rollouts
    learner: LearnerRanks
    policy: PolicyFacts
    workers: Sequence[Actor]
    ranks: Sequence[Actor]

    def sync_weights(self, policy_version: int) -> float:
        """Bring the learner's weights to every rollout worker; returns seconds."""
        started = time.perf_counter()
        sync_weights(self.cluster, self.ranks, self.workers, policy_version)
        return time.perf_counter() - started

    def check_weights(self) -> None:
        """Make sure that every rollout worker samples with the learner's weights, by name and checksum.

        Raises:
            PolicyError: names the weights that differ.
        """
        check_weights(self.cluster, self.ranks, self.workers)

    def configure(self, config: Config) -> None:
        """Bring the settings that a stage may change to every actor that uses them."""
        calls = [worker.call("configure", config.rollout) for worker in self.workers]
        calls += [rank.call("configure", config) for rank in self.ranks]
        self.cluster.gather(calls)

    def memory_gib(self) -> dict[str, float]:
        """Resident memory of the largest process of each kind, as `memory/<kind>_gib`."""
        largest: dict[str, float] = {}
        for actor, gib in self.cluster.memory_gib().items():
            name = f"memory/{actor.name.rpartition('-')[0]}_gib"
            largest[name] = max(gib, largest.get(name, 0.0))
        return largest


def _deal(cluster: Cluster, actors: Sequence[Actor], method: str, *columns: Sequence[Any], **same: Any) -> list[Any]:
    """Deal rows round to the actors, call each once with its columns, and return the results in the rows' order."""
    num, stride = len(columns[0]), len(actors)
    pending = [
        actor.call(method, *(column[index::stride] for column in columns), **same)
        for index, actor in enumerate(actors[:num])
    ]
    merged: list[Any] = [None] * num
    for index, result in enumerate(cluster.gather(pending)):
        merged[index::stride] = result
    return merged


def _without_logprobs(group: SampledGroup) -> SampledGroup:
    # Plugins do not see them, and they are most of what would travel.
    completions = tuple(replace(completion, logprobs_rollout=()) for completion in group.completions)
    return replace(group, completions=completions)


def num_actors(config: Config) -> int:
    """How many actors a run starts."""
    return config.rollout.num_workers + config.learner.num_ranks + config.reward.num_workers


def launch_fleet(cluster: Cluster, config: Config, root: Path) -> Fleet:
    """Start rollout workers, learner ranks and reward services, and wait until all have loaded.

    Args:
        cluster: where.
        config: the run.
        root: folder that reward plugins are found in.
    """
    plugin_hashes = hash_plugins(config.reward, root)
    workers = [_spawn_worker(cluster, config, index) for index in range(config.rollout.num_workers)]
    ranks, joining = _spawn_ranks(cluster, config, root)
    cluster.wait_until_ready(joining)
    facts = PolicyFacts(*cluster.gather([workers[0].call("facts")])[0])
    rewards = [
        cluster.spawn(
            f"reward_service-{index}",
            "dig_rl.actors.reward_service:RewardService",
            config,
            str(root),
            facts.frame,
            facts.prompt,
            plugin_hashes,
            # It works while the others wait for it; a slot for it would keep a run off a head of two cores.
            num_cpus=0,
            environment={"OMP_NUM_THREADS": "1"},
        )
        for index in range(config.reward.num_workers)
    ]
    cluster.wait_until_ready()
    return Fleet(
        cluster,
        Rollouts(cluster, workers, rewards, config),
        LearnerRanks(cluster, ranks, config),
        facts,
        tuple(workers),
        tuple(ranks),
    )


def launch_rollouts(cluster: Cluster, config: Config) -> tuple[Rollouts, PolicyFacts]:
    """Start rollout workers alone, to answer pairs without training."""
    workers = [_spawn_worker(cluster, config, index) for index in range(config.rollout.num_workers)]
    cluster.wait_until_ready()
    return Rollouts(cluster, workers, [], config), PolicyFacts(*cluster.gather([workers[0].call("facts")])[0])


def _spawn_worker(cluster: Cluster, config: Config, index: int) -> Actor:
    return cluster.spawn(
        f"rollout_worker-{index}",
        "dig_rl.actors.rollout_worker:RolloutWorker",
        config,
        num_gpus=config.rollout.num_gpus,
        environment={
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's own process
            "OMP_NUM_THREADS": str(config.rollout.num_threads),
        },
    )


def _spawn_ranks(cluster: Cluster, config: Config, root: Path) -> tuple[list[Actor], list[Pending]]:
    environment = {
        "OMP_NUM_THREADS": str(config.learner.num_threads),
        # DeepSpeed looks for ninja on PATH to load its communication op.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(root / ".cache" / "torch_extensions")),
    }
    if config.learner.num_gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    num_ranks = config.learner.num_ranks
    ranks = [
        cluster.spawn(
            f"learner-{rank}",
            "dig_rl.actors.learner:Learner",
            config,
            rank,
            num_ranks,
            num_gpus=config.learner.num_gpus,
            environment=environment,
        )
        for rank in range(num_ranks)
    ]
    master = cluster.wait_for([ranks[0].call("rendezvous")])[0]
    return ranks, [rank.call("join", master) for rank in ranks]
