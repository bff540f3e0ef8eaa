"""`make warmup`: supervised start of a policy on labelled pairs, before GRPO when it cannot answer yet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dig_rl.config import load_config
from dig_rl.data import load_examples
from dig_rl.errors import ConfigError
from dig_rl.overrides import override
from dig_rl.policy.build import SmallPolicyConfig, build_small_policy
from dig_rl.prompts import instruction
from dig_rl.warmup import warm_up
from launch.arguments import add_settings
from launch.next_steps import print_next, training_with
from launch.terminal import end_with_message

SMALL_POLICY = "policies/small"


def main() -> None:
    """Parse arguments, build the starting policy if it is ours and missing, train."""
    parser = argparse.ArgumentParser(prog="make warmup", description=__doc__)
    add_settings(parser)
    parser.add_argument("--out", help="folder to write (default: policy.path of the config)")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    out = Path(arguments.out or config.policy.path)
    if out.resolve() == Path(config.warmup.start).resolve():
        raise ConfigError(f"warmup.start and the folder to write are both {out}; name another with OUT= or policy.path")
    if config.warmup.start == SMALL_POLICY and not Path(SMALL_POLICY).exists():
        build_small_policy(SmallPolicyConfig(), [instruction("union", "norm1000")], SMALL_POLICY)
    examples = load_examples(
        config.data.path,
        config.data.train_split,
        allow_no_change=config.data.allow_no_change,
        box_target=config.data.box_target,
    )
    if others := sorted({"optimizer", "scheduler"} & config.learner.deepspeed.keys()):
        print(
            f"learner.deepspeed.{' and '.join(others)} is for make train alone: the warm-up has AdamW and a linear "
            f"decay from warmup.lr ({config.warmup.lr:g})"
        )
    losses = warm_up(config, examples, out)
    print(f"loss {losses['loss_first']:.3f} -> {losses['loss_last']:.3f} nats a token; policy written to {out}")
    print_next(training_with(arguments.config, [*arguments.set, override("policy.path", str(out))]))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was kept of this warm-up; the same command starts it again"))
