"""The smallest real run: rendered pairs, a warmed-up policy of 0.3 million parameters, and `make train` on them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dig_rl.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "launch" / "configs" / "tiny.toml"

# Lengths and orders of the engines' sums depend on the number of threads; exact repetition needs it fixed.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def build_tiny_policy(folder: Path) -> Path:
    """A Qwen3-VL of 0.3 million random parameters."""
    # Imported here: most tests need no transformers.
    from dig_rl.policy.build import SmallPolicyConfig, build_small_policy
    from dig_rl.prompts import instruction

    sizes = SmallPolicyConfig(
        text_hidden=64, text_layers=2, text_heads=2, vision_hidden=64, vision_layers=2, vision_heads=2
    )
    return build_small_policy(sizes, [instruction("union", "norm1000")], folder)


@dataclass(frozen=True)
class TinyWorld:
    """Folders that a tiny run reads."""

    data: Path
    policy: Path

    def overrides(self, *more: str) -> list[str]:
        """`SET` values that point the tiny config at these folders."""
        return [f'data.path="{self.data}"', f'policy.path="{self.policy}"', *more]

    def config(self, *more: str) -> Config:
        """The tiny config on these folders."""
        return load_config([CONFIG], self.overrides(*more))

    def train_command(self, runs_dir: Path, run: str, *more: str) -> list[str]:
        """Command line of a tiny training run."""
        settings = ["--config", str(CONFIG), "--set", *self.overrides(*more)]
        return [sys.executable, "-m", "launch.train", "--run", run, "--runs-dir", str(runs_dir), *settings]

    def train(self, runs_dir: Path, run: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        command = self.train_command(runs_dir, run, *more)
        return subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
