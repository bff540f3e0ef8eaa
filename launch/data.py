"""Render a data folder of image pairs: `make data CONFIG= OUT= COUNT= WORKERS=`.

Stop it whenever you like: finished pairs are kept, and the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from pathlib import Path

from dig_rl.datagen.build import build_dataset
from dig_rl.datagen.display import BuildDisplay
from dig_rl.datagen.recipe import load_recipe
from dig_rl.datagen.renderers import open_renderer
from dig_rl.errors import DigRlError

CORES = os.cpu_count() or 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.data", description=__doc__)
    parser.add_argument("--config", default="launch/configs/data/demo.toml", help="recipe, TOML (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="data folder (default: data/<name of the recipe>)")
    parser.add_argument(
        "--count", type=int, help="pairs over all splits, in the recipe's proportions (default: its own)"
    )
    parser.add_argument(
        "--workers", type=int, default=CORES, help="renderers at work at one time (default: one a core, %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    options = read_options()
    out, workers = options.out or Path("data") / Path(options.config).stem, max(1, options.workers)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped like Ctrl-C
    display = BuildDisplay()
    try:
        recipe = load_recipe(options.config, options.count)
        make = functools.partial(open_renderer, recipe, threads=max(1, CORES // workers))
        with display:
            worked = build_dataset(recipe, out, make_renderer=make, workers=workers, on_progress=display.update)
    except KeyboardInterrupt:
        print(f"stopped with {display.state} pairs finished; the same command goes on from there", file=sys.stderr)
        return 130
    except DigRlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    how = f"made {display.made_here} at {display.pairs_per_minute:.0f} a minute" if worked else "already complete"
    print(f"{out}: {recipe.num_pairs} pairs, {how}. Next: make train")
    return 0


if __name__ == "__main__":
    sys.exit(main())
