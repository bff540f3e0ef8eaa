"""A whole data folder with several renderers at work; the result does not depend on how many, nor on interruptions."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dig_rl.datagen.folder import BuildFolder, PairReceipt
from dig_rl.datagen.pairs import PairTask, make_pair, plan_pairs
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import Renderer


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
        renderers = [make_renderer() for _ in range(max(1, min(workers, len(missing))))]
        with closing(_make_pairs(missing, recipe, folder, renderers)) as made:
            for receipt in made:
                receipts[receipt.record.pair_id] = receipt
                rejections.update(receipt.rejections)
                on_progress(BuildProgress(len(receipts), len(tasks), rejections))
        folder.finish([receipts[task.pair_id] for task in tasks], renderers[0].version)
    return True


def _make_pairs(
    tasks: Sequence[PairTask], recipe: DataRecipe, folder: BuildFolder, renderers: Sequence[Renderer]
) -> Generator[PairReceipt, None, None]:
    """Yield receipts as pairs are finished; closing the generator stops every worker and its renderer."""
    waiting: queue.SimpleQueue[PairTask] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    outcomes: queue.SimpleQueue[PairReceipt | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work(renderer: Renderer) -> None:
        try:
            with closing(renderer):
                while not stop.is_set():
                    outcomes.put(folder.add(make_pair(waiting.get_nowait(), recipe, renderer)))
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
