"""The benchmarks that the DiG paper reports, and the commands of the tools that run them against a served policy.

Sources: names, metrics and units of lmms-eval 0.7.3 (its task files and their `utils.py`); options, data sets, columns
and units of VLMEvalKit (ms-vlmeval 0.0.20, `vlmeval/dataset/utils/{multiple_choice,yorn,hrbench}.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dig_rl.errors import ConfigError
from dig_rl.vllm_options import SERVED_NAME

Tool = Literal["vlmevalkit", "lmms-eval"]
Unit = Literal["fraction", "percent", "points"]
"""What a tool's file holds: 0 to 1, 0 to 100, or points up to the suite's best."""


@dataclass(frozen=True)
class Suite:
    """One benchmark in both tools."""

    name: str
    vlmevalkit: tuple[str, ...]
    """Its `--data`; several are averaged."""
    vlmevalkit_column: str
    """Of the overall row of the result file."""
    vlmevalkit_unit: Unit
    """Of that column; declared, because a figure of 1 may be a whole or one percent."""
    lmms_eval: str | None
    """Its task; None where it has none."""
    lmms_eval_metric: str = ""
    lmms_eval_unit: Unit = "fraction"
    maximum: float = 100.0
    """Best possible figure as shown: percent, or points."""
    paper: tuple[float, ...] | None = None
    """What the paper reports, aligned with `PAPER_MODELS`; None where it gives only the mean of seven."""


PAPER_MODELS = ("4B-Thinking", "4B + DiG", "8B-Thinking", "8B + DiG")
PAPER_MEAN_OF_SEVEN = (78.9, 79.9, 79.3, 80.5)
SEVEN = ("HallusionBench", "V*", "VSR", "MMVP", "POPE", "CV-Bench", "HRBench-8K")
"""The suites whose mean the paper gives."""

SUITES = (
    Suite(
        "HallusionBench",
        ("HallusionBench",),
        "aAcc",
        "percent",
        "hallusion_bench_image",
        "aAcc",
        "percent",
        paper=(70.1, 73.8, 73.3, 76.7),
    ),
    Suite(
        "V*",
        ("VStarBench",),
        "Overall",
        "fraction",
        "vstar_bench",
        "vstar_overall_acc",
        "percent",
        paper=(79.1, 79.1, 79.1, 81.2),
    ),
    Suite("VSR", ("VSR-zeroshot",), "acc", "percent", None, paper=(82.5, 83.9, 82.6, 83.0)),
    # Questions, not pairs with both questions right, which the column Overall counts: 79.0 % is no number of 150 pairs.
    Suite("MMVP", ("MMVP",), "Average", "fraction", "mmvp", "mmvp_accuracy", paper=(80.0, 79.0, 77.3, 78.7)),
    Suite("POPE", ("POPE",), "acc", "percent", "pope", "pope_accuracy"),
    Suite("CV-Bench", ("CV-Bench-2D", "CV-Bench-3D"), "Overall", "fraction", "cv_bench", "cv_bench_acc"),
    Suite("HRBench-8K", ("HRBench8K",), "accuracy", "fraction", "hrbench8k", "average"),
    Suite(
        "MMBench",
        ("MMBench_DEV_EN",),
        "Overall",
        "fraction",
        "mmbench_en_dev",
        "gpt_eval_score",
        "percent",
        paper=(83.7, 84.5, 85.5, 87.2),
    ),
    Suite("MMStar", ("MMStar",), "Overall", "fraction", "mmstar", "average", paper=(66.7, 70.2, 71.7, 72.7)),
    Suite(
        "ScienceQA",
        ("ScienceQA_TEST",),
        "Overall",
        "fraction",
        "scienceqa_img",
        "exact_match",
        paper=(86.9, 89.2, 90.3, 90.5),
    ),
    Suite(
        "MME",
        ("MME",),
        "perception",
        "points",
        "mme",
        "mme_perception_score",
        "points",
        maximum=2000.0,
        paper=(1592.4, 1643.4, 1648.4, 1665.9),
    ),
    Suite("AI2D", ("AI2D_TEST",), "Overall", "fraction", "ai2d", "exact_match", paper=(81.0, 82.2, 82.5, 84.1)),
)


@dataclass(frozen=True)
class Judge:
    """A model that reads choices out of answers which exact matching cannot read."""

    model: str
    base_url: str | None = None
    """OpenAI-compatible; None takes the tool's own default, OpenAI."""


