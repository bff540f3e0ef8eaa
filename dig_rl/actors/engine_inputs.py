"""What vLLM feeds to the policy, taken from the engine itself: no second run of the preprocessing is involved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import vllm

from dig_rl.errors import PolicyError
from dig_rl.policy.checksums import policy_input
from dig_rl.types import PolicyInput


@contextlib.contextmanager
def watched_requests(engine: vllm.LLM) -> Iterator[list[Any]]:
    """The requests that reach the engine's scheduler meanwhile, in order, one for each completion.

    They hold the tensors that the encoder will be given, also where these come from vLLM's cache of processed pictures.
    """
    core = engine.llm_engine.engine_core.engine_core  # in this process
    add_request, requests = core.add_request, []

    def note(request: Any, *args: Any, **named: Any) -> Any:
        requests.append(request)
        return add_request(request, *args, **named)

    core.add_request = note
    try:
        yield requests
    finally:
        del core.add_request  # the class's own is back


def level_scale(engine: vllm.LLM) -> list[float]:
    """Factors and offsets by which the policy turns levels of the three channels into numbers; none if it does not.

    vLLM gives levels to the policies that can do so, which saves moving four times as many bytes.
    """
    return engine.collective_rpc(_level_scale)[0]


def _level_scale(worker: Any) -> list[float]:
    norm: Any = getattr(worker.get_model().visual, "input_norm", None)
    return [] if not hasattr(norm, "weight") else [*norm.weight.tolist(), *norm.bias.tolist()]


def inputs_of_requests(
    requests: Sequence[Any], num_samples: Sequence[int], level_scale: Sequence[float]
) -> list[PolicyInput]:
    """What each prompt's pictures were.

    Args:
        requests: one for each completion, those of a prompt side by side.
        num_samples: completions of each prompt.
        level_scale: of this engine.

    Raises:
        PolicyError: the engine did not take the pictures as tensors, in one request for each completion.
    """
    if len(requests) != sum(num_samples):
        raise PolicyError(
            f"expected {sum(num_samples)} requests in vLLM, found {len(requests)}: another version of it?"
        )
    inputs, first = [], 0
    for count in num_samples:
        features = sorted(requests[first].mm_features, key=lambda feature: feature.mm_position.offset)
        inputs.append(_policy_input([feature.data for feature in features], level_scale))
        first += count
    return inputs


def _policy_input(pictures: Sequence[Any], level_scale: Sequence[float]) -> PolicyInput:
    values = [picture.get_data() if picture is not None else {} for picture in pictures]
    if not all({"pixel_values", "image_grid_thw"} <= value.keys() for value in values):
        raise PolicyError(
            "expected pixel_values and image_grid_thw of each picture in vLLM's request, found "
            f"{[sorted(value) for value in values]}; sampler and learner cannot be compared: leave "
            "rollout.vllm.mm_processor_cache_type at its default"
        )
    pixel_values = torch.cat([value["pixel_values"] for value in values])
    grid = torch.stack([value["image_grid_thw"].reshape(3) for value in values])
    return policy_input(pixel_values, grid, level_scale if pixel_values.dtype == torch.uint8 else ())
