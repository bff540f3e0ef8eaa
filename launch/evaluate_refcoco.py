"""`make eval-refcoco`: Acc@0.5 of a policy on RefCOCO, RefCOCO+ and RefCOCOg, from a local copy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import PolicyFacts, Rollouts, launch_rollouts
from dig_rl.config import Config
from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError
from dig_rl.evaluation.grounding import Expression, JudgedExpression, grounding_figures, judge_expression
from dig_rl.evaluation.subset import lowest_hashes
from dig_rl.exchange.refcoco import STANDARD_EXPRESSIONS, SplitFile, find_splits
from dig_rl.types import Question
from launch.arguments import add_list, add_settings, split_words
from launch.checkpoints import SETTINGS_FILE, load_checkpoint_config
from launch.item_progress import item_progress
from launch.terminal import end_with_message

_ASKED_AT_ONCE = 512
"""Pictures in memory at one time."""


def main() -> None:
    """Parse arguments, read the splits, ask, judge, write, print."""
    parser = argparse.ArgumentParser(prog="make eval-refcoco", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="policy folder, run folder, or a checkpoint (CHECKPOINT=)")
    parser.add_argument("--from", required=True, type=Path, dest="root", help="local copy; see docs/benchmarks.md")
    add_list(parser, "--split", "refcoco_val ... refcocog_test (SPLIT=; default: all)", split_words)
    parser.add_argument(
        "--limit", type=int, help="so many expressions of a split, spread over it (LIMIT=), to try it out"
    )
    add_settings(parser)
    parser.add_argument("--out", type=Path, help="folder to write (OUT=; default: runs/eval/<checkpoint>-refcoco)")
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"LIMIT= must be at least 1, found {options.limit}; leave it out for every expression")
    config, description = load_checkpoint_config(options.checkpoint, options.config, options.set)
    chosen = choose_splits(find_splits(options.root), options.split)
    out = options.out or Path("runs", "eval", Path(options.checkpoint).name + "-refcoco")
    splits = {split.name: _spread_over(split.read(out / "pictures"), options.limit) for split in chosen}
    print(f"{options.checkpoint}: {description}", *map(_describe, splits.items()), sep="\n", flush=True)
    with Cluster(config.cluster, out / "logs", config.rollout.num_workers) as cluster:
        rollouts, policy = launch_rollouts(cluster, config)
        judged = {name: ask(rollouts, policy, expressions, config) for name, expressions in splits.items()}
    figures = {name: grounding_figures(rows) | {"standard": _is_standard(name, rows)} for name, rows in judged.items()}
    facts = {"source": f"{options.checkpoint}: {description}", "data": str(options.root)}
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in judged.items():
        lines = "".join(json.dumps(row.to_json()) + "\n" for row in rows)
        write_durably(out / f"predictions_{name}.jsonl", lines)
    write_durably(out / SETTINGS_FILE, config.model_dump_json(indent=2) + "\n")
    write_durably(out / "refcoco.json", json.dumps({"facts": facts, "splits": figures}, indent=2) + "\n")
    table = markdown_table(figures)
    write_durably(out / "refcoco.md", f"# RefCOCO: {options.checkpoint}\n\n{facts['source']}\n\n{table}")
    print(table)
    print(f"written to {out}: refcoco.md, refcoco.json and the answers")


def choose_splits(found: dict[str, SplitFile], wanted: list[str]) -> list[SplitFile]:
    """The splits that were asked for, or all that there are.

    Raises:
        ConfigError: one is none of the eight, or not in the copy.
    """
    for name in wanted:
        if name not in found:
            known = "is none of the eight splits" if name not in STANDARD_EXPRESSIONS else "is not in this copy"
            raise ConfigError(f"SPLIT={name} {known}; this copy has {', '.join(found)}")
    return [found[name] for name in wanted or found]


def ask(
    rollouts: Rollouts, policy: PolicyFacts, expressions: list[Expression], config: Config
) -> list[JudgedExpression]:
    """Ask a policy for every expression, and judge its answers."""
    judged: list[JudgedExpression] = []
    with item_progress("expressions") as show:
        for start in range(0, len(expressions), _ASKED_AT_ONCE):
            some = expressions[start : start + _ASKED_AT_ONCE]
            questions = [Question(one.question, one.image_path, one.image_size_px) for one in some]
            for expression, reply in zip(some, rollouts.ask(questions), strict=True):
                judged.append(
                    judge_expression(
                        expression,
                        reply.text,
                        thinking=config.policy.thinking,
                        frame=policy.frame,
                        model_image_size_px=reply.model_image_size_px,
                    )
                )
            show(len(judged), len(expressions))
    return judged


def markdown_table(figures: dict[str, dict[str, Any]]) -> str:
    """One line a split; says which are not the split that papers report."""
    lines = ["| split | Acc@0.5 | 95 % interval | answers with a box | expressions |", "|---|---|---|---|---|"]
    for name, one in figures.items():
        low_high = "-" if one["interval"] is None else "{:.1f} to {:.1f}".format(*(100 * x for x in one["interval"]))
        count = str(one["expressions"])
        if not one["standard"]:
            count += f" (the published split has {STANDARD_EXPRESSIONS[name]}: not comparable)"
        lines.append(f"| {name} | {100 * one['acc_50']:.1f} | {low_high} | {100 * one['read_rate']:.1f} % | {count} |")
    return "\n".join(lines) + "\n"


def _spread_over(expressions: list[Expression], limit: int | None) -> list[Expression]:
    """By the hash of their ids: those of one picture, and pictures of one kind, stand side by side in the file."""
    return [expressions[index] for index in lowest_hashes([one.expression_id for one in expressions], limit)]


def _is_standard(name: str, rows: list[JudgedExpression]) -> bool:
    return len(rows) == STANDARD_EXPRESSIONS[name]


def _describe(split: tuple[str, list[Expression]]) -> str:
    name, expressions = split
    return f"{name}: {len(expressions)} expressions (published: {STANDARD_EXPRESSIONS[name]})"


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
