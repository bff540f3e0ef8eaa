"""`make demo`: train the shipped policy through all three stages, and show on held-out pairs what came of it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from dig_rl.config import load_config
from dig_rl.errors import DigRlError
from dig_rl.next_command import next_command
from dig_rl.run_folder import move_aside
from dig_rl.summary import read_summary
from launch.arguments import add_overrides
from launch.next_steps import new_run, reward_settings
from launch.terminal import end_with_message, run_part

CONFIG = "launch/configs/demo.toml"
UNSEEN_CONFIG = "launch/configs/data/unseen.toml"
UNSEEN = "data/unseen"
UNSEEN_SPLIT = "test"
RUN = "demo"
BEFORE, AFTER = (Path("runs", RUN, "heldout", f"predictions_{moment}.jsonl") for moment in ("before", "after"))

NEXT = """
What to try next:
  what it learned, with pictures: open runs/demo/report.html in a browser; the curves:
    {curves}
  ask it about pairs of one split that it was not measured on:
    {ask}
  change anything:
    {change}
  your own reward: edit a copy of rewards/box_iou.py, and see what it pays:
    {pay}"""


def main() -> None:
    """Run the parts one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    add_overrides(parser)
    arguments = parser.parse_args()
    config = load_config([CONFIG], arguments.set)  # a mistake ends the demo before anything is drawn
    _make_writable("runs")
    summary = read_summary(Path("runs", RUN))
    if summary is not None and summary["status"] == "finished":
        print(f"the last demo is kept as {move_aside('runs', RUN)}")
    started = time.monotonic()
    for title, command in _parts(arguments.set, config.data.heldout_split):
        if command[0] == "launch.compare" and not BEFORE.exists():
            print(f"\n== {title} Left out: this run answered no held-out pairs (data.heldout_split)", flush=True)
            continue
        print(f"\n== {title}", flush=True)
        if code := run_part(*command):
            sys.exit(code)
    print(NEXT.format(**next_commands()))
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes")


def _parts(overrides: list[str], heldout_split: str | None) -> list[tuple[str, list[str]]]:
    settings = ["--config", CONFIG, *(["--set", *overrides] if overrides else [])]
    run = Path("runs", RUN)
    split = [] if heldout_split == UNSEEN_SPLIT else ["--split", UNSEEN_SPLIT]  # else it is that of the run
    return [
        ("1/4 new pairs, drawn by Blender", ["launch.data", "--config", UNSEEN_CONFIG, "--out", UNSEEN]),
        (
            "2/4 GRPO: single -> dual -> mixed, and greedy answers to held-out pairs before and after",
            ["launch.train", "--run", RUN, *settings],
        ),
        (
            "3/4 the same held-out pairs before (A) and after (B): is it better?",
            ["launch.compare", "--a", str(BEFORE), "--b", str(AFTER), "--out", str(run / "comparison")],
        ),
        (
            "4/4 the trained policy on the pairs of part 1",
            ["launch.evaluate", "--checkpoint", str(run), "--data", UNSEEN, *split, "--out", str(run / "unseen")],
        ),
    ]


def next_commands() -> dict[str, str]:
    """What can be tried after the demo, each quoted for a shell."""
    return {
        "curves": next_command("tensorboard"),
        "ask": next_command("eval", CHECKPOINT=f"runs/{RUN}", SPLIT="validation"),
        "change": next_command("train", CONFIG=CONFIG, RUN=new_run("mine"), SET={"learner.lr": 2e-4}),
        "pay": next_command("reward-report", SET=reward_settings("rewards/box_iou.py:box_iou", {})),
    }


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
