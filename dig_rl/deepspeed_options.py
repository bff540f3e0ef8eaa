"""What `learner.deepspeed` may say, judged before anything loads; `dig_rl/deepspeed_table.py` makes the table of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

_AUTO = "auto"
"""A word of Hugging Face's trainer, which puts its own arguments in its place; DeepSpeed knows it in few tables."""

_OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""Together these say how many passes make an update, which depends on the rollouts here."""

_OFFLOADS = ("offload_optimizer", "offload_param")

_MAIN_KEYS = frozenset(
    {
        *_OURS,
        "managed_gradient_accumulation",
        "optimizer",
        "scheduler",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "gradient_clipping",
        "bf16",
        "fp16",
        "data_types",
        "torch_autocast",
        "activation_checkpointing",
        "communication_data_type",
        "steps_per_print",
        "wall_clock_breakdown",
    }
)
"""Keys of DeepSpeed's that change a run; it has further ones."""


class Optimizer(NamedTuple):
    """A type that DeepSpeed can build."""

    takes: frozenset[str]
    """Those of our parameters that it knows."""
    zero_knows: bool
    """DeepSpeed uses it under ZeRO without being told to."""
    on_cpu: Literal["always", "offloaded", "never"] = "always"
    """Whether it works on ranks without a GPU; of some DeepSpeed has a CPU kernel for offloaded states alone."""


class Schedule(NamedTuple):
    """A learning-rate schedule that DeepSpeed can build."""

    peak: str | None
    """Parameter that stands in place of the optimiser's rate; None where the schedule starts from that rate."""
    length: str | None = None
    """Parameter that counts the updates of the whole run."""
    required: tuple[str, ...] = ()
    """Parameters without any default."""
    zero_knows: bool = True
    """It takes an optimiser that ZeRO has wrapped."""


