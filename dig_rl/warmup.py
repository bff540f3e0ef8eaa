"""Supervised warm-up on labelled pairs with TRL, for a policy that cannot answer yet.

Prompt, image handling and answer format are those of the rollouts, so GRPO continues where this stops.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image
from datasets import Sequence as ListOf
from datasets.utils.logging import disable_progress_bar as disable_progress_bars
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from dig_rl.boxes import px_to_unit
from dig_rl.config import Config, PolicyConfig
from dig_rl.deepspeed_table import learner_table, trainer_table
from dig_rl.errors import PolicyError
from dig_rl.extension_lock import remove_stale_locks
from dig_rl.finite import check_loss
from dig_rl.image_files import has_tag, untagged_png
from dig_rl.policy.load import PolicyFrontend, load_frontend, load_model
from dig_rl.progress import TrainProgress
from dig_rl.prompts import format_answer
from dig_rl.types import Example


def warm_up(config: Config, examples: Sequence[Example], out: Path) -> dict[str, float]:
    """Train on the true answers and write the policy to a new folder.

    Args:
        config: `warmup` says where to start and for how long; `policy` gives compute type and resize rule.
        examples: labelled pairs.
        out: Hugging Face folder to write; appears only when complete.

    Returns:
        `loss_first` and `loss_last`, mean cross-entropy per completion token over the first and last tenth, nats.

    Raises:
        PolicyError: `out` exists, or the starting policy cannot be opened.
    """
    settings = config.warmup
    policy = config.policy.model_copy(update={"path": settings.start})
    if out.exists():
        raise PolicyError(f"{out} exists already; choose another OUT=, or remove it to warm up again")
    frontend = load_frontend(policy, config.data.box_target)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    _become_a_rank()
    trainer = _trainer(config, policy, frontend, examples, partial / "trainer")
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    with TrainProgress(settings.steps) as progress:
        trainer.add_callback(_ShowProgress(progress))
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(str(partial / "policy"))  # gathers what ZeRO has spread
    frontend.processor.save_pretrained(partial / "policy")
    (partial / "policy").rename(out)
    shutil.rmtree(partial)
    tenth = max(1, len(losses) // 10)
    return {"loss_first": float(np.mean(losses[:tenth])), "loss_last": float(np.mean(losses[-tenth:]))}


def _trainer(
    config: Config, policy: PolicyConfig, frontend: PolicyFrontend, examples: Sequence[Example], folder: Path
) -> SFTTrainer:
    settings = config.warmup
    return SFTTrainer(
        model=load_model(policy).train(),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            lr_scheduler_type="linear",
            warmup_steps=max(1, settings.steps // 20),
            weight_decay=config.learner.weight_decay,
            max_grad_norm=learner_table(config, 1)["gradient_clipping"],
            deepspeed=trainer_table(config),
            max_length=None,  # truncation could cut image tokens away
            completion_only_loss=True,
            logging_steps=max(1, settings.steps // 50),
            logging_nan_inf_filter=False,  # it would show a NaN as the mean of the others
            save_strategy="no",
            report_to=[],
            seed=config.seed,
            use_cpu=policy.dtype == "float32",
            bf16=policy.dtype == "bfloat16",
            gradient_checkpointing=False,
            dataloader_num_workers=0,
        ),
        train_dataset=_dataset(examples, frontend, settings.coordinate_levels),
        processing_class=frontend.processor,
    )


def _become_a_rank() -> None:
    """Let DeepSpeed find what a launcher such as `torchrun` says, or the only rank there is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "RANK" not in os.environ:
        os.environ |= alone
    # A lock left by a killed build of DeepSpeed's communication op would be waited for without end.
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        remove_stale_locks(Path(folder))


class _ShowProgress(TrainerCallback):
    """Our bar in place of the trainer's."""

    def __init__(self, progress: TrainProgress) -> None:
        self._progress = progress
        self._last = (0, time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the closing summary
        check_loss(logs, state.global_step)
        step, now = state.global_step, time.monotonic()
        seconds = (now - self._last[1]) / max(1, step - self._last[0])
        self._last = (step, now)
        self._progress.update(step, stage="warm-up", figure=f"loss {float(logs['loss']):.3f}", seconds=seconds)


def _dataset(examples: Sequence[Example], frontend: PolicyFrontend, levels: int) -> Dataset:
    end = frontend.processor.tokenizer.eos_token
    rows: list[dict[str, Any]] = []
    for example in examples:
        boxes_px = np.array(example.target_boxes_px, dtype=np.float64).reshape(-1, 4)
        boxes_unit = px_to_unit(boxes_px, example.image_size_px)
        size = frontend.model_image_size_px(example.image_size_px)
        rows.append(
            {
                "images": [_picture(path) for path in (example.image_a_path, example.image_b_path)],
                "prompt": frontend.prompt,
                "completion": format_answer(boxes_unit, frontend.frame, size, levels) + end,
            }
        )
    return Dataset.from_list(rows).cast_column("images", ListOf(Image()))


def _picture(path: str) -> dict[str, Any]:
    """For `datasets`, which turns a picture as its tag says: the file, or its stored pixels where it has a tag."""
    return {"path": path, "bytes": untagged_png(path) if has_tag(path) else None}
