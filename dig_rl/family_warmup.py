"""Supervised training of a small policy from random weights on families of pairs, hours long and in pieces.

TRL's `SFTTrainer` trains; batches are drawn on the fly. Stopped at any time, it goes on from its last checkpoint as
if nothing had happened.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from dig_rl.bounds import Seed
from dig_rl.config import PolicyConfig
from dig_rl.durable import write_durably
from dig_rl.family_batches import FamilyCollator, PairPool
from dig_rl.finite import check_loss
from dig_rl.muon import MuonWithAdamW
from dig_rl.policy.load import PolicyFrontend, load_frontend, load_model
from dig_rl.progress import TrainProgress
from dig_rl.types import Example

ADAMW_BETA2 = 0.99
"""Shorter than the usual memory of gradients' squares: training is thousands of steps, not millions."""


class FamilyWarmupConfig(BaseModel):
    """Length and settings of a supervised stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(ge=1)
    batch_size: int = Field(32, ge=1)
    """Pairs a step."""
    lr: float = Field(4e-3, gt=0)
    """Peak for matrices, by Muon; reached after `lr_warmup_steps`, kept, and lowered along a cosine to 0 at the end."""
    lr_others: float = Field(1.5e-3, gt=0)
    """Peak for embeddings and vectors, by AdamW, along the same curve."""
    lr_warmup_steps: int = Field(150, ge=0)
    lr_decay_steps: int | None = Field(None, ge=1)
    """Length of the cosine; None begins it right after `lr_warmup_steps`."""
    weight_decay: float = Field(0.05, ge=0)
    single_steps: int = Field(500, ge=0)
    """First steps, on pairs with one change."""
    imagined: float = Field(0.0, ge=0, le=1)
    """Chance of each unchanged object of a training pair to be in its label too."""
    blind: float = Field(0.0, ge=0, le=1)
    """Share of training pairs with a gray second image and everything that the first one shows as their label."""
    hints: bool = True
    """Beside the answer, the tokens of the second image learn to say whether their square is changed. Made from the
    labels, so not together with `imagined` or `blind`."""
    bfloat16: bool = True
    """Matrix products in bfloat16, weights in float32."""
    evaluate_every: int = Field(250, ge=1)
    """Steps between two looks at the validation loss."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _hints_are_true(self) -> FamilyWarmupConfig:
        if self.hints and (self.imagined or self.blind):
            raise ValueError("hints are made from the labels: with imagined or blind, set hints = false")
        return self


