"""DeepSpeed's config table, for the learner and for the supervised warm-up alike."""

from __future__ import annotations

from typing import Any

from dig_rl.config import Config


def learner_table(config: Config, world_size: int) -> dict[str, Any]:
    """What dig-rl fills in, under what `learner.deepspeed` says."""
    learner = config.learner
    table: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        # Any number of forward and backward passes may precede a step; the loss carries its own divisor.
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            # On the CPU torch's own AdamW needs no compiled extension.
            "params": {"lr": learner.lr, "weight_decay": learner.weight_decay, "torch_adam": learner.num_gpus == 0},
        },
        # Without ZeRO, DeepSpeed reports no gradient norm in float32.
        "zero_optimization": {"stage": 1},
        "steps_per_print": 1 << 30,
    }
    if config.policy.dtype == "bfloat16":
        table["bf16"] = {"enabled": True}
    return table | learner.deepspeed


def trainer_table(config: Config) -> dict[str, Any]:
    """The same for a Hugging Face trainer, which fills in every "auto" and brings an optimiser and a schedule."""
    table: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "steps_per_print": 1 << 30,
    }
    own = {"optimizer", "scheduler", *table} - {"zero_optimization"}
    table |= {key: value for key, value in config.learner.deepspeed.items() if key not in own}
    if table["zero_optimization"].get("stage") == 3:
        whole = {"stage3_gather_16bit_weights_on_model_save": True}
        table["zero_optimization"] = table["zero_optimization"] | whole
    return table
