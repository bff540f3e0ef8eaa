"""Peak memory of log-probabilities, large vocabulary: `python -m launch.benchmarks.logprob_memory TOKENS [naive]`.

A process of its own, because the peak of a process never falls. Prints MiB above weights and inputs.
"""

from __future__ import annotations

import resource
import sys

import torch

from dig_rl.algo.logprobs import LogprobHead
from dig_rl.config import LearnerConfig

VOCABULARY, HIDDEN = 152_000, 64


def measure(num_tokens: int, *, naive: bool) -> float:
    """MiB that one forward and backward pass adds to the peak."""
    lm_head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(num_tokens, HIDDEN, requires_grad=True)
    target = torch.randint(0, VOCABULARY, (num_tokens,))
    head = LogprobHead(lm_head, torch.zeros(VOCABULARY), LearnerConfig().logprob_chunk_tokens)
    head(hidden[:1], target[:1], 1.0)[0].sum().backward()  # libraries and gradients have their place by now
    before = _peak_kib()
    if naive:
        torch.log_softmax(lm_head(hidden), -1).gather(-1, target[:, None]).sum().backward()
    else:
        head(hidden, target, 1.0)[0].sum().backward()
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(measure(int(sys.argv[1]), naive="naive" in sys.argv[2:]))
