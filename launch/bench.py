"""`make bench`: measure what this project claims to do well, each figure against a named alternative.

A benchmark is one function in `launch/benchmarks/` that returns a `Measurement`; name it in `BENCHMARKS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError
from launch.arguments import add_list, split_words
from launch.benchmarks.evaluation import eval_outside_vllm_share
from launch.benchmarks.measurement import Measurement, Request
from launch.benchmarks.rendering import (
    pairs_per_minute,
    render_memory_last_over_first,
    render_over_cycles,
    render_time_last_over_first,
)
from launch.benchmarks.scoring import pool_over_scorer, score_share_of_step, score_us_per_completion
from launch.benchmarks.training import (
    peak_logprob_mib,
    samples_per_s_vs_trl,
    shared_prefix_vs_plain,
    step_over_pure_compute,
)
from launch.terminal import end_with_message

BENCHMARKS: dict[str, Callable[[Request], Measurement]] = {
    "score_us_per_completion": score_us_per_completion,
    "pool_over_scorer": pool_over_scorer,
    "score_share_of_step": score_share_of_step,
    "samples_per_s_vs_trl": samples_per_s_vs_trl,
    "step_over_pure_compute": step_over_pure_compute,
    "shared_prefix_vs_plain": shared_prefix_vs_plain,
    "peak_logprob_mib": peak_logprob_mib,
    "eval_outside_vllm_share": eval_outside_vllm_share,
    "pairs_per_minute": pairs_per_minute,
    "render_over_cycles": render_over_cycles,
}
LONG_BENCHMARKS: dict[str, Callable[[Request], Measurement]] = {
    "render_time_last_over_first": render_time_last_over_first,
    "render_memory_last_over_first": render_memory_last_over_first,
}
"""For `make bench-long`: many minutes each."""


def main() -> None:
    """Parse arguments, measure, print, and write after each figure."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    add_list(parser, "--only", "some of them (ONLY=)", split_words, "NAME")
    parser.add_argument("--long", action="store_true", help="those that take many minutes (make bench-long)")
    parser.add_argument("--run", help="finished run that shares are read from (RUN=; default: a tiny one is made)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    arguments = parser.parse_args()
    offered = LONG_BENCHMARKS if arguments.long else BENCHMARKS
    names = arguments.only or list(offered)
    unknown = [name for name in names if name not in offered]
    if unknown:
        raise ConfigError(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(offered)}")
    path = arguments.runs_dir / "bench" / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    request = Request(runs_dir=arguments.runs_dir, run=arguments.run)
    for name in names:
        entry = as_entry(name, offered[name](request), arguments.run)
        write_durably(path, json.dumps(_with(_read(path), entry), indent=2) + "\n")
        print(describe(entry), flush=True)
    print(f"written to {path}")


def as_entry(name: str, measured: Measurement, run: str | None = None) -> dict[str, Any]:
    """One entry of `bench.json`."""
    target = "bench-long" if name in LONG_BENCHMARKS else "bench"
    command = f'make {target} ONLY="{name}"' + (f" RUN={run}" if run else "")
    return {
        "name": name,
        "value": measured.value,
        "unit": measured.unit,
        "versus": measured.versus,
        "ratio": measured.ratio,
        "aim": measured.aim,
        "holds": measured.holds,
        "command": command,
    }


def describe(entry: dict[str, Any]) -> str:
    """One line for the terminal."""
    verdict = "holds" if entry["holds"] else "MISSED"
    figure = f"{entry['name']} {entry['value']:.4g} {entry['unit']} ({entry['ratio']:.3g} of: {entry['versus']})"
    return f"{figure}; aim {entry['aim']}: {verdict}"


def _with(entries: Sequence[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Other figures stay, so that a part can be measured again."""
    return [*(old for old in entries if old["name"] != entry["name"]), entry]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); remove it and measure again") from None


if __name__ == "__main__":
    sys.exit(end_with_message(main, "figures measured so far are kept"))
