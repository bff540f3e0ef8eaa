"""GRPO updates in plain PyTorch, without DeepSpeed: the reference that the learner is compared with."""

from __future__ import annotations

import torch

from dig_rl.algo.batch import TrainingGroup
from dig_rl.algo.packing import pack
from dig_rl.config import Config
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from tests.loss_reference import token_losses
from tests.test_loss import Batch


class PlainLoop:
    """The same updates in a few lines of PyTorch: one pass a completion, old log-probabilities taken once."""

    def __init__(self, config: Config, *, lr: float, eps: float, weight_decay: float) -> None:
        self.config = config
        self.adam = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        frontend = load_frontend(config.policy, "union")
        self.scorer = PolicyScorer(load_model(config.policy).train(), frontend, config)
        self.reference = PolicyScorer(load_model(config.policy), frontend, config)
        self.norms: list[float] = []

    def logprobs(self, scorer: PolicyScorer, group: TrainingGroup) -> list[torch.Tensor]:
        packed = pack([group])
        lengths = [len(row) for row in group.completion_token_ids]
        return list(scorer(packed, scorer.encode(packed)).logprobs_N.split(lengths))

    def run(self, minibatches: list[list[TrainingGroup]], num_epochs: int) -> None:
        optimizer = torch.optim.AdamW(self.scorer.parameters(), **self.adam)
        with torch.no_grad():
            old = [[self.logprobs(self.scorer, group) for group in batch] for batch in minibatches]
            ref = [[self.logprobs(self.reference, group) for group in batch] for batch in minibatches]
        for _ in range(num_epochs):
            for batch, old_rows, ref_rows in zip(minibatches, old, ref, strict=True):
                optimizer.zero_grad()
                num_completions = sum(len(group.completion_token_ids) for group in batch)
                for group, group_old, group_ref in zip(batch, old_rows, ref_rows, strict=True):
                    (self._loss(group, group_old, group_ref) / num_completions).backward()
                norm = torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), self.config.learner.max_grad_norm)
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


@torch.no_grad()
def mean_kl(policy: PolicyScorer, reference: PolicyScorer, groups: list[TrainingGroup]) -> float:
    """Mean over completion tokens of exp(d) - 1 - d, d = reference - policy log-probability."""
    packed = pack(groups)
    of_policy, of_reference = (scorer(packed, scorer.encode(packed)).logprobs_N for scorer in (policy, reference))
    difference = (of_reference - of_policy).double()
    return float((difference.exp() - 1 - difference).mean())
