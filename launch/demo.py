"""`make demo`: render pairs, warm a small policy up, train it through all three stages, show what came of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from dig_rl.config import Config, load_config
from dig_rl.errors import DigRlError
from dig_rl.run_folder import move_aside
from dig_rl.summary import read_summary
from launch.terminal import end_with_message

CONFIG = "launch/configs/demo.toml"
DATA_CONFIG = "launch/configs/data/demo.toml"
RUN = "demo"

NEXT = """
What to try next:
  open runs/demo/report.html                                   what it learned, with pictures
  make tensorboard                                             the curves
  make train CONFIG={config} RUN=mine SET="learner.lr=1e-4"    change anything
  cp rewards/box_iou.py rewards/mine.py                        edit it, name it in a config: your own reward"""


def main() -> None:
    """Run the parts one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config (SET=)")
    arguments = parser.parse_args()
    config = load_config([CONFIG], arguments.set)
    _make_writable("runs")
    summary = read_summary(Path("runs", RUN))
    if summary is not None and summary["status"] == "finished":
        print(f"the last demo is kept as {move_aside('runs', RUN)}")
    started = time.monotonic()
    for title, command in _parts(config, arguments.set):
        print(f"\n== {title}", flush=True)
        _run([sys.executable, "-m", *command])
    print(NEXT.format(config=CONFIG))
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes")


def _parts(config: Config, overrides: list[str]) -> list[tuple[str, list[str]]]:
    settings = ["--config", CONFIG, *(["--set", *overrides] if overrides else [])]
    parts = [
        ("1/3 image pairs, rendered by Blender", ["launch.data", "--config", DATA_CONFIG, "--out", config.data.path]),
        ("2/3 supervised warm-up, so that the policy can answer at all", ["launch.warmup", *settings]),
        (
            "3/3 GRPO: single -> dual -> mixed, and greedy answers before and after",
            ["launch.train", "--run", RUN, *settings],
        ),
    ]
    if Path(config.policy.path, "config.json").exists():
        print(f"policy {config.policy.path} is there already; remove that folder to warm up anew")
        del parts[1]
    return parts


def _make_writable(folder: str) -> None:
    probe = Path(folder, ".probe")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise DigRlError(f"cannot write to {probe.parent.resolve()}: {error}; make that folder writable") from None


def _run(command: list[str]) -> None:
    child = subprocess.Popen(command)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()  # it stops its own actors and renderers
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)  # it has said why


if __name__ == "__main__":
    sys.exit(end_with_message(main, "make demo continues where it stopped"))
