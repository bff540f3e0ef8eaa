"""What a curriculum would draw from a data folder: counted by stage, as tables and as a picture.

The draws are those of a run whose promotion rules never hold and whose rewards never say anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dig_rl.curriculum import Curriculum, Stage
from dig_rl.reporting.plots import INK, PALETTE
from dig_rl.types import Example

T = TypeVar("T")

_KIND_COLORS = dict(
    zip(("color", "shape", "size", "material", "add", "remove"), PALETTE, strict=True),
    move="#8a94a0",
    unknown="#cfd6dd",
)
_GREY = "#616e7c"
_MAX_COLUMNS = 150
"""A longer run is drawn in blocks of steps, each with the mean of its steps."""
_STYLE = {
    "axes.edgecolor": "#b8c2cc",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class DrawnStep:
    """Pairs of one step, counted by their number of changes."""

    own: Counter[int]
    replayed: Counter[int]


@dataclass(frozen=True)
class DrawnStage:
    """What one stage draws at its greatest length."""

    stage: Stage
    first_step: int
    """Counted from 1."""
    earliest_start: int
    """Steps of the run before the stage if promotion rules end all earlier ones as soon as they can."""
    num_pairs: int
    """Training pairs that fit the stage."""
    steps: list[DrawnStep] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """Changes by kind, over all drawn pairs."""
    distinct: set[str] = field(default_factory=set)
    """Ids of the stage's own pairs that were drawn."""

    @property
    def fewest_steps(self) -> int:
        """Steps after which the promotion rule may end the stage; its length where there is none."""
        rule = self.stage.promotion
        return min(rule.earliest_step, len(self.steps)) if rule else len(self.steps)

    @property
    def earliest_end(self) -> int:
        """Steps of the run after which the stage may end, if promotion rules end stages as soon as they can."""
        if self.stage.until_step is not None and self.stage.promotion is None:
            return self.stage.until_step
        return self.earliest_start + self.fewest_steps

    @property
    def most_steps(self) -> int:
        """Steps of the stage if those before it end as early, and it as late, as they can."""
        if self.stage.until_step is None:
            return len(self.steps)
        return self.stage.until_step - self.earliest_start

    @property
    def by_count(self) -> Counter[int]:
        """Pairs drawn, replayed ones too, by number of changes."""
        return _total(step.own + step.replayed for step in self.steps)

    @property
    def num_own(self) -> int:
        """Pairs drawn of the stage's own."""
        return _total(step.own for step in self.steps).total()

    @property
    def num_replayed(self) -> int:
        """Pairs drawn from earlier stages."""
        return _total(step.replayed for step in self.steps).total()


def draw_everything(curriculum: Curriculum) -> list[DrawnStage]:
    """Draw a fresh curriculum to its end, without any reward."""
    pairs = curriculum.pairs_by_stage
    drawn: list[DrawnStage] = []
    step = 0
    while not curriculum.finished:
        step += 1
        if curriculum.stage_index == len(drawn):
            earliest_start = drawn[-1].earliest_end if drawn else 0
            drawn.append(DrawnStage(curriculum.stage, step, earliest_start, len(pairs[len(drawn)])))
        examples = curriculum.next_examples()
        num_own = len(examples) - curriculum.num_replayed
        own, replayed = examples[:num_own], examples[num_own:]
        drawn[-1].steps.append(DrawnStep(_count_changes(own), _count_changes(replayed)))
        drawn[-1].kinds.update(kind for example in examples for kind in example.kinds)
        drawn[-1].distinct.update(example.pair_id for example in own)
    return drawn


def stage_table(drawn: Sequence[DrawnStage]) -> Table:
    """One row a stage: how many pairs it has, and how many of which it draws."""
    table = _new_table("Pairs", ["steps", "fit the stage", "drawn", "passes", "replayed"])
    for one in drawn:
        steps = str(len(one.steps))
        if one.fewest_steps < one.most_steps:
            steps = f"{one.fewest_steps}-{one.most_steps}"
        row = (steps, one.num_pairs, one.num_own, f"{one.num_own / one.num_pairs:.2f}", one.num_replayed)
        table.add_row(one.stage.name, *map(str, row))
    return table


