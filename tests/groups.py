"""Training groups for tests of the learner: pictures of noise, answers of random tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import PolicyConfig
from dig_rl.policy.load import PolicyFrontend, load_frontend
from dig_rl.types import Example


def make_pair(folder: Path, size: tuple[int, int], seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    paths = []
    for name in ("a", "b"):
        path = folder / f"{size[0]}x{size[1]}-{seed}-{name}.png"
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return Example(f"pair-{seed}", paths[0], paths[1], size, ((1.0, 1.0, 9.0, 9.0),), ("color",), "train")


def make_group(frontend: PolicyFrontend, example: Example, lengths: list[int], seed: int = 0) -> TrainingGroup:
    rng = np.random.default_rng(seed)
    allowed = [t for t in range(len(frontend.processor.tokenizer)) if t not in frontend.banned_token_ids]
    completions = tuple(tuple(int(t) for t in rng.choice(allowed, length)) for length in lengths)
    prompt = tuple(frontend.encode(example)["input_ids"][0].tolist())
    rollout = tuple((-1.0,) * length for length in lengths)
    return TrainingGroup(example, prompt, completions, rollout, tuple(rng.normal(size=len(lengths)).tolist()))


def varied_groups(policy: Path, folder: Path) -> list[TrainingGroup]:
    """Images of different sizes, 1 to 16 completions, some cut off and some of one token; 23 in all."""
    frontend = load_frontend(PolicyConfig(path=str(policy)), "union")
    made = [((96, 64), [5, 12, 1, 20]), ((64, 64), [30, 3]), ((48, 80), [4] * 16), ((96, 64), [1])]
    groups = [
        make_group(frontend, make_pair(folder, size, seed), lengths, seed) for seed, (size, lengths) in enumerate(made)
    ]
    # About as likely under the policy as under the sampler.
    return [
        replace(group, logprobs_rollout=tuple((-6.0,) * len(row) for row in group.completion_token_ids))
        for group in groups
    ]


def tiny_group(lengths: list[int]) -> TrainingGroup:
    """A group that no policy ever sees."""
    example = Example("p", "a", "b", (32, 32), (), (), "train")
    rows = tuple((1,) * length for length in lengths)
    return TrainingGroup(example, (7, 7), rows, tuple((-1.0,) * length for length in lengths), (0.0,) * len(rows))
