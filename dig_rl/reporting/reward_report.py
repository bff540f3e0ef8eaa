"""What a reward pays scripted policies: the table, its picture, and warnings where nonsense is paid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dig_rl.config import RewardConfig
from dig_rl.reporting.plots import INK, PALETTE
from dig_rl.reporting.scripted_policies import MAX_CHANGES, POLICIES, Kind, Policy, answer, scenes
from dig_rl.scoring import Scorer
from dig_rl.types import Completion, Example, SampledGroup

SCENES_PER_COUNT = 50
_SIDE_PX = 1000

MAX_BLIND = 0.2
"""Most that an answer which does not depend on the images may earn on average."""
MAX_STOPPED_EARLY = 0.5
"""Most that one exact box of four may earn: the other three must be worth as much as the first."""
MIN_PADDING_COST = 0.02
"""Least that surplus boxes must cost against the same answer without them."""
MIN_RIGHT = 0.999

_LEGIBLE = 0.06
"""Spread from which the digits of the picture do not hide each other."""
_COLORS: dict[Kind, str] = dict(zip(("right", "near", "partial", "padded", "blind"), PALETTE, strict=False))


class Row(NamedTuple):
    """Mean reward of one policy."""

    policy: Policy
    by_count: tuple[float, ...]
    """Over scenes with 1, 2, ... changes."""

    @property
    def mean(self) -> float:
        """Over all scenes."""
        return sum(self.by_count) / len(self.by_count)


def reward_table(config: RewardConfig, root: Path) -> list[Row]:
    """Score every scripted policy.

    Args:
        config: the reward.
        root: folder that plugin paths start from.

    Raises:
        PluginError: a plugin cannot be loaded, or breaks its contract.
    """
    scorer = Scorer(config, root=root, thinking=False, frame="norm1000", prompt="")
    paid: dict[str, list[list[float]]] = {policy.name: [[] for _ in range(MAX_CHANGES)] for policy in POLICIES}
    for scene in scenes(SCENES_PER_COUNT):
        size = (_SIDE_PX, _SIDE_PX)
        kinds = ("color",) * len(scene.boxes)
        example = Example(f"scene-{scene.seed}", "", "", size, scene.boxes, kinds, "train")
        completions = tuple(Completion((), (), answer(policy, scene), "stop", 0) for policy in POLICIES)
        group = SampledGroup(example, (), completions, 0, size, 0)
        for policy, score in zip(POLICIES, scorer.score(group, step=0, stage=""), strict=True):
            paid[policy.name][len(scene.boxes) - 1].append(score.total)
    return [Row(policy, tuple(float(np.mean(totals)) for totals in paid[policy.name])) for policy in POLICIES]


def warnings(rows: Sequence[Row]) -> list[str]:
    """Where the reward pays what it should not, one sentence each; empty for a sound reward."""
    found = []
    right = next(row for row in rows if row.policy.kind == "right")
    if right.mean < MIN_RIGHT:
        found.append(f'"{right.policy.name}" earns {right.mean:.3f}: the right answer does not earn 1')
    for row in rows:
        name, kind = row.policy.name, row.policy.kind
        if kind == "blind" and row.mean > MAX_BLIND:
            found.append(f'"{name}" earns {row.mean:.3f} without looking (more than {MAX_BLIND:g})')
        if kind == "partial" and row.by_count[-1] > MAX_STOPPED_EARLY:
            least = f"of {MAX_CHANGES} changes (more than {MAX_STOPPED_EARLY:g}): stopping early pays"
            found.append(f'"{name}" earns {row.by_count[-1]:.3f} {least}')
        if kind == "padded" and row.mean > right.mean - MIN_PADDING_COST:
            found.append(
                f'"{name}" earns {row.mean:.3f}, within {MIN_PADDING_COST:g} of the right answer: extras are free'
            )
    near = [row for row in rows if row.policy.kind in ("right", "near")]
    for tighter, looser in itertools.pairwise(near):
        if looser.mean >= tighter.mean:
            found.append(f'"{looser.policy.name}" earns no less than "{tighter.policy.name}": precision is not paid')
    return found


def markdown_table(rows: Sequence[Row]) -> str:
    """The table in Markdown: mean reward by number of changes, and over all scenes."""
    counts = [f"{count} change{'s' if count > 1 else ''}" for count in range(1, MAX_CHANGES + 1)]
    lines = ["| policy | " + " | ".join([*counts, "mean"]) + " |", "|---" * (MAX_CHANGES + 2) + "|"]
    for row in rows:
        cells = [row.policy.name, *(three_decimals(paid) for paid in (*row.by_count, row.mean))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def three_decimals(paid: float) -> str:
    """`0.363` for 0.3625, whichever side of it a sum of floats came out on."""
    return f"{paid + 1e-9:.3f}"


def draw_table(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write a PNG: a bar a policy for its mean reward, a dot for each number of changes."""
    with matplotlib.rc_context({"font.size": 9.0, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(8.0, 0.36 * len(rows) + 1.1), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            color = _COLORS[row.policy.kind]
            axes.barh(place, row.mean, color=color, alpha=0.45, height=0.7)
            if max(row.by_count) - min(row.by_count) < _LEGIBLE:
                continue
            for count, paid in enumerate(row.by_count, start=1):
                axes.text(paid, place, str(count), ha="center", va="center", fontsize=8)
        axes.axvline(MAX_BLIND, color=_COLORS["blind"], linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [row.policy.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0.0, 1.04)
        axes.set_xlabel("mean reward; digits: on scenes with so many changes; dotted: most for not looking")
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150, metadata={"Software": None})
