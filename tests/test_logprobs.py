"""Chunked log-probabilities: values and gradients of the whole softmax, in a fraction of its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dig_rl.algo.logprobs import LogprobHead
from launch.benchmarks.head_precision import measure
from tests.tiny import ROOT

BIAS = torch.zeros(50)
BIAS[3] = -100.0  # a banned token


def whole_softmax(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = torch.log_softmax((hidden @ weight.T + BIAS) / 0.7, dim=-1)
    return logprobs[torch.arange(len(target)), target], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 100])
def test_chunks_give_the_values_and_gradients_of_the_whole_softmax(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=False)
    hidden = torch.randn(30, 16, requires_grad=True)
    target = torch.randint(0, 50, (30,))
    target[5] = 3
    slopes = torch.randn(30, dtype=torch.float64)
    found_logprobs, found_entropy = LogprobHead(linear, BIAS, chunk_tokens)(hidden, target, 0.7)
    found = torch.autograd.grad((found_logprobs * slopes).sum(), [hidden, linear.weight])
    exact = [hidden.detach().double().requires_grad_(), linear.weight.detach().double().requires_grad_()]
    logprobs, entropy = whole_softmax(*exact, target)
    expected = torch.autograd.grad((logprobs * slopes).sum(), exact)
    torch.testing.assert_close(found_logprobs.double(), logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found_entropy.double(), entropy, atol=1e-5, rtol=0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=0)


def test_a_frozen_head_or_frozen_states_get_no_gradient() -> None:
    linear = torch.nn.Linear(16, 50, bias=False).requires_grad_(False)
    hidden, target = torch.randn(4, 16, requires_grad=True), torch.tensor([1, 2, 3, 4])
    head = LogprobHead(linear, BIAS, 3)
    head(hidden, target, 1.0)[0].sum().backward()
    assert hidden.grad is not None and linear.weight.grad is None
    linear.requires_grad_(True)
    head(hidden.detach(), target, 1.0)[0].sum().backward()
    assert linear.weight.grad is not None


def test_bfloat16_sums_the_weight_gradient_of_many_chunks_exactly_enough() -> None:
    """512 equal contributions: added up in bfloat16 they would stop counting at 256."""
    linear = torch.nn.Linear(2, 50, bias=False).bfloat16()
    with torch.no_grad():
        linear.weight.zero_()
    hidden, target = torch.ones(512, 2, dtype=torch.bfloat16), torch.ones(512, dtype=torch.int64)
    LogprobHead(linear, torch.zeros(50), 1)(hidden, target, 1.0)[0].sum().backward()
    gradient = linear.weight.grad
    assert gradient is not None and gradient[1, 0].item() == pytest.approx(512 * (1 - 1 / 50), rel=0.01)


@pytest.mark.parametrize("chunk_tokens", [7, 100])
def test_float32_is_bit_for_bit_the_plain_formula(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=False)
    hidden, target = torch.randn(30, 16, requires_grad=True), torch.randint(0, 50, (30,))
    slopes = torch.randn(30)
    found = LogprobHead(linear, BIAS, chunk_tokens)(hidden, target, 0.7)
    gradients = torch.autograd.grad((found[0] * slopes).sum(), [hidden, linear.weight])
    by_weight, starts = torch.zeros_like(linear.weight), range(0, 30, chunk_tokens)
    for chunk in (slice(start, start + chunk_tokens) for start in starts):
        with torch.no_grad():
            logits = (hidden[chunk] @ linear.weight.T).add_(BIAS).div_(0.7)
            total = logits.logsumexp(-1, keepdim=True)
            at_target = logits.gather(-1, target[chunk, None])
            by_logits = -(logits - total).exp()
            by_logits[torch.arange(len(by_logits)), target[chunk]] += 1
            by_logits *= (slopes[chunk] / 0.7)[:, None]
            by_weight += by_logits.T @ hidden[chunk]
            assert torch.equal(found[0][chunk], (at_target - total)[:, 0])
            assert torch.equal(found[1][chunk], total[:, 0] - ((logits - total).exp() * logits).sum(-1))
            assert torch.equal(gradients[0][chunk], by_logits @ linear.weight)
    assert torch.equal(gradients[1], by_weight)


def test_logits_of_a_real_vocabulary_are_not_rounded_to_bfloat16() -> None:
    errors = measure(32, tokens=12)
    assert errors["float32"]["max"] < 1e-4 and errors["float32"]["k3"] < 1e-8
    # What rounding costs, or this test would prove nothing.
    assert errors["bfloat16"]["rms"] > 0.02 and errors["bfloat16"]["k3"] > 1e-4


@pytest.mark.parametrize("columns", [16_384, 16, 50])
def test_bfloat16_gives_the_values_and_gradients_of_float64(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of a vocabulary of 50 words is in float32 at one time."""
    monkeypatch.setattr("dig_rl.algo.logprobs.COLUMNS", columns)
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=False).bfloat16()
    hidden, target = (4 * torch.randn(30, 16)).bfloat16().requires_grad_(), torch.randint(0, 50, (30,))
    slopes = torch.randn(30, dtype=torch.float64)
    found = LogprobHead(linear, BIAS, 7)(hidden, target, 0.7)
    gradients = torch.autograd.grad((found[0] * slopes).sum(), [hidden, linear.weight])
    exact = [hidden.detach().double().requires_grad_(), linear.weight.detach().double().requires_grad_()]
    logprobs, entropy = whole_softmax(*exact, target)
    torch.testing.assert_close(found[0].double(), logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1].double(), entropy, atol=1e-5, rtol=0)
    for one, other in zip(gradients, torch.autograd.grad((logprobs * slopes).sum(), exact), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - other).norm() / other.norm()) < 4e-3  # half of bfloat16's last digit, twice


def peak_mib(num_tokens: int) -> float:
    """Memory above weights and inputs of one forward and backward pass, with a vocabulary of 152,000."""
    command = [sys.executable, "-m", "launch.benchmarks.logprob_memory", str(num_tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
def test_memory_stays_in_bounds_and_hardly_grows_with_the_tokens() -> None:
    at_4096, at_8192 = peak_mib(4096), peak_mib(8192)
    assert at_4096 <= 768
    assert at_8192 <= 1.1 * at_4096
