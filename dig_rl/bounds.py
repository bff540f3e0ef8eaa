"""Types of config fields that an engine bounds: what it would refuse after minutes is refused at once."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

MAX_TEMPERATURE = 2.0
"""vLLM samples at none above."""
MIN_TEMPERATURE = 0.01
"""vLLM takes this one in place of a lower one, with which the learner would still compute."""


def _whole_from_one(number: float) -> float:
    if number > 1 and number != int(number):
        raise ValueError("Ray shares one GPU among actors, or gives an actor several whole ones")
    return number


def _ours_hold(table: dict[str, Any]) -> dict[str, Any]:
    if "model" in table:
        raise ValueError("model is policy.path, whose weights are trained; remove it here")
    if table.get("logprobs_mode", "processed_logprobs") != "processed_logprobs":
        raise ValueError(
            "logprobs_mode must be processed_logprobs: others are not those that a temperature samples from; remove it"
        )
    return table


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Also of numpy's old generators, which vLLM and the supervised trainer seed."""
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_from_one)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
"""The system waits for about 2,000,000 s at most."""
MemoryGib = Annotated[float, Field(gt=0, le=2**20)]
"""The system counts bytes in 63 bits."""
VllmTable = Annotated[dict[str, Any], AfterValidator(_ours_hold)]
