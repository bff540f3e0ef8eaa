"""Which modules get an adapter: plain linear layers alone, found from the model's structure before weights are loaded.

A weight that an adapter changes is merged before it leaves the learner. That is done for linear layers and for nothing
else, so an adapter on a convolution, an embedding or a norm would be trained and then lost.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

import torch

from dig_rl.config import Config, LearnerConfig
from dig_rl.errors import ConfigError

PROJECTOR_PARTS = ("merger.", "deepstack_merger_list.")
"""Modules of Qwen's vision tower that turn its features into image tokens."""

_NUM_NAMED = 3
"""Modules that a message names before it counts the rest."""

_log = logging.getLogger(__name__)


def part_of(name: str) -> str:
    """`vision`, `projector` or `text`: the part of a Qwen-VL model that a module or parameter is in, by its name."""
    _, in_vision, rest = f"{name}.".partition("visual.")
    if not in_vision:
        return "text"
    return "projector" if rest.startswith(PROJECTOR_PARTS) else "vision"


def check_targets(config: Config) -> None:
    """Refuse adapters that cannot be trained, synced and exported; without adapters nothing is opened.

    Raises:
        ConfigError: as `adapted_modules`.
        PolicyError: the policy's config cannot be opened.
    """
    lora = config.learner.lora
    if lora is None:
        return
    from dig_rl.policy.load import load_structure  # transformers takes seconds, which other runs need not wait for

    names = adapted_modules(load_structure(config.policy), config.learner)
    parts = Counter(part_of(name) for name in names)
    told = ", ".join(f"{count} of {part}" for part, count in parts.items())
    _log.info("adapters of rank %d on %d linear layers: %s", lora.rank, len(names), told)


def adapted_modules(model: torch.nn.Module, learner: LearnerConfig) -> list[str]:
    """The linear layers that `learner.lora.targets` stand for.

    A target is the last part of a module's name, or several with dots. If the text model has such modules, it stands
    for these alone, otherwise for the vision tower's and the projector's. Frozen parts get no adapter.

    Args:
        model: of the policy's architecture; weights are not looked at.
        learner: with a `lora` table.

    Returns:
        Full names, in the model's order.

    Raises:
        ConfigError: a target stands for no module, for frozen ones alone, or for one that is no plain linear layer.
    """
    assert learner.lora is not None
    modules = dict(model.named_modules())
    fitting = {name for name, module in modules.items() if _is_plain_linear(model, module)}
    chosen: set[str] = set()
    faults = []
    for target in learner.lora.targets:
        meant = _matches(target, modules)
        kept = [name for name in meant if part_of(name) not in learner.freeze]
        unfit = [name for name in kept if name not in fitting]
        if not meant:
            faults.append(f"{target!r} names no module of {type(model).__name__}")
        elif not kept:
            faults.append(f"{target!r} names modules of frozen parts alone: {_listed(meant)}")
        elif unfit:
            kinds = ", ".join(sorted({type(modules[name]).__name__ for name in unfit}))
            faults.append(f"{target!r} names {_listed(unfit)} ({kinds}){_narrower(target, kept, fitting, modules)}")
        chosen.update(kept)
    if faults:
        usable = sorted({name.rpartition(".")[2] for name in fitting if part_of(name) not in learner.freeze})
        raise ConfigError(
            f"learner.lora.targets: adapters go on linear layers that are not frozen. {'; '.join(faults)}. Last parts "
            f"of names that can be targets here: {', '.join(usable)}; longer ends with dots narrow them down"
        )
    return [name for name in modules if name in chosen]


def _is_plain_linear(model: torch.nn.Module, module: torch.nn.Module) -> bool:
    """Log-probabilities are taken from the output head's weight directly, so it stays plain."""
    return type(module) is torch.nn.Linear and module is not getattr(model, "lm_head", None)


def _matches(target: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if f".{name}".endswith(f".{target}")]
    return [name for name in found if part_of(name) == "text"] or found


def _narrower(target: str, kept: list[str], fitting: set[str], names: Iterable[str]) -> str:
    """Advice: longer ends of names that leave the modules out that do not fit."""
    num_parts = target.count(".") + 2
    longer = {".".join(name.split(".")[-num_parts:]) for name in kept if name in fitting}
    sound = sorted(end for end in longer if fitting.issuperset(_matches(end, names)))
    return f", write {' or '.join(map(repr, sound))} to leave that out" if sound else ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
