"""`make ablations`: every arm with every seed at one budget, the runs that decide the orderings first.

Finished runs stand in docs/ablations.json and are skipped; the same command goes on with what is left.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dig_rl.ablations.ledger import Entry, append_entries, read_entries
from dig_rl.ablations.plan import PlannedRun, common_budget, plan_runs
from dig_rl.ablations.recipe import AblationRecipe, load_recipe
from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError, DigRlError, PluginError
from dig_rl.plugins import load_plugin
from launch.ablation_runs import execute, seconds_behind
from launch.arguments import add_list, add_overrides, split_numbers, split_words
from launch.terminal import end_with_message

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "launch/configs/recipes/ablations.toml"
LEDGER = Path("docs/ablations.json")


def main() -> None:
    """Parse arguments, plan, run what is missing, write the report."""
    arguments = _arguments()
    if arguments.report_only:
        _write_report(arguments.ledger)
        return
    failed = _run_missing(load_recipe(arguments.recipe), arguments)
    if failed:
        raise DigRlError(f"failed: {', '.join(failed)}; each said why above, and the same command tries them again")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make ablations", description=__doc__)
    parser.add_argument("--recipe", default=RECIPE, help="TOML file (RECIPE=; default: %(default)s)")
    add_list(parser, "--only", "some of the arms (ONLY=)", split_words, "ARM")
    add_list(parser, "--seeds", "in place of the recipe's seeds (SEEDS=)", split_numbers, "N")
    add_overrides(parser, "all runs' settings")
    parser.add_argument("--minutes", type=float, help="start no run that would end later than this (MINUTES=)")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="finished runs (LEDGER=; default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: runs/ and the name of the ledger)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing (DRY_RUN=1)")
    parser.add_argument("--report-only", action="store_true", help="write the report from the finished runs")
    arguments = parser.parse_args()
    arguments.work = arguments.work or Path("runs", arguments.ledger.stem)
    return arguments


def _run_missing(recipe: AblationRecipe, arguments: argparse.Namespace) -> list[str]:
    """Returns the names of runs that failed."""
    entries = read_entries(arguments.ledger)
    _refuse_other_settings(recipe, entries, arguments.set)
    runs = plan_runs(recipe, ROOT, arms=arguments.only or None, seeds=arguments.seeds or None, overrides=arguments.set)
    budget = common_budget(recipe, ROOT, arguments.set)
    missing = [run for run in runs if not run.is_in(entries)]
    print(f"{len(runs)} runs of {budget}; {len(runs) - len(missing)} are finished", flush=True)
    _check_settings(missing)
    started = time.monotonic()
    failed = []
    for number, run in enumerate(missing, start=1):
        entries = read_entries(arguments.ledger)
        minutes = (time.monotonic() - started) / 60
        needed = _expected_minutes(run, entries, arguments.work)
        if arguments.minutes is not None and needed is not None and minutes + needed > arguments.minutes:
            print(f"{len(missing) - number + 1} runs are left: {run.name} would take about {needed:.0f} minutes more")
            break
        left = _minutes_left(missing[number - 1 :], entries)
        print(f"\n== run {number} of {len(missing)}: {_describe(run)}; {minutes:.0f} minutes so far{left}", flush=True)
        if arguments.dry_run:
            continue
        try:
            made = execute(run, budget, arguments.work, entries)
        except DigRlError as error:
            failed.append(run.name)
            print(f"run {run.name} failed: {error}", file=sys.stderr, flush=True)
            continue
        append_entries(arguments.ledger, made)
        shutil.rmtree(arguments.work / run.name / "checkpoints", ignore_errors=True)  # as large as the rest of the run
        print(_result(made[0]), flush=True)
        _write_report(arguments.ledger)
    return failed


def _refuse_other_settings(recipe: AblationRecipe, entries: Sequence[Entry], overrides: Sequence[str]) -> None:
    """No table may hold runs with different settings, also where other arms are asked for."""
    for run in plan_runs(recipe, ROOT, seeds=sorted({entry.seed for entry in entries}), overrides=overrides):
        run.is_in(entries)


def _check_settings(runs: Sequence[PlannedRun]) -> None:
    """Find mistakes that a run would end with, hours later, before the first one begins."""
    for run in runs:
        where = f"arm {run.arm}"
        if run.control == "sft_more":
            # Imported here: TRL takes long.
            from dig_rl.sft_more import training_settings

            training_settings(run.training, run.config, where=where)
            continue
        for name, term in run.config.reward.terms.items():
            try:
                load_plugin(term.use, term.kwargs, ROOT)
            except PluginError as error:
                raise ConfigError(f"{where}, reward.terms.{name}: {error}") from None


def _write_report(ledger: Path) -> None:
    """Write the page and its pictures beside the ledger."""
    # Imported here: a plan needs no matplotlib.
    from dig_rl.reporting.ablation_arms import ARMS, LOOSE_LEDGER
    from dig_rl.reporting.ablation_plots import draw_axis
    from dig_rl.reporting.ablation_report import ablation_markdown, finished_arms, picture_name

    if ledger.name == LOOSE_LEDGER:
        ledger = ledger.with_name(LEDGER.name)  # of the page that its runs belong to
    entries, from_loose = (read_entries(ledger.with_name(name)) for name in (ledger.name, LOOSE_LEDGER))
    for axis in ARMS:
        if finished_arms(entries, axis):
            picture = ledger.parent / "images" / picture_name(axis)
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw_axis(entries, axis, picture)
    page = ledger.with_suffix(".md")
    write_durably(page, ablation_markdown(entries, from_loose))
    print(f"written to {page}", flush=True)


def _describe(run: PlannedRun) -> str:
    also = "".join(f", also {arm}" for _, arm in run.written_as[1:])
    return f"{run.arm}{also}, seed {run.seed}"


def _expected_minutes(run: PlannedRun, entries: Sequence[Entry], work: Path) -> float | None:
    """Minutes that the run still takes if it is as long as the longest finished one; None before there is one."""
    longest = max((entry.seconds for entry in entries), default=None)
    return None if longest is None else max(0.0, longest - seconds_behind(run, work)) / 60


def _minutes_left(runs: Sequence[PlannedRun], entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    mean = sum(entry.seconds for entry in entries) / len(entries)
    hours, minutes = divmod(round(len(runs) * mean / 60), 60)
    return f", about {hours} h {minutes:02d} min left"


def _result(entry: Entry) -> str:
    change = entry.f1 - entry.before.f1
    return f"{entry.arm}, seed {entry.seed}: held-out F1 {entry.before.f1:.3f} -> {entry.f1:.3f} ({change:+.3f})"


if __name__ == "__main__":
    sys.exit(end_with_message(main, "the same command goes on; finished runs are kept"))
