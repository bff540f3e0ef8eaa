"""Real DeepSpeed ranks without Ray: one process a rank runs many jobs, so that engines load once and not a job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.distributed as dist

from dig_rl.algo.batch import TrainingGroup, make_minibatches
from dig_rl.config import Config
from tests.tiny import ROOT


@dataclass(frozen=True)
class Job:
    """Rollout batches for one fresh learner, one after the other."""

    config: Config
    batches: list[list[TrainingGroup]]
    stages: list[Config] = field(default_factory=list)
    """Settings that each batch is learned under, where they are not the run's."""
    engine: Literal["deepspeed", "float64"] = "deepspeed"
    """float64 takes DeepSpeed's place with sums in float64, and moves no weight."""
    keep_float32: bool = False
    """Whether the float32 weights behind bfloat16 ones are kept; ZeRO 0 writes none."""


@dataclass
class Outcome:
    """What a learner did; the same on every rank."""

    statistics: list[dict[str, float]] = field(default_factory=list)
    """Of each batch."""
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """Before, between and after the batches, in Hugging Face names."""
    has_reference: bool = False
    """Whether a second model was loaded."""
    optimizer: str = ""
    """DeepSpeed's, by the name of its class."""
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of the last update, in float64; of the engine `float64` alone."""
    float32_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """After the last batch."""


def run_jobs(jobs: Mapping[str, Job], world_size: int, folder: Path) -> dict[str, Outcome]:
    """Run each job on `world_size` ranks and return what rank 0 saw."""
    folder.mkdir(parents=True)
    torch.save(dict(jobs), folder / "jobs.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from tests.learner_ranks import main; main()", str(folder)]
    ranks = []
    for rank in range(world_size):
        with (folder / f"rank-{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen([*command, str(rank), str(world_size), str(port)], cwd=ROOT, stdout=log, stderr=log)
            )
    try:
        failed = [rank for rank, process in enumerate(ranks) if process.wait(timeout=900)]
    finally:
        for process in ranks:
            process.kill()
    logs = "\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in failed)
    assert not failed, logs
    outcomes: dict[str, Outcome] = torch.load(folder / "outcomes.pt", weights_only=False)
    return outcomes


def _run(job: Job, rank: int, world_size: int, port: int) -> Outcome:
    from dig_rl.actors.learner import Learner, _join_process_group
    from tests.float64_sums import float64_learner

    if job.engine == "float64":
        _join_process_group(rank, world_size, ("127.0.0.1", port))
        learner = float64_learner(job.config, rank, world_size)
    else:
        learner = Learner(job.config, rank, world_size)
        learner.join(("127.0.0.1", port))
    outcome = Outcome(has_reference=learner._reference is not None)

    def weights() -> dict[str, torch.Tensor]:
        return {name: weight for bucket in learner.weight_buckets() for name, weight in bucket.items()}

    outcome.weights.append(weights())
    for index, batch in enumerate(job.batches):
        if job.stages:
            learner.configure(job.stages[index])
        shares = make_minibatches(batch, num_minibatches=job.config.learner.num_minibatches, num_ranks=world_size)
        outcome.statistics.append(learner.step(shares[rank]))
        outcome.weights.append(weights())
    if job.engine == "float64":
        outcome.gradients = learner._engine.gradients
    else:
        outcome.optimizer = type(learner._engine.optimizer).__name__
    if job.keep_float32:
        outcome.float32_weights = _float32_weights(learner)
    learner._engine.destroy()
    return outcome


def _float32_weights(learner: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint of all ranks holds."""
    from dig_rl.actors.learner_files import consolidated_weights

    with TemporaryDirectory() as own:
        folders: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(folders, own)
        learner.save(folders[0])
        dist.barrier()
        weights = consolidated_weights(Path(folders[0]), torch.float32) if dist.get_rank() == 0 else {}
        dist.barrier()
    return weights


def main() -> None:
    """Entry point of one rank."""
    folder, rank, world_size, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    jobs: dict[str, Job] = torch.load(folder / "jobs.pt", weights_only=False)
    outcomes = {name: _run(job, rank, world_size, port) for name, job in jobs.items()}
    if rank == 0:
        torch.save(outcomes, folder / "outcomes.pt")