_RATE, _DECAYED = frozenset({"lr"}), frozenset({"lr", "weight_decay"})
_ADAM = Optimizer(_DECAYED | {"torch_adam"}, zero_knows=True)
_DEEPSPEED_OPTIMIZERS = {
    **dict.fromkeys(("adam", "adamw", "muon"), _ADAM),
    "adagrad": Optimizer(_DECAYED, zero_knows=True),
    "lion": Optimizer(_DECAYED, zero_knows=True, on_cpu="offloaded"),
    "lamb": Optimizer(_DECAYED, zero_knows=False, on_cpu="never"),
    **dict.fromkeys(("muadam", "muadamw", "musgd"), Optimizer(_DECAYED, zero_knows=False)),
}
"""By the name in lower case: DeepSpeed takes these in any case."""
_TORCH_OPTIMIZERS = {
    **dict.fromkeys(
        ("Adadelta", "Adafactor", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD"),
        Optimizer(_DECAYED, zero_knows=False),
    ),
    "Rprop": Optimizer(_RATE, zero_knows=False),
}

SCHEDULES = {
    "LRRangeTest": Schedule("lr_range_test_min_lr"),
    "OneCycle": Schedule("cycle_max_lr", required=("cycle_min_lr",)),
    "WarmupLR": Schedule("warmup_max_lr"),
    "WarmupDecayLR": Schedule("warmup_max_lr", length="total_num_steps"),
    "WarmupCosineLR": Schedule(None, length="total_num_steps"),
    # torch's own
    "ConstantLR": Schedule(None, zero_knows=False),
    "CosineAnnealingLR": Schedule(None, length="T_max", zero_knows=False),
    "CosineAnnealingWarmRestarts": Schedule(None, required=("T_0",), zero_knows=False),
    "CyclicLR": Schedule("max_lr", required=("base_lr",), zero_knows=False),
    "ExponentialLR": Schedule(None, required=("gamma",), zero_knows=False),
    "LinearLR": Schedule(None, zero_knows=False),
    "MultiStepLR": Schedule(None, required=("milestones",), zero_knows=False),
    "OneCycleLR": Schedule("max_lr", length="total_steps", zero_knows=False),
    "PolynomialLR": Schedule(None, zero_knows=False),
    "StepLR": Schedule(None, required=("step_size",), zero_knows=False),
}
"""By DeepSpeed's name of the type. Left out are those that need a function or a metric."""


def find_optimizer(name: object) -> Optimizer | None:
    """The optimiser of that type, if there is one that the learner can use."""
    return _DEEPSPEED_OPTIMIZERS.get(str(name).lower()) or _TORCH_OPTIMIZERS.get(str(name))


def without_auto(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without its keys of value "auto": what holds where a key is left out holds there."""
    return {
        key: without_auto(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value != _AUTO
    }


def names_a_rate(table: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed's own table decides on the learning rate: by a schedule, or by the optimiser's parameters."""
    stated = without_auto(table)
    params = stated.get("optimizer", {}).get("params", {})
    return bool(stated.get("scheduler")) or any(key == "lr" or key.endswith("_lr") for key in params)


def check_table(table: Mapping[str, Any], num_ranks: int, *, on_cpu: bool) -> None:
    """Refuse what DeepSpeed would refuse after everything has loaded, or drop in silence.

    Args:
        table: `learner.deepspeed`.
        num_ranks: of the learner.
        on_cpu: whether ranks have no GPU.

    Raises:
        ValueError: which key, what was expected and found, what to write.
    """
    _check_is_table(table, "optimizer", "optimizer.params", "scheduler", "scheduler.params", "zero_optimization")
    _check_is_table(table, "bf16", "fp16", "data_types")
    stated_zero = {key for key, value in table.get("zero_optimization", {}).items() if value not in (None, _AUTO)}
    _check_is_table(table, *(f"zero_optimization.{key}" for key in _OFFLOADS if key in stated_zero))
    _check_names(table)
    _check_auto(table)
    stated = without_auto(table)
    _check_passes(stated, num_ranks)
    zero = {"stage": 1} | stated.get("zero_optimization", {})
    if zero["stage"] not in (0, 1, 2, 3):
        raise ValueError(f"deepspeed.zero_optimization.stage: expected 0, 1, 2 or 3, found {zero['stage']!r}")
    if zero["stage"] < 2 and zero.get("overlap_comm"):
        raise ValueError(
            f"deepspeed.zero_optimization.overlap_comm: works from stage 2 on, found stage {zero['stage']} (1 where it "
            "is left out); set the stage, or leave overlap_comm out"
        )
    if zero.get("compute_grad_norm", True) is not True:
        raise ValueError(
            "deepspeed.zero_optimization.compute_grad_norm: expected true, found "
            f"{zero['compute_grad_norm']!r}; learner.max_grad_norm limits an update by that norm, and a gradient that "
            "is not finite shows in it; remove the key"
        )
    _check_optimizer(stated, zero, on_cpu)
    _check_schedule(stated, zero["stage"])


def _check_is_table(table: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value: Any = table
        for key in name.split("."):
            value = value.get(key, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"deepspeed.{name}: expected a table, found {value!r}")


def _check_names(table: Mapping[str, Any]) -> None:
    """DeepSpeed drops a key that it does not know in silence; here one is refused that is nearly one that matters."""
    for key in table.keys() - _MAIN_KEYS:
        if near := difflib.get_close_matches(key, _MAIN_KEYS, n=1, cutoff=0.85):
            raise ValueError(f"deepspeed.{key}: DeepSpeed has no such key; did you mean {near[0]}?")
    for name, known in (("optimizer", {"type", "params", "legacy_fusion"}), ("scheduler", {"type", "params"})):
        if strange := sorted(table.get(name, {}).keys() - known):
            raise ValueError(
                f"deepspeed.{name}.{strange[0]}: beside type and params DeepSpeed drops what the table holds; "
                f"write deepspeed.{name}.params.{strange[0]}"
            )


def _check_auto(table: Mapping[str, Any]) -> None:
    schedule = SCHEDULES.get(str(table.get("scheduler", {}).get("type")), Schedule(None))
    filled_in = {*_OURS, "gradient_clipping", "bf16.enabled", "fp16.enabled", "optimizer.type"}
    filled_in |= {f"scheduler.params.{key}" for key in (schedule.peak, schedule.length) if key}
    unknown = [
        key
        for key in _auto_keys(table)
        if key not in filled_in and not key.startswith(("optimizer.params.", "zero_optimization."))
    ]
    if unknown:
        raise ValueError(
            '"auto" is filled in by the trainer of Hugging Face, and here where dig-rl has a value (learning rate and '
            "its peak, weight decay, batch sizes, clipping, precision; under ZeRO it is DeepSpeed's default). It has "
            f"none for deepspeed.{', deepspeed.'.join(unknown)}: write a value, or leave the key out"
        )


def _auto_keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _auto_keys(value, f"{prefix}{key}.")
        elif value == _AUTO:
            yield f"{prefix}{key}"


def _check_passes(table: Mapping[str, Any], num_ranks: int) -> None:
    ours = dict(zip(_OURS, (num_ranks, 1, 1), strict=True)) | {"managed_gradient_accumulation": False}
    others = [key for key, value in ours.items() if table.get(key, value) != value]
    if others:
        raise ValueError(
            f"deepspeed.{others[0]}: how many passes make an update follows from the rollouts; remove the key. "
            "learner.num_minibatches sets the updates of a step, learner.micro_batch_tokens the size of a pass"
        )


def _check_optimizer(table: Mapping[str, Any], zero: Mapping[str, Any], on_cpu: bool) -> None:
    stage = zero["stage"]
    name = table.get("optimizer", {}).get("type", "AdamW")
    optimizer = find_optimizer(name)
    if optimizer is None:
        known = ", ".join([*_DEEPSPEED_OPTIMIZERS, *_TORCH_OPTIMIZERS])
        raise ValueError(f"deepspeed.optimizer.type: expected one of {known}, found {name!r}")
    if "max_grad_norm" in table.get("optimizer", {}).get("params", {}):
        raise ValueError("deepspeed.optimizer.params.max_grad_norm: no optimiser takes it; use learner.max_grad_norm")
    if stage and not optimizer.zero_knows and not table.get("zero_allow_untested_optimizer"):
        raise ValueError(
            f"deepspeed.optimizer.type: DeepSpeed has not tested {name} under ZeRO stage {stage}; "
            "set deepspeed.zero_allow_untested_optimizer = true, or zero_optimization.stage = 0"
        )
    is_offloaded = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    if on_cpu and (optimizer.on_cpu == "never" or (optimizer.on_cpu == "offloaded" and not is_offloaded)):
        way_out = ', set deepspeed.zero_optimization.offload_optimizer.device = "cpu"' if name.lower() == "lion" else ""
        raise ValueError(
            f"deepspeed.optimizer.type: DeepSpeed computes {name} on GPUs alone, found learner.num_gpus = 0; choose "
            f"another type{way_out}, or set num_gpus"
        )
    if name.lower() == "muon" and stage == 3 and zero.get("reduce_scatter", True):
        raise ValueError(
            "deepspeed.zero_optimization.reduce_scatter: Muon with stage 3 needs whole gradients, found true (which it "
            "is where it is left out); write false"
        )


def _check_schedule(table: Mapping[str, Any], stage: int) -> None:
    scheduler = table.get("scheduler", {})
    if not scheduler:
        return
    name = scheduler.get("type")
    if str(name) not in SCHEDULES:
        raise ValueError(f"deepspeed.scheduler.type: expected one of {', '.join(SCHEDULES)}, found {name!r}")
    if stage and not SCHEDULES[name].zero_knows:
        ours = ", ".join(known for known, schedule in SCHEDULES.items() if schedule.zero_knows)
        raise ValueError(
            f"deepspeed.scheduler.type: torch's {name} refuses the optimiser of ZeRO stage {stage}; choose one of "
            f"DeepSpeed's own ({ours}), or zero_optimization.stage = 0"
        )
    missing = [key for key in SCHEDULES[name].required if key not in scheduler.get("params", {})]
    if missing:
        raise ValueError(f"deepspeed.scheduler.params.{missing[0]}: {name} has no default for it; write it")
