"""Render a data folder of image pairs: `make data CONFIG= OUT= COUNT= WORKERS= RAY=`.

Stop it whenever you like: finished pairs are kept, and the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from pathlib import Path

from dig_rl.datagen.build import MakePairs, fill_folder, make_pairs_in_threads
from dig_rl.datagen.display import BuildDisplay
from dig_rl.datagen.recipe import DataRecipe, load_recipe
from dig_rl.datagen.renderers import open_renderer
from dig_rl.errors import DigRlError
from dig_rl.next_command import next_command
from launch.next_steps import print_next

CORES = os.cpu_count() or 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.data", description=__doc__)
    parser.add_argument("--config", default="launch/configs/data/demo.toml", help="recipe, TOML (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="data folder (default: data/<name of the recipe>)")
    parser.add_argument(
        "--count", type=int, help="pairs over all splits, in the recipe's proportions (default: its own)"
    )
    parser.add_argument("--workers", type=int, help="renderers at work at one time (default: one a core)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="spread over a Ray cluster: host:port, auto, or local for a private one"
    )
    return parser.parse_args()


def choose_makers(recipe: DataRecipe, workers: int | None, ray: str | None) -> MakePairs:
    """Who renders: processes of this machine, or of every machine of a Ray cluster."""
    render = functools.partial(open_renderer, recipe)
    if ray:
        from dig_rl.actors.render_pool import make_pairs_on_ray  # a second's import that only this needs

        return functools.partial(make_pairs_on_ray, address=ray, make_renderer=render, workers=workers)
    here = workers or CORES
    render = functools.partial(render, threads=max(1, CORES // here))
    return functools.partial(make_pairs_in_threads, make_renderer=render, workers=here)


def main() -> int:
    options = read_options()
    out = options.out or Path("data") / Path(options.config).stem
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped like Ctrl-C
    display = BuildDisplay()
    try:
        recipe = load_recipe(options.config, options.count)
        workers = max(1, options.workers) if options.workers is not None else None
        make_pairs = choose_makers(recipe, workers, options.ray)
        with display:
            worked = fill_folder(recipe, out, make_pairs, display.update)
    except KeyboardInterrupt:
        print(f"stopped with {display.state} pairs finished; the same command goes on from there", file=sys.stderr)
        return 130
    except DigRlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    how = f"made {display.made_here} at {display.pairs_per_minute:.0f} a minute" if worked else "already complete"
    print(f"{out}: {recipe.num_pairs} pairs, {how}")
    print_next(next_command("data-check", DATA=out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