def warm_up_on_families(
    settings: FamilyWarmupConfig,
    start: Path,
    pool: PairPool,
    validation: Sequence[Example],
    levels: int,
    out: Path,
) -> Path:
    """Train on pairs of families and write the policy; the same call continues what was begun.

    Args:
        settings: length and optimiser.
        start: policy to begin with.
        pool: training pairs.
        validation: labelled pairs whose loss is watched, never trained on.
        levels: answers are rounded to multiples of 1000 / levels.
        out: folder for checkpoints, `history.json` and, when training is complete, `policy/`.

    Returns:
        The folder of the finished policy.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    frontend = load_frontend(PolicyConfig(path=str(start)), "union")
    collator = FamilyCollator(
        frontend,
        pool,
        validation,
        levels=levels,
        batch_size=settings.batch_size,
        single_steps=settings.single_steps,
        imagined=settings.imagined,
        blind=settings.blind,
        hints=settings.hints,
        seed=settings.seed,
    )
    trainer = _trainer(settings, start, frontend, collator, len(validation), out / "checkpoints")
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    last = get_last_checkpoint(out / "checkpoints") if (out / "checkpoints").exists() else None
    with TrainProgress(settings.steps) as progress, _stops() as stop:
        trainer.add_callback(_Pieces(settings.checkpoint_minutes, stop, progress))
        trainer.train(resume_from_checkpoint=last)
    write_durably(out / "history.json", json.dumps(trainer.state.log_history, indent=1) + "\n")
    if trainer.state.global_step < settings.steps:
        raise KeyboardInterrupt
    partial = out / "policy.partial"
    trainer.model.save_pretrained(partial)
    frontend.processor.save_pretrained(partial)
    return partial.rename(out / "policy")


def _trainer(
    settings: FamilyWarmupConfig,
    start: Path,
    frontend: PolicyFrontend,
    collator: FamilyCollator,
    num_validation: int,
    checkpoints: Path,
) -> SFTTrainer:
    model = load_model(PolicyConfig(path=str(start)))
    # The fused attention of torch 2.13 on CPUs is several times slower backwards at these lengths.
    model.set_attn_implementation("eager")
    optimizer = MuonWithAdamW(
        model,
        muon_lr=settings.lr,
        adamw_lr=settings.lr_others,
        weight_decay=settings.weight_decay,
        adamw_beta2=ADAMW_BETA2,
    )
    return SFTTrainer(
        model=model.train(),
        args=_arguments(settings, checkpoints),
        train_dataset=Dataset.from_dict({"item": range(settings.steps * settings.batch_size)}),
        eval_dataset=Dataset.from_dict({"example": range(num_validation)}),
        data_collator=collator,
        processing_class=frontend.processor,
        optimizers=(optimizer, None),
    )


def read_history(out: Path) -> list[dict[str, Any]]:
    """What the trainer of `warm_up_on_families` logged: losses by step."""
    history: list[dict[str, Any]] = json.loads((out / "history.json").read_text(encoding="utf-8"))
    return history


def last_tenth_gain(history: Sequence[dict[str, Any]]) -> float | None:
    """By which fraction the validation loss fell over the last tenth of training; None before there are two figures.

    Args:
        history: what the trainer logged, `history.json`.
    """
    losses = [(int(entry["step"]), float(entry["eval_loss"])) for entry in history if "eval_loss" in entry]
    if len(losses) < 2:
        return None
    last_step, last = losses[-1]
    before = [loss for step, loss in losses[:-1] if step <= 0.9 * last_step]
    return (before[-1] - last) / before[-1] if before else None


def _arguments(settings: FamilyWarmupConfig, folder: Path) -> SFTConfig:
    longest = max(1, settings.steps - settings.lr_warmup_steps)
    decay = longest if settings.lr_decay_steps is None else min(settings.lr_decay_steps, longest)
    return SFTConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "cosine"},
        warmup_steps=settings.lr_warmup_steps,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # an item's number says which step it belongs to
        logging_steps=50,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        prediction_loss_only=True,
        save_strategy="no",  # `_Pieces` saves
        save_total_limit=2,
        report_to=[],
        seed=settings.seed,
        use_cpu=True,
        bf16=settings.bfloat16,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
    )


class _Pieces(TrainerCallback):
    """Checkpoints by the clock and at a stop, and our bar in place of the trainer's."""

    def __init__(self, minutes: float, stop: list[int], progress: TrainProgress) -> None:
        self._seconds, self._stop, self._progress = 60 * minutes, stop, progress
        self._saved = time.monotonic()
        self._shown: tuple[int, float] | None = None

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Save when it is time, or when asked to stop."""
        if self._stop:
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._saved > self._seconds:
            control.should_save = True
            self._saved = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Show the loss."""
        if logs is None:
            return
        if "eval_loss" in logs:
            self._progress.note(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f} nats a token")
        if "loss" in logs:
            check_loss(logs, state.global_step)
            step, now = state.global_step, time.monotonic()
            if self._shown is not None and step > self._shown[0]:
                seconds = (now - self._shown[1]) / (step - self._shown[0])
                self._progress.update(step, stage="warm-up", figure=f"loss {float(logs['loss']):.3f}", seconds=seconds)
            self._shown = (step, now)


@contextmanager
def _stops() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes, in place of what they do otherwise."""
    stop: list[int] = []
    before = {kind: signal.signal(kind, lambda number, _: stop.append(number)) for kind in _STOPS}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


_STOPS = (signal.SIGINT, signal.SIGTERM)
