"""What VLMEvalKit and lmms-eval left in their folders, as one table beside the paper's figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dig_rl.errors import DataError
from dig_rl.evaluation.suites import PAPER_MEAN_OF_SEVEN, PAPER_MODELS, SEVEN, SUITES, Suite, Tool
from dig_rl.vllm_options import SERVED_NAME

_OVERALL_ROWS = ("overall", "average", "all", "none", "test", "dev", "val", "validation")
_OVERALL_COLUMNS = ("Overall", "acc", "average", "Average")


@dataclass(frozen=True)
class SuiteResult:
    """One figure of one tool."""

    suite: Suite
    tool: Tool
    value: float
    """Percent; of MME points."""
    files: tuple[Path, ...]


def collect_results(out: Path) -> list[SuiteResult]:
    """The newest figure of each suite and tool.

    Args:
        out: folder with `vlmevalkit/` and `lmms-eval/` in it, each as the tool wrote it; either may be missing.

    Raises:
        DataError: a result file cannot be read, or lacks the figure.
    """
    of_vlmevalkit = (_of_vlmevalkit(suite, out / "vlmevalkit" / SERVED_NAME) for suite in SUITES)
    found = [result for result in of_vlmevalkit if result is not None]
    newest: dict[str, SuiteResult] = {}
    for path in sorted((out / "lmms-eval").rglob("*_results.json"), key=lambda path: path.name):
        newest |= {result.suite.name: result for result in _of_lmms_eval(path)}
    return found + list(newest.values())


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
    values = [_of_csv(path, suite.vlmevalkit_column, suite.maximum) for path in files]
    return SuiteResult(suite, "vlmevalkit", sum(values) / len(values), tuple(files))


def _of_csv(path: Path, column: str, maximum: float) -> float:
    """The overall row's figure: the row is named in its first column, or there is only one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    named = [row for row in rows if str(next(iter(row.values()), "")).lower() in _OVERALL_ROWS]
    chosen = named[0] if named else rows[0] if len(rows) == 1 else None
    columns = (column, *_OVERALL_COLUMNS) if maximum == 100.0 else (column,)
    if chosen is not None:
        for name in columns:
            if chosen.get(name) not in (None, ""):
                return _number(chosen[name], path, maximum)
    raise DataError(
        f"{path}: expected an overall row with a column {column}, found {list(rows[0]) if rows else 'none'}"
    )


def _of_lmms_eval(path: Path) -> list[SuiteResult]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        tasks = {suite.lmms_eval: suite for suite in SUITES if suite.lmms_eval}
        found = [(tasks[task], figures) for task, figures in results.items() if task in tasks]
        return [
            SuiteResult(suite, "lmms-eval", _number(_metric(suite, figures, path), path, suite.maximum), (path,))
            for suite, figures in found
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected results of lmms-eval ({type(error).__name__}: {error})") from None


def _metric(suite: Suite, figures: Mapping[str, Any], path: Path) -> Any:
    """Keys are `<metric>,<filter>`."""
    for key, value in figures.items():
        if key.partition(",")[0] == suite.lmms_eval_metric:
            return value
    raise DataError(f"{path}: task {suite.lmms_eval} has no {suite.lmms_eval_metric}, found {', '.join(figures)}")


def _number(value: Any, path: Path, maximum: float) -> float:
    """Percent of what is a share in some files and percent in others; no suite's figure is as low as 1 %."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if maximum == 100.0 and 0.0 <= number <= 1.0:
        number *= 100.0
    if not 0.0 <= number <= maximum:
        raise DataError(f"{path}: expected a figure from 0 to {maximum:g}, found {value!r:.80}")
    return number
