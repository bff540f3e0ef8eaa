"""What becomes of each optimiser step: made or skipped, and how long the gradient was."""

from __future__ import annotations

from typing import Any

import numpy as np
from deepspeed.runtime.utils import clip_grad_norm_


class Updates:
    """The optimiser steps on one rollout batch."""

    def __init__(self) -> None:
        self._made = 0
        self._skipped = 0
        self._norms: list[float] = []

    def step(self, engine: Any) -> None:
        """One step of a DeepSpeed engine, which skips it where the gradient is not finite."""
        engine.step()
        is_made = engine.was_step_applied()
        self._made += is_made
        self._skipped += not is_made
        norm = engine.get_global_grad_norm()
        if norm is not None:  # infinite where the step was skipped, and told
            self._norms.append(float(norm))

    def figures(self) -> dict[str, float]:
        """Keys as in `dig_rl.metrics`."""
        norm = {"learner/grad_norm": float(np.mean(self._norms))} if self._norms else {}
        return {"learner/updates": float(self._made), "learner/skipped_updates": float(self._skipped)} | norm


def tell_norm_without_zero(engine: Any) -> None:
    """Let an engine keep the norm that it limits a float32 gradient by: without ZeRO, DeepSpeed throws it away."""

    def clip() -> None:
        parameters, limit = engine.module.parameters(), engine.gradient_clipping()
        engine._global_grad_norm = float(clip_grad_norm_(parameters=parameters, max_norm=limit, mpu=engine.mpu))

    engine.clip_fp32_gradients = clip
