"""`make suites CHECKPOINT=`: the paper's benchmarks against a served policy: commands, or their run; then one table."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

from dig_rl.config import Config
from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError, DigRlError
from dig_rl.evaluation.suite_results import collect_results, results_table
from dig_rl.evaluation.suites import Judge, SuiteRun, ToolCall, choose_suites, lmms_eval_run, vlmevalkit_run
from dig_rl.next_command import next_command
from launch.arguments import add_list, add_settings, split_words
from launch.checkpoints import load_checkpoint_config
from launch.terminal import end_with_message

THINKING_TOKENS, ANSWER_TOKENS = 16_384, 1024


def main() -> None:
    """Parse arguments, print or run, collect what there is."""
    parser = argparse.ArgumentParser(prog="make suites", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="what `make serve` serves (CHECKPOINT=)")
    parser.add_argument("--tool", default="vlmevalkit", help="vlmevalkit (all suites) or lmms-eval (TOOL=)")
    add_list(parser, "--only", 'suites by name, as "MMStar" "V*" (ONLY=; default: all)', split_words)
    parser.add_argument("--execute", action="store_true", help="run the commands (RUN_TOOLS=1; default: print them)")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the server (URL=)")
    parser.add_argument("--vlmevalkit", type=Path, default=Path("VLMEvalKit"), help="its clone (VLMEVALKIT=)")
    parser.add_argument("--tool-python", default="python", help="interpreter that has the tool (TOOL_PYTHON=)")
    parser.add_argument(
        "--max-tokens", type=int, help="longest answer (MAX_TOKENS=; default 16384 thinking, else 1024)"
    )
    parser.add_argument("--judge", help="judge model (JUDGE=; default: exact matching)")
    parser.add_argument("--judge-url", help="OpenAI-compatible address of the judge, ending in /v1 (JUDGE_URL=)")
    parser.add_argument("--parallel", type=int, default=16, help="requests at one time (PARALLEL=)")
    add_settings(parser)
    parser.add_argument("--out", type=Path, help="folder for results (OUT=; default: runs/suites/<checkpoint>)")
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    port = port_of(options.url, "URL")
    if options.judge_url:
        port_of(options.judge_url, "JUDGE_URL")
    config, _ = load_checkpoint_config(options.checkpoint, options.config, options.set)
    covered, missing = choose_suites(options.only, options.tool)
    max_tokens = options.max_tokens or longest_answer(config)
    if max_tokens >= config.rollout.max_model_len:
        needed = 2 * max_tokens
        raise ConfigError(
            f"answers of {max_tokens} tokens do not fit a server of rollout.max_model_len = "
            f"{config.rollout.max_model_len}; give SET=rollout.max_model_len={needed} here and to make serve, or fewer "
            "MAX_TOKENS="
        )
    out: Path = (options.out or Path("runs", "suites", Path(options.checkpoint).name)).absolute()
    judge = Judge(options.judge, options.judge_url) if options.judge else None
    call = ToolCall(options.url, max_tokens, judge, out / options.tool, options.parallel, options.tool_python)
    if options.tool == "vlmevalkit":
        run = vlmevalkit_run(covered, call, folder=options.vlmevalkit.absolute())
    else:
        run = lmms_eval_run(covered, call)
    for suite in missing:
        print(f"{suite.name}: {options.tool} has no such task; TOOL=vlmevalkit does")
    if judge is None:
        print("answers are read by exact matching; papers often let a model read them: JUDGE= and JUDGE_URL=")
    serve = next_command("serve", CHECKPOINT=options.checkpoint, PORT=port, CONFIG=options.config, SET=options.set)
    print(f"with the server running ({serve}):\n\n{run}\n", flush=True)
    if options.execute:
        execute(run)
    results, problems = collect_results(out)
    for problem in problems:
        print(f"left out: {problem}; run the tool again, or remove the file")
    if not results:
        print(f"no results in {out} yet; RUN_TOOLS=1 runs the command, and the same command again collects")
        return
    table = results_table(results)
    out.mkdir(parents=True, exist_ok=True)
    left_out = "".join(f"\nLeft out: {problem}\n" for problem in problems)
    head = f"# {options.checkpoint}\n\nPaper: arXiv 2512.12633, their runs.\n\n"
    write_durably(out / "suites.md", head + table + left_out)
    print(table)
    print(f"written to {out / 'suites.md'}; figures of the paper are theirs, measured with their settings")


def port_of(url: str, variable: str) -> int | None:
    """The port that an address names, if any.

    Raises:
        ConfigError: it is none of a server.
    """
    try:
        found = urlparse(url)
        port = found.port
    except ValueError:  # a port that is no number or too large, or brackets that hold no address
        found, port = None, None
    if found is None or found.scheme not in ("http", "https") or not found.hostname:
        raise ConfigError(f"{variable}: expected http://host:port/v1, found {url}")
    return port


def longest_answer(config: Config) -> int:
    """Tokens that an answer may have where nobody says how many."""
    return THINKING_TOKENS if config.policy.thinking else ANSWER_TOKENS


def execute(run: SuiteRun) -> None:
    """Run a tool to its end.

    Raises:
        ConfigError: the tool is not there.
        DigRlError: it failed.
    """
    if run.folder is not None and not (run.folder / "run.py").is_file():
        raise ConfigError(
            f"no VLMEvalKit at {run.folder}: expected its clone with run.py; git clone "
            "https://github.com/open-compass/VLMEvalKit, install it into an environment of its own, and name both by "
            "VLMEVALKIT= and TOOL_PYTHON="
        )
    try:
        done = subprocess.run(run.command, cwd=run.folder, env=os.environ | dict(run.environment))
    except OSError as error:
        raise ConfigError(
            f"cannot run {run.command[0]} ({error.strerror}); TOOL_PYTHON= names the interpreter"
        ) from None
    if done.returncode:
        raise DigRlError(f"{run.tool} ended with exit code {done.returncode}; its messages stand above")


if __name__ == "__main__":
    sys.exit(end_with_message(main, "the tool can be continued by the same command"))