def count_table(drawn: Sequence[DrawnStage]) -> Table:
    """One row a stage: shares of the numbers of changes among all pairs drawn."""
    counts = sorted(_total(one.by_count for one in drawn))
    table = _new_table("Their changes", [_changes(count) for count in counts])
    for one in drawn:
        table.add_row(one.stage.name, *_shares(one.by_count, counts))
    return table


def kind_table(drawn: Sequence[DrawnStage]) -> Table:
    """One row a stage: shares of the kinds of change among all changes drawn."""
    kinds = [kind for kind in _KIND_COLORS if any(one.kinds[kind] for one in drawn)]
    table = _new_table("Their kinds", kinds)
    for one in drawn:
        table.add_row(one.stage.name, *_shares(one.kinds, kinds))
    return table


def _new_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stage")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def notes(drawn: Sequence[DrawnStage]) -> list[str]:
    """What the tables cannot show, one sentence each: filters, promotion, replay, adaptive draws, overrides."""
    found = []
    for index, one in enumerate(drawn):
        stage, rule = one.stage, one.stage.promotion
        found += [f"{stage.name}: {words}" for words, _ in stage.filters()[1:]]
        if rule is not None:
            found.append(
                f"{stage.name} is open: it ends as soon as {rule.metric} is {rule.level:g} or more over {rule.window} "
                f"steps, after {one.fewest_steps} to {one.most_steps} steps; shown are {len(one.steps)}"
            )
        elif one.most_steps > len(one.steps):
            found.append(
                f"{stage.name} is open: it has {len(one.steps)} to {one.most_steps} steps, and ends with step "
                f"{stage.until_step} of the run; shown are {len(one.steps)}"
            )
        if stage.replay:
            earlier = " and ".join(before.stage.name for before in drawn[:index])
            found.append(f"{stage.name}: {stage.replay:.0%} of its pairs are drawn from those of {earlier}")
        if stage.adaptive is not None:
            found.append(f"{stage.name} prefers pairs whose answers disagree: which these are, only the run can tell")
        changed = stage.overrides.model_dump(exclude_none=True)
        if changed:
            found.append(f"{stage.name} runs with " + ", ".join(f"{key} {value:g}" for key, value in changed.items()))
    return found


