"""`docs/ablations.md`: finished runs as tables, and the paper's orderings held against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dig_rl.ablations.ledger import Entry, Figures
from dig_rl.ablations.recipe import Axis
from dig_rl.ablations.results import CONFIDENCE_LEVEL, Comparison, SeedMean, compare, of_arm, seed_mean
from dig_rl.reporting.ablation_arms import (
    ARMS,
    CLAIMS,
    LOOSE_LEDGER,
    REASONS,
    REASONS_TITLES,
    SUPERVISED,
    TITLES,
    Arm,
    Reason,
)

CONTROL_LIMIT = 0.02
"""Gain in F1 that a control without information may have on average."""


_FIGURES = {
    "f1": "F1",
    "gain": "gain in F1",
    "mean_iou": "mean IoU",
    "count_accuracy": "count right",
    "parse_rate": "readable",
}
_HEAD = """# Ablations

The paper's two ablations (arXiv 2512.12633) with dig-nano on Blender's pairs, and controls. `make ablations` runs
what is missing and writes this page and its plots from [ablations.json](ablations.json) and what lies beside it alone:
change nothing here. [nano.md](nano.md#what-the-ablations-say) says in words what came out.

- Every arm begins with the same policy and differs from `all` in what its row says. Budget of each run of GRPO:
  {budget}.
- Figures are greedy answers to the whole held-out split, F1 at IoU 0.5. Settings were chosen on the validation split;
  that earlier starts were given up was decided after held-out figures ([lab log](lab-log.md)).
- Seeds ({seeds}) decide draws and sampling. Means over seeds have {level:.0%} confidence intervals (Student's t). These
  know of seeds alone: with another policy or other held-out pairs, figures may differ by more. Seeds from 3 on were
  added after a look at the first three, where these had left a claim open, which makes intervals a little too narrow.
- *Reproduced*: the interval of the difference by seed lies above 0. *Reversed*: below. *Not shown*: it holds 0, or
  fewer than two seeds are there; that does not say that two arms are alike.
- Run times add up to {hours:.1f} hours; most runs went two at one time on two cores, which lengthens each.
"""
_METHOD = """## How it is done

```
make ablations                                   # everything that is missing; Ctrl-C loses nothing
make ablations ONLY="format all" SEEDS="0 1"     # some of it, or more seeds than the recipe has
make ablations MINUTES=120                       # begin nothing that would end later
make ablations REPORT_ONLY=1                     # this page and its pictures, without a run
make train CONFIG=runs/ablations/configs/format-0.json RUN=again     # one run by itself, once it was begun here
mkdir -p policies && git archive 74ea84c nano/policy | tar -x -C policies     # the loose start, once shipped here
make ablations SET="policy.path=policies/nano/policy" LEDGER=docs/ablations-loose.json SEEDS="0 1 2 3 4" \\
  ONLY="format format_iou_matched format_f1 all_matched"
make ablations SET="policy.path=policies/nano/policy" LEDGER=docs/ablations-loose.json \\
  ONLY="staged mixed_only staged_sparse mixed_only_sparse"
```

- `launch/configs/recipes/ablations.toml` names the shared config, the seeds and what each arm changes. Nothing starts
  unless all arms come to the same number of scored answers.
- 75 steps, 25 a stage: in a pilot from this start the demo had brought validation F1 from 0.684 to 0.726, 0.812 and
  0.890 after 20, 40 and 60 steps ([lab log](lab-log.md)), so that the full recipe clearly gains and weaker ones can.
- Seed by seed, the arms that the orderings hang on come first; those that test a reason, `adaptive` and the controls
  follow. Every run is an ordinary `make train` in a process of its own under `runs/ablations/`; its checkpoints go when
  it is written down.
- A *fingerprint* stands for settings, stages, weights of the policy and labels, not for pictures, the code of reward
  functions or defaults of settings. A finished run, or one begun, with another fingerprint than the recipe now asks for
  is refused, so that no table mixes settings.
- `shuffled_labels`: each training pair has the boxes of another with as many changes, dealt by the seed. What numbers
  and places of boxes give away can still be learned, what the pictures say cannot.
- `blank_image_b`: no pair shows what changed; its own start, measured on gray images too, is what its gain counts from.
  Its pairs are not swapped, so that the gray image is always the second.
- `sft_more`: from the same policy, on the same pairs in the looks of the supervised recipe (swapped, mirrored, other
  colours), with its optimiser (a peak rate of 2e-3, where its last stage had 6e-4) and the labels of its last stage,
  for the seconds that sampling, scoring and learning took in `all` with that seed. Not on the thousands of numpy
  families that the recipe has: then the data would differ as well as the method.
- `sft_exact`: the same with exact labels. These are what GRPO's reward measures answers with, so this is what
  supervision gains from as much knowledge.
"""


def ablation_markdown(entries: Sequence[Entry], from_loose: Sequence[Entry] = ()) -> str:
    """The whole page.

    Args:
        entries: finished runs, any part of what is planned.
        from_loose: those of `LOOSE_LEDGER`.
    """
    parts = [_head(entries)]
    for axis in ARMS:
        parts.append(f"## {TITLES[axis]}\n")
        if not finished_arms(entries, axis):
            parts.append("No run is finished yet.\n")
            continue
        parts.append(_table(axis, entries, ARMS[axis]))
        parts.append(_verdicts(axis, entries))
        parts.append(f"![{TITLES[axis]}](images/{picture_name(axis)})\n")
        parts += _reasons(axis, entries, from_loose)
    parts.append(_METHOD)
    if entries:
        parts.append(f"## Every run\n\n{_runs(entries)}")
    if from_loose:
        parts.append(f"From the loose start, [{LOOSE_LEDGER}]({LOOSE_LEDGER}):\n\n{_runs(from_loose)}")
    return "\n".join(parts)


def finished_arms(entries: Sequence[Entry], axis: Axis) -> list[str]:
    """Arms of an axis that any run is finished of, in the order of the page."""
    return [arm.name for arm in ARMS[axis] if of_arm(entries, arm.name)]


def picture_name(axis: Axis) -> str:
    """File of an axis' plot in docs/images."""
    return f"ablations-{axis}.png"


def with_sign(value: float) -> str:
    """A difference, zero without a sign."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _head(entries: Sequence[Entry]) -> str:
    seeds = sorted({entry.seed for entry in entries})
    budgets = sorted({(entry.steps, entry.completions) for entry in entries if entry.completions})
    budget = "; ".join(f"{steps} steps, {completions:,} scored answers" for steps, completions in budgets)
    hours = sum({(entry.fingerprint, entry.seed): entry.seconds for entry in entries}.values()) / 3600
    return _HEAD.format(
        budget=budget or "no run is finished yet",
        seeds=", ".join(map(str, seeds)) or "none yet",
        level=CONFIDENCE_LEVEL,
        hours=hours,
    )


def _table(axis: Axis, entries: Sequence[Entry], arms: Sequence[Arm]) -> str:
    rows = [["arm", "what it is", "seeds", *_FIGURES.values(), "F1 by seed", "minutes"]]
    if axis != "control":
        rows.append(_start_row(entries))
    for arm in arms:
        found = of_arm(entries, arm.name)
        figures = [_figure(seed_mean(found, figure), figure) if found else "–" for figure in _FIGURES]
        by_seed = ", ".join(f"{entry.f1:.3f}" for entry in found) or "not run yet"
        minutes = f"{sum(entry.seconds for entry in found) / len(found) / 60:.0f}" if found else "–"
        rows.append([f"`{arm.name}`", arm.meaning, str(len(found)), *figures, by_seed, minutes])
    return _markdown_table(rows)


def _start_row(entries: Sequence[Entry]) -> list[str]:
    """The policy that all begin with; runs may differ in its last digit where sums are not always in one order."""
    starts = [entry.before for entry in entries if entry.arm != "blank_image_b"]
    shown = {}
    for name in Figures.model_fields:
        values = sorted({f"{getattr(start, name):.3f}" for start in starts})
        shown[name] = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else "–"
    return ["*start*", "the policy before training", "–", *(shown.get(name, "–") for name in _FIGURES), "–", "–"]


def _figure(found: SeedMean, figure: str) -> str:
    if figure in ("count_accuracy", "parse_rate"):
        return f"{found.mean:.3f}"
    return _difference(found) if figure == "gain" else _with_interval(found, "{:.3f}".format)


def _difference(found: SeedMean) -> str:
    return _with_interval(found, with_sign)


def _with_interval(found: SeedMean, show: Callable[[float], str]) -> str:
    interval = found.interval
    return show(found.mean) + (f" [{show(interval[0])}, {show(interval[1])}]" if interval else "")


def _verdicts(axis: Axis, entries: Sequence[Entry]) -> str:
    if axis == "control":
        return "\n".join([*_control_lines(entries), ""])
    means = {arm: seed_mean(of_arm(entries, arm), "f1").mean for arm in finished_arms(entries, axis)}
    ranked = ", ".join(f"`{arm}` {means[arm]:.3f}" for arm in sorted(means, key=means.__getitem__))
    rows = [["claim of the paper", "difference in F1 by seed", "mean", "verdict"]]
    for claim in CLAIMS[axis]:
        found = compare(entries, claim)
        rows.append([f"`{claim.lower}` < `{claim.higher}`", *describe_comparison(found), f"**{found.verdict}**"])
    return f"By mean F1, from the lowest: {ranked}.\n\n{_markdown_table(rows)}"


def _reasons(axis: Axis, entries: Sequence[Entry], from_loose: Sequence[Entry]) -> list[str]:
    """What became of each reason, once a run of its arms is there."""
    tested = [_reason(axis, one, from_loose if one.ledger else entries) for one in REASONS.get(axis, ())]
    parts = [part for parts in tested for part in parts]
    return [f"### {REASONS_TITLES[axis]}\n", *parts] if parts else []


def _reason(axis: Axis, reason: Reason, entries: Sequence[Entry]) -> list[str]:
    found = [compare(entries, claim) for claim in reason.expected]
    if not any(one.difference for one in found):
        return []
    rows = [["expected", "difference in F1 by seed", "mean", "verdict"]]
    for one in found:
        verdict = {"reproduced": "as expected"}.get(one.verdict, one.verdict)
        rows.append([f"`{one.claim.lower}` < `{one.claim.higher}`", *describe_comparison(one), f"**{verdict}**"])
    parts = [f"A reason, tested: {reason.text}\n"]
    if reason.ledger is not None:
        named = [arm for arm in ARMS[axis] if any(arm.name in claim for claim in reason.expected)]
        parts.append(_table(axis, entries, named))
    return [*parts, _markdown_table(rows)]


def describe_comparison(found: Comparison) -> tuple[str, str]:
    """Differences by seed, and their mean with its interval."""
    if found.difference is None:
        return "no seed has both", "–"
    by_seed = ", ".join(with_sign(value) for value in found.difference.values)
    return by_seed, _difference(found.difference)


def _control_lines(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for name in ("shuffled_labels", "blank_image_b"):
        if runs := of_arm(entries, name):
            gain = seed_mean(runs, "gain")
            held = "as it should be" if gain.mean <= CONTROL_LIMIT else "**more than it should**"
            lines.append(f"- `{name}` gains {_difference(gain)}; at most {CONTROL_LIMIT} on average is {held}.")
    for claim in SUPERVISED:
        found = compare(entries, claim)
        if found.difference is not None:
            by_seed, mean = describe_comparison(found)
            words = {
                "reproduced": f"GRPO gains more than `{claim.lower}`",
                "not shown": f"a difference between GRPO and `{claim.lower}` is **not shown**",
                "reversed": f"`{claim.lower}` gains **more** than GRPO",
            }[found.verdict]
            lines.append(f"- `all` minus `{claim.lower}`: {mean} (by seed: {by_seed}); {words}.")
    return lines


def _runs(entries: Sequence[Entry]) -> str:
    rows = [["run", "F1 before", "F1 after", "steps", "scored answers", "minutes", "of them training", "fingerprint"]]
    for entry in sorted(entries, key=lambda entry: (list(ARMS).index(entry.axis), entry.arm, entry.seed)):
        minutes = [f"{seconds / 60:.1f}" for seconds in (entry.seconds, entry.training_seconds)]
        counts = [str(entry.steps), f"{entry.completions:,}"]
        figures = [f"{entry.before.f1:.3f}", f"{entry.f1:.3f}"]
        rows.append([f"`{entry.arm}-{entry.seed}`", *figures, *counts, *minutes, f"`{entry.fingerprint}`"])
    return _markdown_table(rows)


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
