"""A whole data folder with several renderers at work; the result does not depend on how many, nor on interruptions."""

from __future__ import annotations

import functools
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dig_rl.datagen.folder import BuildFolder, PackedPair, PairReceipt, pack_pair
from dig_rl.datagen.pairs import PairTask, make_pair, plan_pairs
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import Renderer
from dig_rl.errors import DataError

MakePairs = Callable[[Sequence[PairTask], DataRecipe], Generator[PackedPair, None, None]]
"""Makes pairs in any order, one at least; closing the generator stops all work on the rest."""


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is."""

    done: int
    """Finished pairs, those of earlier calls included."""
    total: int
    rejections: Counter[str]
    """Tries thrown away so far, by reason."""


def build_dataset(
    recipe: DataRecipe,
    out: Path,
    *,
    make_renderer: Callable[[], Renderer],
    workers: int = 1,
    on_progress: Callable[[BuildProgress], None] = lambda progress: None,
) -> bool:
    """Make a data folder, or finish one that was begun; each worker thread drives its own renderer.

    An interruption (KeyboardInterrupt) kills the renderers, keeps finished pairs and is passed on.

    Args:
        recipe: what to make.
        out: the folder; new, empty, or begun with the same recipe.
        make_renderer: gives a renderer for the recipe's picture size and samples.
        workers: renderers at work at one time.
        on_progress: called once at the start and after every pair.

    Returns:
        False when the folder was complete already and nothing was done.

    Raises:
        ConfigError: the folder belongs to another recipe, or the recipe cannot be satisfied.
        DataError: the folder holds something else, or cannot be written.
        RenderError: a renderer failed twice in a row.
    """
    make_pairs = functools.partial(make_pairs_in_threads, make_renderer=make_renderer, workers=workers)
    return fill_folder(recipe, out, make_pairs, on_progress)


def fill_folder(
    recipe: DataRecipe, out: Path, make_pairs: MakePairs, on_progress: Callable[[BuildProgress], None]
) -> bool:
    """Make a data folder of pairs that `make_pairs` makes, here or elsewhere; otherwise as `build_dataset`."""
    folder = BuildFolder(out, recipe)
    if folder.complete:
        folder.remove_work()
        return False
    tasks = plan_pairs(recipe)
    with folder:
        receipts = {task.pair_id: receipt for task in tasks if (receipt := folder.finished(task))}
        rejections: Counter[str] = Counter()
        for receipt in receipts.values():
            rejections.update(receipt.rejections)
        on_progress(BuildProgress(len(receipts), len(tasks), rejections))
        missing = [task for task in tasks if task.pair_id not in receipts]
        if missing:
            with closing(make_pairs(missing, recipe)) as made:
                for pair in made:
                    _refuse_other_renderer(pair.receipt, receipts, out)
                    folder.add(pair)
                    receipts[pair.receipt.record.pair_id] = pair.receipt
                    rejections.update(pair.receipt.rejections)
                    on_progress(BuildProgress(len(receipts), len(tasks), rejections))
        folder.finish([receipts[task.pair_id] for task in tasks])
    return True


def make_pairs_in_threads(
    tasks: Sequence[PairTask], recipe: DataRecipe, *, make_renderer: Callable[[], Renderer], workers: int
) -> Generator[PackedPair, None, None]:
    """Yield pairs as they are finished; closing the generator stops every worker and its renderer."""
    renderers = [make_renderer() for _ in range(max(1, min(workers, len(tasks))))]
    waiting: queue.SimpleQueue[PairTask] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    outcomes: queue.SimpleQueue[PackedPair | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work(renderer: Renderer) -> None:
        try:
            with closing(renderer):
                while not stop.is_set():
                    outcomes.put(pack_pair(make_pair(waiting.get_nowait(), recipe, renderer), renderer.version))
        except queue.Empty:
            return
        except BaseException as error:  # handed to the main thread, which raises it
            outcomes.put(error)

    threads = [threading.Thread(target=work, args=(renderer,), daemon=True) for renderer in renderers]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        stop.set()
        for renderer in renderers:
            renderer.interrupt()
        for thread in threads:
            thread.join()


def _refuse_other_renderer(new: PairReceipt, receipts: dict[str, PairReceipt], out: Path) -> None:
    """One folder is drawn by one version: two machines, or an upgrade between two calls, may differ."""
    old = next(iter(receipts.values()), new)
    if old.renderer != new.renderer:
        raise DataError(
            f"{out}: {new.record.pair_id} was drawn by {new.renderer}, {old.record.pair_id} by {old.renderer}; use one "
            "version everywhere (`make setup-blender`), or delete the folder and make it again"
        )
