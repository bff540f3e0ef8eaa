"""What is not finite is found and named, and a run of it leaves what was healthy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dig_rl.algo.statistics import reduce_statistics
from dig_rl.errors import NotFiniteError
from dig_rl.finite import check_figures, check_loss, check_sampled, describe_end, describe_weights, not_finite
from dig_rl.policy.weights import examine_weights
from dig_rl.types import Completion, Example, SampledGroup

BROKEN = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


def test_only_metrics_count_and_what_is_absent_is_not_broken() -> None:
    line = {"step": 3, "stage": None, "a": None, "b": 1, "c": math.inf, "d": 0.0, "tracking/non_finite": 2}
    assert not_finite(line) == ["a", "c"]
    check_figures({"b": 0.0, "d": 1e38})


@BROKEN
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_warm_up_of_nan_ends(name: str, value: float) -> None:
    check_loss({"loss": 0.0, "grad_norm": 0.0, "eval_loss": math.nan}, 4)
    with pytest.raises(NotFiniteError, match=rf"^the warm-up's {name} is {value} at step 5: .*warmup\.lr"):
        check_loss({"loss": 1.0} | {name: value}, 5)


@BROKEN
def test_a_token_without_a_log_probability_is_named(value: float) -> None:
    example = Example("p-7", "/a.png", "/b.png", (96, 64), ((0.0, 0.0, 8.0, 8.0),), ("color",), "train")
    good = Completion((5, 6), (-1.0, 0.0), "", "stop", seed=0)
    group = SampledGroup(example, (1,), (good, good), 0, (96, 64), 0)
    check_sampled([group])
    bad = replace(group, completions=(good, replace(good, logprobs_rollout=(-1.0, value))))
    with pytest.raises(NotFiniteError, match=rf"token 1 is {value} \(the sampler, answer 1 to pair p-7\)"):
        check_sampled([group, bad])


@BROKEN
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("key", ["learner/ratio_max", "rollout/sequence_importance_min", "learner/entropy"])
def test_one_rank_is_enough(value: float, order: int, key: str) -> None:
    """Whichever comes first: Python's `max(1.0, nan)` is 1.0."""
    ranks = [{"tokens": 1.0, "learner/loss": 0.5, key: 1.0}, {"tokens": 1.0, "learner/loss": 0.5, key: value}]
    found = reduce_statistics(ranks[::order], 1)[key]
    if math.isnan(value) or key == "learner/entropy":
        assert not math.isfinite(found)
    else:
        assert found == (max if key.endswith("max") else min)(1.0, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_broken_weights_are_named_with_how_much_of_them(dtype: torch.dtype) -> None:
    healthy = {"a": torch.tensor([1.0, -3.0], dtype=dtype), "empty": torch.zeros(0), "ids": torch.tensor([1 << 40])}
    assert examine_weights(healthy.items()) == ([], (3.0, "a"))
    spoilt = {f"w{size}": torch.full((size,), math.nan, dtype=dtype) for size in range(1, 6)}
    spoilt["w2"][0], spoilt["w3"][0] = -math.inf, 0.0
    broken, largest = examine_weights((healthy | spoilt).items())
    assert broken == [
        "w1 (1 of 1 values)",
        "w2 (2 of 2 values)",
        "w3 (2 of 3 values)",
        "w4 (4 of 4 values)",
        *broken[4:],
    ]
    assert describe_weights(broken, largest) == f"Not finite: {', '.join(broken[:3])} and 2 other weights"
    assert describe_weights([], largest) == "All weights are finite; the largest value is 3, in a"


def parameter_of_zero_3(part: list[float], num_values: int) -> torch.nn.Parameter:
    """As DeepSpeed leaves it on one rank: empty, with the rank's part of its values."""
    weight = torch.nn.Parameter(torch.zeros(0))
    weight.ds_tensor, weight.ds_numel = torch.tensor(part), num_values
    weight.ds_tensor.ds_numel = len(part)
    return weight


def test_what_zero_3_keeps_beyond_a_weight_is_not_looked_at() -> None:
    """Seven values on two ranks, and two on three: the last part is partly, or wholly, memory as it was found."""
    tail = {"w": parameter_of_zero_3([1.0, 2.0, -3.0, math.nan], 7)}
    assert examine_weights(tail.items(), 1) == ([], (3.0, "w"))
    assert examine_weights(tail.items(), 0) == (["w (1 of 4 values)"], (0.0, "none"))
    beyond = {"w": parameter_of_zero_3([math.nan], 2)}
    assert examine_weights(beyond.items(), 2) == ([], (0.0, "none"))


def test_the_end_says_what_is_left() -> None:
    error = NotFiniteError("learner/loss is nan")
    assert describe_end(error, 0, "W", [], None) == (
        "stopped before the first step: learner/loss is nan. W. No checkpoint was made before; what came after is in "
        "no checkpoint."
    )
    assert describe_end(error, 9, "W", [8, 4], (4, 0.5)) == (
        "stopped after step 9: learner/loss is nan. W. Kept as they were: the checkpoints of steps 4, 8, of which 4 is "
        "the best; what came after is in no checkpoint."
    )
