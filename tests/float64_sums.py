"""The passes of a real learner, their gradients added up in float64: what DeepSpeed's sums are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dig_rl.actors.learner import Learner
from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import Config, load_config
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.policy.trainable import prepare_for_training
from tests.learner_ranks import Job, Outcome

BFLOAT16_LR = 1e4
"""Of SGD: steps so long that the weights drown in them."""


def bfloat16_jobs(
    policy: Path,
    groups: list[TrainingGroup],
    tables: Mapping[str, str],
    *settings: str,
    num_ranks: int = 1,
    lr: float = BFLOAT16_LR,
) -> dict[str, Job]:
    """Jobs of bfloat16 learners with one completion a pass, and `float64 sums` of the same passes.

    Args:
        policy: to be trained for one update.
        groups: what it learns from.
        tables: entries of `learner.deepspeed` beside the optimiser, by the name of the job.
        settings: further `SET` values of all of them.
        num_ranks: of each.
        lr: of SGD; 0 leaves the weights where they are, as `float64 sums` always does.
    """
    common = [
        *(f'policy.path="{policy}"', "policy.dtype=bfloat16", f"learner.num_ranks={num_ranks}"),
        *("learner.shared_prefix=false", "learner.micro_batch_tokens=1", "learner.num_threads=1"),
        *("learner.kl_coef=0", "learner.max_grad_norm=1e9"),
    ]

    def job(table: str, **options: Any) -> Job:
        sgd = f"optimizer={{type='SGD', params={{lr={lr}, weight_decay=0.0}}}}"
        text = f"learner.deepspeed={{{sgd}, zero_allow_untested_optimizer=true, {table}}}"
        return Job(load_config([], [*common, *settings, text]), [groups], **options)

    jobs = {name: job(table, keep_float32="stage=0" not in table) for name, table in tables.items()}
    return jobs | {"float64 sums": job("zero_optimization={stage=1}", engine="float64")}


class Float64Sums:
    """Stands in for a DeepSpeed engine that never moves its weights."""

    def __init__(self, scorer: PolicyScorer) -> None:
        self.module = scorer
        self.gradients: dict[str, torch.Tensor] = {}
        """Of the newest update, by Hugging Face name."""
        self._sums: dict[str, torch.Tensor] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)

    def backward(self, loss: torch.Tensor, **_: Any) -> None:
        loss.backward()
        for name, parameter in self.module.model.named_parameters():
            if parameter.grad is not None:
                self._sums[name] = self._sums.get(name, 0) + parameter.grad.double()
                parameter.grad = None

    def step(self) -> None:
        for total in self._sums.values():
            dist.all_reduce(total)
            total /= dist.get_world_size()
        self.gradients, self._sums = self._sums, {}

    def get_global_grad_norm(self) -> float:
        return float(torch.stack([gradient.norm() for gradient in self.gradients.values()]).norm())

    def was_step_applied(self) -> bool:
        return True

    def get_lr(self) -> list[float]:
        return [0.0]

    def destroy(self) -> None:
        return


def float64_learner(config: Config, rank: int, world_size: int) -> Learner:
    """A learner that has joined, without DeepSpeed and without a reference."""
    learner = Learner(config, rank, world_size)
    learner._frontend = load_frontend(config.policy, config.data.box_target)
    model = prepare_for_training(load_model(config.policy), config)
    learner._engine = Float64Sums(PolicyScorer(model, learner._frontend, config))
    return learner


def relative_errors(found: Outcome, truth: Outcome, *, lr: float) -> tuple[float, float, float]:
    """How far an update by SGD is from one by the float64 sum.

    Args:
        found: of a job that kept its float32 weights.
        truth: of the engine `float64`, on the same passes.
        lr: of the update, so large that the weights drown in it.

    Returns:
        Relative error of the norm that is reported, of the update, and 1 - cosine of the angle between both updates.
    """
    names = sorted(truth.gradients.keys() & found.weights[0].keys())
    assert names, "no weight of the policy itself is trained"
    after = found.float32_weights or found.weights[1]
    moved = torch.cat([((found.weights[0][name].double() - after[name]) / lr).flatten() for name in names])
    exact = torch.cat([truth.gradients[name].flatten() for name in names])
    norm = found.statistics[0]["learner/grad_norm"] / truth.statistics[0]["learner/grad_norm"] - 1
    cosine = torch.nn.functional.cosine_similarity(moved, exact, dim=0)
    return abs(norm), float((moved - exact).norm() / exact.norm()), float(1 - cosine)