@dataclass(frozen=True)
class ToolCall:
    """What both tools are told."""

    url: str
    """Of the served policy, ending in `/v1`."""
    max_tokens: int
    """Longest answer, thinking included."""
    judge: Judge | None
    """None: exact matching, as far as the tool can."""
    out: Path
    """Absolute folder for results."""
    parallel: int
    """Requests at one time."""
    python: str
    """Interpreter of the environment that has the tool."""


@dataclass(frozen=True)
class SuiteRun:
    """One call of a tool."""

    tool: Tool
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    folder: Path | None = None
    """Where it must be run; None: anywhere."""

    def __str__(self) -> str:
        """As a line for a shell."""
        where = f"cd {shlex.quote(str(self.folder))} && " if self.folder else ""
        settings = "".join(f"{name}={shlex.quote(value)} " for name, value in self.environment)
        return where + settings + shlex.join(self.command)


def choose_suites(names: Sequence[str], tool: Tool) -> tuple[list[Suite], list[Suite]]:
    """Suites of those names, all without names: what the tool covers, and what it does not.

    Raises:
        ConfigError: there is no such suite or tool.
    """
    known = {suite.name: suite for suite in SUITES}
    if tool not in get_args(Tool):
        raise ConfigError(f"TOOL is {' or '.join(get_args(Tool))}, found {tool}")
    for name in names:
        if name not in known:
            raise ConfigError(f"no suite {name!r}; suites are {', '.join(known)}")
    chosen = [known[name] for name in names] or list(SUITES)
    covered = [suite for suite in chosen if tool == "vlmevalkit" or suite.lmms_eval is not None]
    return covered, [suite for suite in chosen if suite not in covered]


def vlmevalkit_run(suites: Sequence[Suite], call: ToolCall, *, folder: Path) -> SuiteRun:
    """One call of VLMEvalKit's `run.py` for all the suites.

    Args:
        suites: what to measure.
        call: how. Without `--judge` the tool would ask OpenAI, hence exact matching where there is no judge.
        folder: a clone of VLMEvalKit.
    """
    data = [name for suite in suites for name in suite.vlmevalkit]
    command = [call.python, "run.py", "--api-mode", "--base-url", call.url, "--model", SERVED_NAME, "--key", "local"]
    command += ["--data", *data, "--max-tokens", str(call.max_tokens), "--temperature", "0"]
    command += ["--api-nproc", str(call.parallel), "--work-dir", str(call.out), "--reuse"]
    command += ["--judge", call.judge.model if call.judge else "exact_matching"]
    if call.judge and call.judge.base_url:
        command += ["--judge-base-url", call.judge.base_url, "--judge-key", "local"]
    # Cells of an .xlsx file end at 32,767 characters, which cuts long thinking.
    return SuiteRun("vlmevalkit", tuple(command), (("PRED_FORMAT", "tsv"),), folder)


def lmms_eval_run(suites: Sequence[Suite], call: ToolCall) -> SuiteRun:
    """One call of lmms-eval for all the suites.

    Args:
        suites: what to measure; each has a task.
        call: how. The tasks' own token limits are 16 to 1,024 and would cut thinking off. A judge is asked by MMBench
            and HRBench; without one they ask OpenAI.
    """
    # async_openai hands its timeout to the client; openai of 0.7.3 takes one and does not.
    model = f"model_version={SERVED_NAME},base_url={call.url},api_key=local,timeout=3600,num_cpus={call.parallel}"
    command = [call.python, "-m", "lmms_eval", "--model", "async_openai", "--model_args", model]
    command += ["--tasks", ",".join(suite.lmms_eval or "" for suite in suites), "--batch_size", "1"]
    command += ["--gen_kwargs", f"max_new_tokens={call.max_tokens},temperature=0", "--log_samples"]
    command += ["--output_path", str(call.out)]
    environment: list[tuple[str, str]] = []
    if call.judge is not None:
        address = (call.judge.base_url or "https://api.openai.com/v1") + "/chat/completions"
        environment = [("OPENAI_API_URL", address), ("MODEL_VERSION", call.judge.model)]
    return SuiteRun("lmms-eval", tuple(command), tuple(environment))
