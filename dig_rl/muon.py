"""Muon for the hidden matrices and AdamW for everything else, as one optimiser for a trainer that knows one.

Source: Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); steps are scaled to the size of
AdamW's (Liu et al., arXiv 2502.16982), so that both parts share one learning rate schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimisers of torch behind one interface; a scheduler sets the learning rates of both."""

    def __init__(
        self, model: nn.Module, *, muon_lr: float, adamw_lr: float, weight_decay: float, adamw_beta2: float
    ) -> None:
        """Share out the parameters.

        Args:
            model: its matrices go to Muon, but for embeddings; vectors, embeddings and convolutions to AdamW.
            muon_lr: peak learning rate of the matrices.
            adamw_lr: peak learning rate of the rest.
            weight_decay: decoupled; not for vectors.
            adamw_beta2: decay of AdamW's second moment.
        """
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for name, weight in named if weight.dim() == 2 and "embed" not in name]
        chosen = {id(weight) for weight in matrices}
        decayed = [weight for _, weight in named if weight.dim() > 1 and id(weight) not in chosen]
        vectors = [weight for _, weight in named if weight.dim() <= 1]
        self._parts = (
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": decayed, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                lr=adamw_lr,
                betas=(0.9, adamw_beta2),
            ),
        )
        super().__init__([weight for _, weight in named], {})
        self._share_groups()

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter."""
        assert closure is None, "no optimiser here evaluates the loss anew"
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        # The very same dictionaries: what a scheduler writes into them, the parts read.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
