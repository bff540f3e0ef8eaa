"""`make train`: run or continue one training run."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from dig_rl.config import load_config
from dig_rl.errors import DigRlError, NotFiniteError
from dig_rl.reporting.report import before_after_table, write_report
from dig_rl.run_folder import RunFolder
from dig_rl.summary import read_summary
from dig_rl.train import train
from launch.arguments import add_settings, chosen_run
from launch.next_steps import after_not_finite
from launch.terminal import end_with_message

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse arguments, train, report."""
    parser = argparse.ArgumentParser(prog="make train", description=__doc__)
    add_settings(parser)
    parser.add_argument(
        "--run", help="name of the run; the same name and config continue it (RUN=; default: that of the last config)"
    )
    parser.add_argument("--runs-dir", default="runs", help="folder of all runs")
    parser.add_argument(
        "--allow-changed-plugins",
        action="store_true",
        help="continue although reward plugins changed since the last start (ALLOW_CHANGED_PLUGINS=1)",
    )
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    with RunFolder.open(arguments.runs_dir, chosen_run(arguments), config) as run:
        summary = read_summary(run.path)
        if summary is not None and summary["status"] == "finished":
            print(f"run {run.path.name} is already finished; choose another RUN= to train again")
        else:
            try:
                summary = train(config, run, ROOT, allow_changed_plugins=arguments.allow_changed_plugins)
            except BaseException as error:
                with contextlib.suppress(DigRlError):  # on a full disk, as on one that ended the run
                    _write_report_if_begun(run)
                if isinstance(error, NotFiniteError):
                    commands = after_not_finite(run.path, arguments.config, arguments.set, config.learner.lr)
                    raise NotFiniteError("\nNext: ".join([str(error), *commands])) from None
                raise
            _write_report_if_begun(run)
        print(before_after_table(summary))
        print(f"report: {run.path / 'report.html'}\ncurves: make tensorboard\npolicy: {run.policy}")


def _write_report_if_begun(run: RunFolder) -> None:
    if (run.path / "summary.json").is_file():
        write_report(run.path)


if __name__ == "__main__":
    sys.exit(end_with_message(main, "the same command continues the run"))
