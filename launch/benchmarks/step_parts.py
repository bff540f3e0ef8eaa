"""What `make bench` times in a process of its own: `python -m launch.benchmarks.step_parts PART FOLDER KEY=VALUE ...`.

PART is `generate` (vLLM alone), `learn` (forward and backward passes and Adam in plain PyTorch, no Ray, no DeepSpeed)
or `trl` (whole steps of TRL's `GRPOTrainer`). FOLDER holds `policy/`. Prints seconds of each step as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dig_rl.config import Config, load_config
from dig_rl.data import load_examples
from dig_rl.types import Example
from launch.benchmarks.spread_reward import spread_of

CONFIG = "launch/configs/bench.toml"
NUM_STEPS = 6
ANSWERS = "answers.json"


def config_of(folder: Path, *settings: str) -> Config:
    """The benchmark's config with the policy of `folder`."""
    return load_config([CONFIG], [f"policy.path={json.dumps(str(policy_of(folder)))}", *settings])


def policy_of(folder: Path) -> Path:
    """Where the policy is."""
    return folder / "policy"


def pairs_of(config: Config) -> list[Example]:
    """Pairs for one step, with few and with many changes, as a step of training has them."""
    examples, wanted = load_examples(config.data.path, config.data.train_split), config.rollout.prompts_per_step
    return examples[:: len(examples) // wanted][:wanted]


def generate(config: Config, folder: Path) -> list[float]:
    """Seconds of sampling alone; caches are emptied between steps, as training does when weights change.

    The last answers are kept in `folder` for `learn`.
    """
    from dig_rl.actors.rollout_worker import RolloutWorker

    worker, examples, seconds, groups = RolloutWorker(config), pairs_of(config), [], []
    for step in range(NUM_STEPS):
        worker.reset_caches()
        started = time.perf_counter()
        groups = worker.sample_groups(examples, [1000 * step + 50 * index for index in range(len(examples))])
        seconds.append(time.perf_counter() - started)
    (folder / ANSWERS).write_text(json.dumps([[one.token_ids for one in group.completions] for group in groups]))
    return seconds


def learn(config: Config, folder: Path) -> list[float]:
    """Seconds of reference, forward and backward passes, clipping and Adam, on the answers that `generate` kept."""
    import torch

    from dig_rl.algo.aggregation import aggregate
    from dig_rl.algo.batch import TrainingGroup
    from dig_rl.algo.loss import policy_loss
    from dig_rl.algo.packing import micro_batches, pack
    from dig_rl.policy.load import load_frontend, load_model
    from dig_rl.policy.scorer import PolicyScorer

    torch.set_num_threads(config.learner.num_threads)
    frontend = load_frontend(config.policy, config.data.box_target)
    policy = PolicyScorer(load_model(config.policy).train(), frontend, config)
    reference = PolicyScorer(load_model(config.policy), frontend, config)
    learner, rollout = config.learner, config.rollout
    groups = []
    for example, answers in zip(pairs_of(config), json.loads((folder / ANSWERS).read_text()), strict=True):
        prompt = tuple(frontend.encode(example)["input_ids"][0].tolist())
        tokens = tuple(map(tuple, answers))
        logprobs = tuple((-1.0,) * len(row) for row in tokens)
        advantages = tuple(np.random.default_rng(0).normal(size=len(tokens)).tolist())
        groups.append(TrainingGroup(example, prompt, tokens, logprobs, advantages))
    adam = torch.optim.AdamW(policy.parameters(), lr=learner.lr, weight_decay=learner.weight_decay)
    options: dict[str, Any] = {
        "num_completions": sum(len(group.completion_token_ids) for group in groups),
        "num_tokens": sum(group.num_completion_tokens for group in groups),
    }
    seconds = []
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        adam.zero_grad()
        for batch in micro_batches(
            groups, max_tokens=learner.micro_batch_tokens, shared_prefix=learner.shared_prefix, one_row=False
        ):
            packed = pack(batch)
            encoded = policy.encode(packed)
            with torch.no_grad():
                of_reference = reference(packed, encoded).logprobs_N
            now = policy(packed, encoded).logprobs_N
            before = packed.logprobs_rollout_N
            terms = policy_loss(
                now, now.detach(), before, of_reference, packed.advantage_N, packed.completion_N, learner
            )
            aggregate(
                terms.loss_N,
                packed.token_weight_N,
                learner.loss,
                max_completion_tokens=rollout.max_completion_tokens,
                **options,
            ).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), learner.max_grad_norm)
        adam.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def trl(config: Config, settings: dict[str, Any], scratch: Path) -> list[float]:
    """Seconds of TRL's steps on the same pairs, with the same number of answers, tokens and threads."""
    import torch
    from datasets import Dataset, Image
    from datasets import Sequence as ListOf
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from dig_rl.policy.load import load_frontend, load_model
    from dig_rl.prompts import instruction

    torch.set_num_threads(max(config.rollout.num_threads, config.learner.num_threads))
    frontend = load_frontend(config.policy, config.data.box_target)
    text = instruction(config.data.box_target, frontend.frame)
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "images": [str(example.image_a_path), str(example.image_b_path)],
        }
        for example in pairs_of(config)
    ]
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [spread_of(messages[0]["content"]) for messages in completions]

    rollout, learner = config.rollout, config.learner
    trainer = GRPOTrainer(
        model=load_model(config.policy).train(),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(scratch),
            max_steps=4,
            num_generations=rollout.group_size,
            max_completion_length=rollout.max_completion_tokens,
            learning_rate=learner.lr,
            beta=learner.kl_coef,
            loss_type="grpo",
            use_vllm=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows).cast_column("images", ListOf(Image())),
        processing_class=frontend.processor,
        callbacks=[Clock()],
    )
    trainer.train()
    return np.diff(ends).tolist()


def main() -> None:
    """Measure one part."""
    part, folder, *options = sys.argv[1:]
    if part == "trl":
        values = dict(option.split("=", 1) for option in options)
        seconds = trl(config_of(Path(folder)), {key: json.loads(value) for key, value in values.items()}, Path(folder))
    else:
        seconds = {"generate": generate, "learn": learn}[part](config_of(Path(folder), *options), Path(folder))
    print("\n" + json.dumps(seconds))


if __name__ == "__main__":
    main()
