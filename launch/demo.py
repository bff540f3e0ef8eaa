"""`make demo`: train the shipped policy through all three stages, and show on held-out pairs what came of it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from dig_rl.config import load_config
from dig_rl.errors import DigRlError
from dig_rl.run_folder import move_aside
from dig_rl.summary import read_summary
from launch.arguments import add_overrides
from launch.terminal import end_with_message, run_part

CONFIG = "launch/configs/demo.toml"
UNSEEN_CONFIG = "launch/configs/data/unseen.toml"
UNSEEN = "data/unseen"
RUN = "demo"

NEXT = """
What to try next:
  open runs/demo/report.html                                   what it learned, with pictures
  make eval CHECKPOINT=runs/demo DATA=data/unseen              ask it about other pairs
  make tensorboard                                             the curves
  make train CONFIG={config} RUN=mine SET="learner.lr=1e-4"    change anything
  cp rewards/box_iou.py rewards/mine.py                        edit it, name it in a config: your own reward"""


def main() -> None:
    """Run the parts one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    add_overrides(parser)
    arguments = parser.parse_args()
    load_config([CONFIG], arguments.set)  # a mistake ends the demo before anything is drawn
    _make_writable("runs")
    summary = read_summary(Path("runs", RUN))
    if summary is not None and summary["status"] == "finished":
        print(f"the last demo is kept as {move_aside('runs', RUN)}")
    started = time.monotonic()
    for title, command in _parts(arguments.set):
        print(f"\n== {title}", flush=True)
        if code := run_part(*command):
            sys.exit(code)
    print(NEXT.format(config=CONFIG))
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes")


def _parts(overrides: list[str]) -> list[tuple[str, list[str]]]:
    settings = ["--config", CONFIG, *(["--set", *overrides] if overrides else [])]
    run = Path("runs", RUN)
    before, after = (str(run / "heldout" / f"predictions_{moment}.jsonl") for moment in ("before", "after"))
    return [
        ("1/4 new pairs, drawn by Blender", ["launch.data", "--config", UNSEEN_CONFIG, "--out", UNSEEN]),
        (
            "2/4 GRPO: single -> dual -> mixed, and greedy answers to held-out pairs before and after",
            ["launch.train", "--run", RUN, *settings],
        ),
        (
            "3/4 the same held-out pairs before (A) and after (B): is it better?",
            ["launch.compare", "--a", before, "--b", after, "--out", str(run / "comparison")],
        ),
        (
            "4/4 the trained policy on the pairs of part 1",
            ["launch.evaluate", "--checkpoint", str(run), "--data", UNSEEN, "--out", str(run / "unseen")],
        ),
    ]


def _make_writable(folder: str) -> None:
    probe = Path(folder, ".probe")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise DigRlError(f"cannot write to {probe.parent.resolve()}: {error}; make that folder writable") from None


if __name__ == "__main__":
    sys.exit(end_with_message(main, "make demo continues where it stopped"))
