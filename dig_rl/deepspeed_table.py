"""DeepSpeed's config table, for the learner and for the supervised warm-up alike."""

from __future__ import annotations

from typing import Any

from dig_rl.config import Config
from dig_rl.deepspeed_options import SCHEDULES, find_optimizer, without_auto
from dig_rl.errors import ConfigError
from dig_rl.layers import merge_tables
from dig_rl.precision import sums_table

_TRAINERS_OWN = (
    "optimizer",
    "scheduler",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "gradient_clipping",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
"""What the warm-up decides by itself, or takes from the learner's table into the trainer's arguments."""


def learner_table(config: Config, world_size: int) -> dict[str, Any]:
    """What `learner.deepspeed` says, key by key over what dig-rl fills in."""
    learner, stated = config.learner, without_auto(config.learner.deepspeed)
    table: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        # Any number of forward and backward passes may precede a step; the loss carries its own divisor.
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.max_grad_norm,
        "optimizer": _optimizer(config, stated.get("optimizer", {}).get("type", "AdamW")),
        # Without ZeRO, DeepSpeed reports no gradient norm in float32.
        "zero_optimization": {"stage": 1},
        "steps_per_print": 1 << 30,
    }
    merged = merge_tables(table | sums_table(config.policy.dtype), stated)
    if schedule := stated.get("scheduler"):
        peak = SCHEDULES[schedule["type"]].peak
        # A warm-up told None takes the rates that the optimiser's groups have; Muon may have two.
        rate = None if peak == "warmup_max_lr" else merged["optimizer"]["params"]["lr"]
        merged["scheduler"] = merge_tables({"params": {peak: rate} if peak else {}}, schedule)
    return merged


def _optimizer(config: Config, name: str) -> dict[str, Any]:
    # On the CPU torch's own AdamW needs no compiled extension.
    ours = {
        "lr": config.learner.lr,
        "weight_decay": config.learner.weight_decay,
        "torch_adam": config.learner.num_gpus == 0,
    }
    optimizer = find_optimizer(name)
    assert optimizer is not None, "the config was checked for it"
    return {"type": name, "params": {key: value for key, value in ours.items() if key in optimizer.takes}}


def with_schedule_length(config: Config, num_steps: int, *, is_bound: bool) -> Config:
    """The config with the number of updates written into a schedule of DeepSpeed's that needs it and has none.

    Args:
        config: the run.
        num_steps: training steps of the whole curriculum.
        is_bound: there may be fewer of them, since a stage may be promoted early.

    Raises:
        ConfigError: the number is not known before the run.
    """
    scheduler = without_auto(config.learner.deepspeed).get("scheduler", {})
    length = SCHEDULES[scheduler["type"]].length if scheduler else None
    if length is None or length in scheduler.get("params", {}):
        return config
    num_updates = num_steps * config.learner.num_epochs * config.learner.num_minibatches
    if is_bound:
        raise ConfigError(
            f"learner.deepspeed.scheduler.params.{length}: {scheduler['type']} needs the number of updates of the "
            f"whole run, which promotion rules of {config.curriculum} leave open; write it, at most {num_updates}"
        )
    filled_in = merge_tables(config.learner.deepspeed, {"scheduler": {"params": {length: num_updates}}})
    return config.model_copy(update={"learner": config.learner.model_copy(update={"deepspeed": filled_in})})


def trainer_table(config: Config) -> dict[str, Any]:
    """The same for a Hugging Face trainer, which fills in every "auto" and brings an optimiser and a schedule."""
    stated = {key: value for key, value in config.learner.deepspeed.items() if key not in _TRAINERS_OWN}
    zero = stated.pop("zero_optimization", {})
    stage = without_auto(zero).get("stage", 1)
    table: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero | {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
    if stage == 3:
        table["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return merge_tables(table, merge_tables(stated, {"bf16": {"enabled": "auto"}}))
