"""The objective against TRL's own `GRPOTrainer`, for the variants that both have.

The trainer's loss is called as it is, on an object that holds its settings and returns given log-probabilities in the
place of a model: what is compared is the objective alone, on exactly the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dig_rl.config import LearnerConfig, Loss
from tests.loss_reference import Batch, Rows
from tests.test_loss import BUDGET, LENGTHS, library_loss, random_batch

pytestmark = pytest.mark.slow  # importing TRL takes ten seconds


@dataclass
class _Accelerator:
    num_processes: int = 1

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value


def padded(rows: Rows) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def trl_loss(batch: Batch, learner: LearnerConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and the padded log-probabilities `[B, T]` it depends on."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    new, old, rollout = (padded(rows) for rows in (batch.new, batch.old, batch.rollout))
    new.requires_grad_()
    mask = padded([[1.0] * len(row) for row in batch.new])

    def log_probabilities(*_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        return new, torch.zeros_like(new), None

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=log_probabilities,
        loss_type="grpo" if learner.loss == "gspo" else learner.loss,
        importance_sampling_level="sequence" if learner.loss == "gspo" else "token",
        epsilon_low=learner.clip_low,
        epsilon_high=learner.clip_high,
        beta=learner.kl_coef,
        max_completion_length=BUDGET,
        use_vllm=learner.importance == "token_truncate",
        vllm_importance_sampling_correction=True,
        args=SimpleNamespace(delta=learner.dual_clip, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=_Accelerator(),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": tokens,
        "completion_mask": mask,
        "advantages": torch.tensor(batch.advantages),
        "old_per_token_logps": old,
        "importance_sampling_ratio": torch.exp((old - rollout) * mask).clamp(max=learner.importance_cap),
        "num_items_in_batch": mask.sum(),
    }
    if batch.ref is not None:
        inputs["ref_per_token_logps"] = padded(batch.ref)
    return GRPOTrainer._compute_loss(trainer, None, inputs), new


@pytest.mark.parametrize(
    ("loss", "kl_coef", "importance", "dual_clip"),
    list(product(["grpo", "dapo", "dr_grpo", "gspo"], [0.0, 0.3], ["token_truncate", "off"], [None, 1.5])),
)
def test_loss_and_its_derivative_equal_trl(loss: Loss, kl_coef: float, importance: Any, dual_clip: float) -> None:
    learner = LearnerConfig(
        loss=loss, kl_coef=kl_coef, importance=importance, dual_clip=dual_clip, clip_high=0.3, importance_cap=1.4
    )
    batch = random_batch()
    if not kl_coef:
        batch = replace(batch, ref=None)
    theirs, their_logprobs = trl_loss(batch, learner)
    ours, our_logprobs, _ = library_loss(batch, learner)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    ours.backward()
    theirs.backward()
    present = padded([[1.0] * length for length in LENGTHS]) > 0
    np.testing.assert_allclose(our_logprobs.grad, their_logprobs.grad[present], atol=1e-5, rtol=0)
