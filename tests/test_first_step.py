"""The first step's checks, without engines; tests/test_engines.py has them with both."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dig_rl.errors import PolicyError
from dig_rl.first_step import compare_inputs
from dig_rl.policy.checksums import as_sampled, policy_input, tensors_sha256
from dig_rl.types import Example, Look, PolicyInput

GRID = torch.tensor([[1, 2, 4], [1, 2, 4]])
PIXELS = torch.arange(16.0 * 6).reshape(16, 6) / 100


def example(pair_id: str) -> Example:
    return Example(pair_id, f"/data/{pair_id}_a.png", f"/data/{pair_id}_b.png", (4, 2), (), (), "train")


def test_equal_pictures_pass_whatever_their_order_in_memory() -> None:
    transposed = PIXELS.T.contiguous().T
    assert policy_input(transposed, GRID.to(torch.int32)) == policy_input(PIXELS, GRID)
    pairs = {
        example("p0"): policy_input(PIXELS, GRID),
        replace(example("p0"), look=Look(mirror=True)): policy_input(-PIXELS, GRID),
    }
    compare_inputs(pairs, dict(reversed(pairs.items())))


OTHERS = {
    "one value": policy_input(PIXELS + torch.nn.functional.one_hot(torch.tensor(3), 6) * 1e-6, GRID),
    "another resize": policy_input(PIXELS[:8], torch.tensor([[1, 2, 2], [1, 2, 2]])),
    "a turn of equal size": policy_input(PIXELS.flip(0), GRID),
    "the grid alone": policy_input(PIXELS, torch.tensor([[1, 4, 2], [1, 2, 4]])),
    "the type": policy_input(PIXELS.to(torch.bfloat16), GRID),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_any_difference_is_found_and_named(other: PolicyInput) -> None:
    same = policy_input(PIXELS, GRID)
    sampled = {example("p0"): same, example("p1"): same, example("p2"): same}
    with pytest.raises(PolicyError) as caught:
        compare_inputs(sampled, sampled | {example("p1"): other})
    message = str(caught.value)
    assert message.startswith(
        "pair p1: sampler and learner see different pictures (1 of the 3 pairs of the first step)"
    )
    assert same.sha256[:16] in message and other.sha256[:16] in message and "16x6 float32 values" in message
    assert "x".join(map(str, other.shape)) in message and "/data/p1_b.png" in message


def processor_of(mean: float, std: float) -> SimpleNamespace:
    return SimpleNamespace(image_mean=[mean, 0.4, 0.5], image_std=[std, 0.25, 0.3], rescale_factor=1 / 255)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.48145466, 0.26862954)])
def test_levels_are_found_again_exactly(mean: float, std: float) -> None:
    """What a sampler has that gives the policy levels, from the learner's float32 numbers."""
    processor = processor_of(mean, std)
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(1, 768).repeat(16, 1)
    scaled = levels.reshape(16, 3, 256) / 255 - torch.tensor(processor.image_mean)[:, None]
    values = (scaled / torch.tensor(processor.image_std)[:, None]).reshape(16, 768)
    scale = [1 / 255 / std, 1 / 255 / 0.25, 1 / 255 / 0.3, -mean / std, -1.6, -0.5 / 0.3]
    sampled = policy_input(levels, GRID, torch.tensor(scale).tolist())  # as float32, as vLLM has them
    assert as_sampled(values, GRID, "uint8", processor) == sampled
    assert as_sampled(values, GRID, "uint8", processor_of(mean + 1e-3, std)) != sampled
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        assert as_sampled(values, GRID, name, processor) == policy_input(values.to(dtype), GRID)


def test_a_checksum_tells_types_and_shapes_apart() -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(8, dtype=torch.bfloat16)]
    assert len({tensors_sha256(tensor) for tensor in zeros}) == 4
    assert tensors_sha256(*zeros[:2]) != tensors_sha256(*zeros[1::-1])
    assert tensors_sha256(torch.tensor(1.5)) != tensors_sha256(torch.tensor([1.5]))
