"""What of a policy is trained: all of it, all but frozen parts, or low-rank adapters beside frozen weights.

Adapters are peft's. Outside of the learner nobody knows of them: weights leave it merged, under Hugging Face names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import Linear as LoraLinear
from transformers import PreTrainedModel

from dig_rl.config import Config, LoraConfig
from dig_rl.errors import CheckpointError
from dig_rl.policy.targets import adapted_modules, part_of


def prepare_for_training(model: PreTrainedModel, config: Config) -> PreTrainedModel:
    """Freeze what is not trained, and add adapters if asked for; the seed fixes how these begin, on every rank alike.

    Raises:
        ConfigError: `learner.lora.targets` stands for a module that cannot get an adapter.
    """
    learner = config.learner
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in learner.freeze)
    if learner.lora is not None:
        lora = learner.lora
        peft_config = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=adapted_modules(model, learner),
            init_lora_weights=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model.add_adapter(peft_config)
    return model.train()


@contextlib.contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """The model as it was before adapters were added."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def merged_parameters(model: PreTrainedModel) -> Iterator[tuple[str, list[torch.nn.Parameter], LoraLinear | None]]:
    """Every weight of the plain model: its Hugging Face name, the parameters it is made of, and its adapter if any.

    What is tied is what shares a parameter, whatever flags a config carries: it comes once, under its first name.
    """
    seen: set[torch.nn.Parameter] = set()
    for module_name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            adapter = [layer["default"].weight for layer in (module.lora_A, module.lora_B)]
            for name, parameter in module.base_layer.named_parameters():
                is_adapted = name == "weight"
                parts = [parameter, *adapter] if is_adapted else [parameter]
                yield f"{module_name}.{name}", parts, module if is_adapted else None
        elif ".base_layer" not in f".{module_name}" and ".lora_" not in f".{module_name}":
            for name, parameter in module.named_parameters(recurse=False):
                if parameter not in seen:
                    yield f"{module_name}.{name}".lstrip("."), [parameter], None
                seen.add(parameter)


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Further names of weights that have several, each with the first."""
    first: dict[torch.nn.Parameter, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: known for name, parameter in named if (known := first.setdefault(parameter, name)) != name}


def merged_state(weights: dict[str, torch.Tensor], lora: LoraConfig | None) -> dict[str, torch.Tensor]:
    """The weights of the plain model from those of a model with adapters, by name; without adapters they stay.

    Raises:
        CheckpointError: there are adapters on something else than linear layers; earlier versions trained them.
    """
    if lora is None:
        return weights
    merged, unmergeable = {}, []
    for name, weight in weights.items():
        module, is_base, rest = name.partition(".base_layer.")
        if is_base and rest == "weight":
            down, up = (weights.get(f"{module}.lora_{part}.default.weight") for part in "AB")
            if down is None or up is None or not _fits(weight, down, up, lora.rank):
                unmergeable.append(module)
                continue
            weight = _merged(weight, down, up, lora.alpha / lora.rank)
        if ".lora_" not in name:
            merged[name.replace(".base_layer.", ".")] = weight
    if unmergeable:
        raise CheckpointError(
            f"the checkpoint has adapters on {', '.join(unmergeable)}, which cannot be merged: only those on linear "
            f"layers can, of rank {lora.rank} as the run's config says. Start a new RUN with other learner.lora.targets"
        )
    return merged


def merged_value(parts: list[torch.nn.Parameter], adapter: LoraLinear | None) -> torch.Tensor:
    """A weight with its adapter added in; parts that ZeRO has spread must be gathered."""
    base = parts[0].detach()
    if adapter is None:
        return base
    _, down, up = parts
    return _merged(base, down.detach(), up.detach(), adapter.scaling["default"])


def _fits(base: torch.Tensor, down: torch.Tensor, up: torch.Tensor, rank: int) -> bool:
    return base.ndim == 2 and up.shape == (base.shape[0], rank) and down.shape == (rank, base.shape[1])


def _merged(base: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float) -> torch.Tensor:
    """In float32 until it is rounded once, by a learner and by an export from its checkpoint alike."""
    return (base.float() + (up.float() @ down.float()) * scaling).to(base.dtype)
