"""Write a data folder in the layout of another tool: `make data-export FORMAT= DATA= OUT= CONFIG= ALLOW_NO_CHANGE=1`.

The folder appears when it is complete; stopped or failed, nothing is left. An existing folder is never overwritten.

coco: OUT/annotations/instances_<split>.json for pycocotools, file names relative to DATA; where a picture has a
turning tag, to OUT, which then has copies without tags
trl, easyr1: OUT/<split>.parquet with prompts, pictures and the truth that the reward functions of
dig_rl/adapters read
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dig_rl.config import DataConfig, load_config
from dig_rl.exchange.coco import export_coco
from launch.arguments import add_list, split_paths
from launch.item_progress import item_progress
from launch.terminal import end_with_message

NEXT = {
    "coco": 'pycocotools.coco.COCO("{out}/annotations/instances_{split}.json"), pictures in {pictures}',
    "trl": 'datasets.load_dataset("parquet", data_files="{out}/{split}.parquet", split="train"), docs/rewards.md',
    "easyr1": "data.train_files={out}/{split}.parquet data.prompt_key=problem data.answer_key=answer, docs/rewards.md",
}


def main() -> None:
    """Parse arguments, export, say how to open it."""
    parser = argparse.ArgumentParser(
        prog="make data-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", required=True, choices=NEXT, help="layout to write (FORMAT=)")
    parser.add_argument("--data", required=True, type=Path, help="data folder (DATA=)")
    parser.add_argument("--out", required=True, type=Path, help="folder to make (OUT=)")
    add_list(
        parser,
        "--config",
        "for trl and easyr1: TOML files whose policy.path gives the prompt's coordinates and the resize rule, and "
        "whose data.box_target and data.allow_no_change count (CONFIG=; default: coordinates in thousandths, boxes of "
        "both pictures)",
        split_paths,
    )
    parser.add_argument(
        "--allow-no-change",
        action="store_true",
        help="for trl and easyr1: take pairs without a change, too, as coco always does (ALLOW_NO_CHANGE=1)",
    )
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    with item_progress("pairs") as show:
        if options.format == "coco":
            pairs = export_coco(options.data, options.out, on_progress=show)
        else:
            # Imported here: `datasets` and, for a policy, transformers take seconds.
            from dig_rl.exchange.parquet import export_parquet

            asked = _asked_of(options.config) if options.config else {"box_target": DataConfig().box_target}
            asked |= {"allow_no_change": True} if options.allow_no_change else {}
            pairs = export_parquet(options.format, options.data, options.out, **asked, on_progress=show)
    print(f"{options.out}: {pairs} pairs")
    pictures = options.out if (options.out / "images").is_dir() else options.data
    print("open with: " + NEXT[options.format].format(out=options.out, split=next(iter(pairs)), pictures=pictures))


def _asked_of(files: list[str | Path]) -> dict:
    """What is taken, and what the prompt and the truth depend on, from a config and its policy."""
    from dig_rl.policy.load import load_frontend

    config = load_config(files)
    frontend = load_frontend(config.policy, config.data.box_target)
    return {
        "box_target": config.data.box_target,
        "allow_no_change": config.data.allow_no_change,
        "frame": frontend.frame,
        "model_image_size_px": frontend.model_image_size_px,
    }


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