def plot_preview(drawn: Sequence[DrawnStage], path: Path, title: str) -> None:
    """Write a PNG: pairs of each step by number of changes; kinds of change and use of the pairs by stage."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.0, 4.9 + 0.3 * len(drawn)), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12, hspace=0.06)
        grid = figure.add_gridspec(2, 2, height_ratios=(3.2, 0.9 + 0.3 * len(drawn)), width_ratios=(1.25, 1))
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)  # a path may hold $
        _draw_steps(figure.add_subplot(grid[0, :]), drawn)
        _draw_kinds(figure.add_subplot(grid[1, 0]), drawn)
        _draw_use(figure.add_subplot(grid[1, 1]), drawn)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw_steps(axes: Axes, drawn: Sequence[DrawnStage]) -> None:
    counts = sorted(_total(one.by_count for one in drawn))
    colors = _count_colors(counts)
    edges, heights = _columns(drawn, counts)
    bottom = np.zeros(heights.shape[-1])
    for role, hatch in ((0, None), (1, "////")):
        for count, layer in zip(counts, heights[role], strict=True):
            options = {"facecolor": colors[count], "edgecolor": "white" if hatch else "none", "linewidth": 0}
            axes.stairs(bottom + layer, edges, baseline=bottom, fill=True, hatch=hatch, **options)
            bottom = bottom + layer
    _mark_stages(axes, drawn)
    handles = [Patch(color=colors[count], label=_changes(count)) for count in counts]
    if any(one.num_replayed for one in drawn):
        handles.append(Patch(facecolor="#9fb3c8", edgecolor="white", hatch="////", label="replayed"))
    if any(one.stage.promotion for one in drawn):
        (line,) = axes.plot([], [], color="#d55e00", linestyle=(0, (4, 2)), label="may end from here")
        handles.append(line)
    axes.legend(handles=handles[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.4)
    axes.set(xlabel="training step", ylabel="pairs", xlim=(edges[0], edges[-1]), ylim=(0, bottom.max()))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _mark_stages(axes: Axes, drawn: Sequence[DrawnStage]) -> None:
    for one in drawn:
        last = one.first_step + len(one.steps) - 1
        if one.first_step > 1:
            axes.axvline(one.first_step - 0.5, color="white", linewidth=2.0)
        middle = (one.first_step + last) / 2
        axes.text(middle, 1.03, one.stage.name, transform=axes.get_xaxis_transform(), ha="center", color=_GREY)
        if one.stage.promotion is not None:
            end = one.first_step + one.fewest_steps - 0.5
            axes.axvspan(end, last + 0.5, color="white", alpha=0.4, linewidth=0)
            axes.axvline(end, color="#d55e00", linewidth=1.4, linestyle=(0, (4, 2)))


def _draw_kinds(axes: Axes, drawn: Sequence[DrawnStage]) -> None:
    left = np.zeros(len(drawn))
    totals = np.array([max(one.kinds.total(), 1) for one in drawn])
    for kind, color in _KIND_COLORS.items():
        shares = np.array([one.kinds[kind] for one in drawn]) / totals
        if shares.any():
            axes.barh(range(len(drawn)), shares, left=left, color=color, height=0.62, label=kind)
        left = left + shares
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=6, handlelength=1.0, columnspacing=1.0)
    axes.set(xlabel="share of the changes drawn", xlim=(0, 1))
    _stage_rows(axes, drawn)


def _draw_use(axes: Axes, drawn: Sequence[DrawnStage]) -> None:
    rows = np.arange(len(drawn))
    fits = [one.num_pairs for one in drawn]
    axes.barh(rows, fits, color="#d9e2ec", height=0.62, label="fit the stage")
    axes.barh(rows, [len(one.distinct) for one in drawn], color="#486581", height=0.3, label="drawn at least once")
    for row, one in zip(rows, drawn, strict=True):
        passes = f" {one.num_own / one.num_pairs:.2f} passes"
        axes.text(one.num_pairs, row, passes, va="center", color=_GREY, fontsize=8)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handlelength=1.0, columnspacing=1.0)
    axes.set(xlabel="training pairs", xlim=(0, 1.35 * max(fits)))
    _stage_rows(axes, drawn)


def _stage_rows(axes: Axes, drawn: Sequence[DrawnStage]) -> None:
    axes.set_yticks(range(len(drawn)), [one.stage.name for one in drawn])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(drawn) - 0.5, -0.5)


def _columns(drawn: Sequence[DrawnStage], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Edges `[B + 1]` in steps, and mean pairs a step `[2, K, B]`: own and replayed, by number of changes."""
    steps = [step for one in drawn for step in one.steps]
    table = np.array([[[step.own[count], step.replayed[count]] for count in counts] for step in steps], dtype=float)
    block = -(-len(steps) // _MAX_COLUMNS)
    starts = np.concatenate(
        [one.first_step - 1 + np.arange(0, len(one.steps), block) for one in drawn]
    )  # a block never spans two stages
    sizes = np.diff([*starts, len(steps)])
    means = np.add.reduceat(table, starts, axis=0) / sizes[:, None, None]
    return np.append(starts, len(steps)) + 0.5, means.transpose(2, 1, 0)


def _count_colors(counts: Sequence[int]) -> dict[int, str]:
    """The more changes, the darker."""
    shades = matplotlib.colormaps["Blues"](np.linspace(0.3, 0.95, len(counts)))
    return {count: to_hex(shade) for count, shade in zip(counts, shades, strict=True)}


def _changes(count: int) -> str:
    return "1 change" if count == 1 else f"{count} changes"


def _count_changes(examples: Iterable[Example]) -> Counter[int]:
    return Counter(example.num_differences for example in examples)


def _total(counters: Iterable[Counter[T]]) -> Counter[T]:
    total: Counter[T] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _shares(counter: Counter[T], keys: Sequence[T]) -> list[str]:
    """Percentages of the keys, `-` where there is nothing."""
    return [f"{counter[key] / counter.total():.0%}" if counter[key] else "-" for key in keys]
