"""What VLMEvalKit and lmms-eval left in their folders, as one table beside the paper's figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dig_rl.errors import DataError
from dig_rl.evaluation.suites import PAPER_MEAN_OF_SEVEN, PAPER_MODELS, SEVEN, SUITES, Suite, Tool, Unit
from dig_rl.vllm_options import SERVED_NAME

_OVERALL_ROWS = ("overall", "average", "all", "none", "test", "dev", "val", "validation")


@dataclass(frozen=True)
class SuiteResult:
    """One figure of one tool."""

    suite: Suite
    tool: Tool
    value: float
    """Percent; of MME points."""
    files: tuple[Path, ...]


class Collected(NamedTuple):
    """What was found, and what could not be read."""

    results: list[SuiteResult]
    """The newest of each suite and tool."""
    problems: list[str]
    """One sentence for each result file, or suite of one, that was left out."""


def collect_results(out: Path) -> Collected:
    """The newest figure of each suite and tool; a file that cannot be read hides no other.

    Args:
        out: folder with `vlmevalkit/` and `lmms-eval/` in it, each as the tool wrote it; either may be missing.
    """
    found: dict[tuple[Tool, str], SuiteResult | DataError] = {}
    unread: list[DataError] = []
    for suite in SUITES:
        try:
            result = _of_vlmevalkit(suite, out / "vlmevalkit" / SERVED_NAME)
        except DataError as error:
            unread.append(error)
        else:
            found |= {("vlmevalkit", suite.name): result} if result is not None else {}
    for path in sorted((out / "lmms-eval").rglob("*_results.json"), key=lambda path: path.name):
        try:
            found |= {("lmms-eval", name): result for name, result in _of_lmms_eval(path).items()}
        except DataError as error:
            unread.append(error)
    results = [one for one in found.values() if isinstance(one, SuiteResult)]
    unread += [one for one in found.values() if isinstance(one, DataError)]
    return Collected(results, [str(error) for error in unread])


def results_table(results: Sequence[SuiteResult]) -> str:
    """Markdown: a suite a line, ours by tool, and the paper's figures, marked as theirs.

    A mean of seven stands only where one tool measured all seven.
    """
    by_tool: dict[Tool, dict[str, float]] = {"vlmevalkit": {}, "lmms-eval": {}}
    for result in results:
        by_tool[result.tool][result.suite.name] = result.value
    heads = ["suite", "VLMEvalKit", "lmms-eval", *(f"paper: {model}" for model in PAPER_MODELS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [_line(suite.name, suite.name, by_tool, suite.paper) for suite in SUITES]
    lines.append(
        _line("mean of seven", "", {tool: _mean_of_seven(ours) for tool, ours in by_tool.items()}, PAPER_MEAN_OF_SEVEN)
    )
    return "\n".join(lines) + "\n"


def _line(title: str, key: str, by_tool: Mapping[Tool, Mapping[str, float]], paper: Sequence[float] | None) -> str:
    ours = [f"{values[key]:.1f}" if key in values else "-" for values in by_tool.values()]
    theirs = [f"{value:.1f}" for value in paper] if paper else ["-"] * len(PAPER_MODELS)
    return f"| {' | '.join([title, *ours, *theirs])} |"


def _mean_of_seven(values: Mapping[str, float]) -> dict[str, float]:
    if not all(name in values for name in SEVEN):
        return {}
    return {"": sum(values[name] for name in SEVEN) / len(SEVEN)}


def _of_vlmevalkit(suite: Suite, folder: Path) -> SuiteResult | None:
    """Of `<folder>/T<day>.../<model>_<data>_acc.csv`, or `_score.csv`; commit or time follow the day."""
    files = []
    for data in suite.vlmevalkit:
        there = [path for kind in ("acc", "score") for path in folder.glob(f"T*/{SERVED_NAME}_{data}_{kind}.csv")]
        if not there:
            return None
        files.append(max(there, key=lambda path: (path.parent.name, path.stat().st_mtime_ns)))
    values = [_of_csv(path, suite) for path in files]
    return SuiteResult(suite, "vlmevalkit", sum(values) / len(values), tuple(files))


def _of_csv(path: Path, suite: Suite) -> float:
    """The overall row's figure: the row is named in its first column, or there is only one.

    HRBench has a row a kind of question for each overall row; `all` is the one of every kind.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    of_all = [row for row in rows if row.get("type", "all") == "all"]
    named = [row for row in of_all if str(next(iter(row.values()), "")).lower() in _OVERALL_ROWS]
    chosen = named[0] if named else rows[0] if len(rows) == 1 else {}
    value = chosen.get(suite.vlmevalkit_column)
    if value in (None, ""):
        columns = list(rows[0]) if rows else "none"
        raise DataError(f"{path}: expected an overall row with a column {suite.vlmevalkit_column}, found {columns}")
    return _as_shown(value, suite.vlmevalkit_unit, suite.maximum, str(path))


def _of_lmms_eval(path: Path) -> dict[str, SuiteResult | DataError]:
    """The suites of one file by name, or what is wrong with one."""
    try:
        results = dict(json.loads(path.read_text(encoding="utf-8"))["results"].items())
        tasks = [(suite, results[suite.lmms_eval]) for suite in SUITES if suite.lmms_eval in results]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: expected results of lmms-eval ({type(error).__name__}: {error})") from None
    found: dict[str, SuiteResult | DataError] = {}
    for suite, figures in tasks:
        where = f"{path}: task {suite.lmms_eval}"
        try:
            value = _as_shown(_metric(suite, figures, where), suite.lmms_eval_unit, suite.maximum, where)
            found[suite.name] = SuiteResult(suite, "lmms-eval", value, (path,))
        except DataError as error:
            found[suite.name] = error
    return found


def _metric(suite: Suite, figures: Any, where: str) -> Any:
    """Keys are `<metric>,<filter>`."""
    if isinstance(figures, Mapping):
        for key, value in figures.items():
            if key.partition(",")[0] == suite.lmms_eval_metric:
                return value
    raise DataError(f"{where}: expected a figure {suite.lmms_eval_metric}, found {figures!r:.200}")


def _as_shown(value: Any, unit: Unit, maximum: float, where: str) -> float:
    """Fractions become percent by the declared unit; how large a figure is says nothing about its unit."""
    whole = 1.0 if unit == "fraction" else maximum
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= whole:
        raise DataError(f"{where}: expected a figure from 0 to {whole:g} ({unit}), found {value!r:.80}")
    return number * (maximum / whole)
