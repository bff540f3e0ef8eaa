"""Errors of log-probabilities by the type of the logits: `python -m launch.benchmarks.head_precision [HIDDEN]`.

A bfloat16 head of Qwen3-VL's vocabulary with random weights, logits up to about 22. Prints, for logits in bfloat16 and
for those of `LogprobHead`, root mean square and largest error in nats against float64, and the mean k3 that a sampler
and a learner would report if one of them were exact.
"""

from __future__ import annotations

import json
import sys

import torch

from dig_rl.algo.logprobs import LogprobHead

VOCABULARY, TOKENS, SPREAD = 151_936, 64, 5.0


def measure(hidden_size: int, *, vocabulary: int = VOCABULARY, tokens: int = TOKENS) -> dict[str, dict[str, float]]:
    """Errors over tokens that are drawn from the exact distribution."""
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(hidden_size, vocabulary, bias=False, dtype=torch.bfloat16)
    torch.nn.init.normal_(lm_head.weight, std=SPREAD / hidden_size**0.5)
    hidden_NH = torch.randn(tokens, hidden_size).bfloat16()
    with torch.no_grad():
        parts = [hidden_NH.double() @ part.double().T for part in lm_head.weight.split(16_384)]
        exact_NV = torch.cat(parts, 1).log_softmax(-1)
        target_N = torch.multinomial(exact_NV.exp(), 1)[:, 0]
        exact_N = exact_NV.gather(1, target_N[:, None])[:, 0]
        logits_NV = (hidden_NH @ lm_head.weight.T).float()
        rounded_N = logits_NV.log_softmax(-1).gather(1, target_N[:, None])[:, 0]
        ours_N, _ = LogprobHead(lm_head, torch.zeros(vocabulary), 256)(hidden_NH, target_N, 1.0)
    return {"bfloat16": _errors(rounded_N, exact_N), "float32": _errors(ours_N, exact_N)}


def _errors(found_N: torch.Tensor, exact_N: torch.Tensor) -> dict[str, float]:
    error_N = found_N.double() - exact_N
    return {
        "rms": float(error_N.square().mean().sqrt()),
        "max": float(error_N.abs().max()),
        "k3": float((error_N.exp() - 1 - error_N).mean()),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if sys.argv[1:] else 2560)))
