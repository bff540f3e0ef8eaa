"""`make policy`: build a small Qwen3-VL with random weights as a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dig_rl.errors import ConfigError
from dig_rl.layers import build, read_toml
from dig_rl.next_command import next_command
from dig_rl.policy.build import SmallPolicyConfig, build_small_policy
from dig_rl.prompts import instruction
from launch.next_steps import print_next
from launch.terminal import end_with_message


def main() -> None:
    """Parse arguments and build."""
    parser = argparse.ArgumentParser(prog="make policy", description=__doc__)
    parser.add_argument("--config", help="TOML file with sizes (default: 3 million parameters)")
    parser.add_argument("--out", default="policies/small", help="folder to write")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if (out / "config.json").exists():
        raise ConfigError(f"{out} already holds a policy; choose another OUT=, or remove it first")
    sizes = build(
        SmallPolicyConfig, read_toml(arguments.config) if arguments.config else {}, arguments.config or "the defaults"
    )
    build_small_policy(sizes, [instruction("union", "norm1000")], out)
    print(f"policy written to {out}")
    print_next(next_command("warmup", OUT=out.with_name(f"{out.name}-warm"), SET={"warmup.start": str(out)}))


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was kept"))
