"""The paper's benchmarks: commands as the tools' own parsers take them, and result files in the tools' own layouts."""

from __future__ import annotations

import argparse
import ast
import functools
import json
import re
import shlex
import subprocess
import sys
import typing
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dig_rl.config import load_config
from dig_rl.errors import ConfigError
from dig_rl.evaluation.suite_results import collect_results, results_table
from dig_rl.evaluation.suites import PAPER_MODELS, SEVEN, SUITES, Judge, ToolCall, choose_suites, lmms_eval_run
from dig_rl.evaluation.suites import vlmevalkit_run as vlmevalkit
from dig_rl.vllm_options import SERVED_NAME, serve_command
from launch.suites import port_of
from tests.tiny import ROOT

URL = "http://127.0.0.1:8000/v1"


def call_of(out: Path, judge: Judge | None = None) -> ToolCall:
    return ToolCall(URL, 16384, judge, out, 16, "python")


def options_of(command: tuple[str, ...]) -> dict[str, list[str]]:
    """Values by option."""
    found: dict[str, list[str]] = {}
    for word in command:
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


def test_vlmevalkit_covers_every_suite_and_asks_no_judge_unless_told() -> None:
    covered, missing = choose_suites([], "vlmevalkit")
    assert (len(covered), missing) == (12, [])
    run = vlmevalkit(covered, call_of(Path("/out")), folder=Path("/kit"))
    options = options_of(run.command)
    assert options["--judge"] == ["exact_matching"]  # its default would be OpenAI
    assert options["--base-url"] == [URL] and options["--model"] == [SERVED_NAME]
    assert options["--max-tokens"] == ["16384"]
    assert {"HallusionBench", "VStarBench", "VSR-zeroshot", "CV-Bench-2D", "CV-Bench-3D"} <= set(options["--data"])
    assert str(run).startswith("cd /kit && PRED_FORMAT=tsv python run.py --api-mode --base-url")
    judged = vlmevalkit(covered, call_of(Path("/out"), Judge("qwen", "http://h/v1")), folder=Path("/kit"))
    assert options_of(judged.command)["--judge-base-url"] == ["http://h/v1"]


def test_lmms_eval_has_no_vsr_and_its_token_limits_are_overridden() -> None:
    covered, missing = choose_suites([], "lmms-eval")
    assert [suite.name for suite in missing] == ["VSR"]
    run = lmms_eval_run(covered, call_of(Path("/out"), Judge("j", "http://h/v1")))
    options = options_of(run.command)
    assert options["--tasks"][0].split(",")[:2] == ["hallusion_bench_image", "vstar_bench"]
    assert options["--gen_kwargs"] == ["max_new_tokens=16384,temperature=0"]
    assert f"model_version={SERVED_NAME},base_url={URL}," in options["--model_args"][0]
    assert dict(run.environment) == {"OPENAI_API_URL": "http://h/v1/chat/completions", "MODEL_VERSION": "j"}
    assert shlex.split(str(run))[-len(run.command) :] == list(run.command)


def test_the_served_name_does_not_look_like_a_reasoning_model_of_openai() -> None:
    """lmms-eval drops temperature and token limit of names with o1, o3, o4 or gpt-5 in them."""
    assert not any(part in SERVED_NAME for part in ("o1", "o3", "o4", "gpt-5", "/"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no suite 'MMStars'; suites are HallusionBench, V\*"):
        choose_suites(["MMStars"], "vlmevalkit")
    with pytest.raises(ConfigError, match="TOOL is vlmevalkit or lmms-eval"):
        choose_suites([], "other")  # type: ignore[arg-type]


def test_the_papers_figures_are_those_of_the_method_note() -> None:
    suites = {suite.name: suite for suite in SUITES}
    assert len(PAPER_MODELS) == 4 and all(suite.paper is None or len(suite.paper) == 4 for suite in SUITES)
    assert suites["HallusionBench"].paper == (70.1, 73.8, 73.3, 76.7)
    assert suites["MME"].paper == (1592.4, 1643.4, 1648.4, 1665.9)
    assert {suite.name for suite in SUITES if suite.paper is None} == set(SEVEN) - {
        "HallusionBench",
        "V*",
        "VSR",
        "MMVP",
    }


def test_the_documented_columns_and_units_are_those_that_are_read() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs/benchmarks.md").read_text().split("\n")]
    documented = {row[0].split(" (")[0]: row[1:] for row in rows if len(row) in (4, 5)}
    for suite in SUITES:
        data, figure, task, *metric = documented[suite.name]
        assert data == ", ".join(f"`{name}`" for name in suite.vlmevalkit)
        assert figure.startswith(f"{suite.vlmevalkit_column}, {suite.vlmevalkit_unit}")
        assert (task, metric) in [(f"`{suite.lmms_eval}`", [f"{suite.lmms_eval_metric}, {suite.lmms_eval_unit}"])] or (
            suite.lmms_eval is None and task == "none"
        )


def write_csv(out: Path, name: str, text: str, day: str = "T20261121_Gabc") -> Path:
    folder = out / "vlmevalkit" / SERVED_NAME / day
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{SERVED_NAME}_{name}.csv"
    path.write_text(text)
    return path


def write_lmms(out: Path, results: object, name: str = "20261121_101010_results.json") -> Path:
    folder = out / "lmms-eval" / SERVED_NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(results))
    return folder / name


def seven(out: Path) -> None:
    """In the layouts of VLMEvalKit: fractions in `_acc.csv`, percent or points in `_score.csv`."""
    write_csv(
        out, "HallusionBench_score", '"split","aAcc","fAcc","qAcc"\n"Overall","70.0","40","41"\n"VD","1","2","3"\n'
    )
    write_csv(out, "VStarBench_acc", '"split","Overall","direct"\n"none","0.8","0.9"\n')
    write_csv(out, "VSR-zeroshot_score", '"precision","recall","acc","f1_score"\n"80","82","81.0","0.8"\n')
    write_csv(out, "MMVP_acc", '"Average","Overall"\n"0.75","0.6"\n')
    write_csv(
        out,
        "POPE_score",
        '"split","Overall","acc","precision","recall"\n"Overall","88","87.0","1","2"\n"random","9","9","9","9"',
    )
    write_csv(out, "CV-Bench-2D_acc", '"split","COCO","ADE20K","Overall"\n"2D","0.7","0.9","0.8"\n')
    write_csv(out, "CV-Bench-3D_acc", '"split","Overall"\n"none","0.9"\n')
    of_kinds = "".join(
        f'"{cycle}","all","0.{n}5"\n"{cycle}","cross","0.{n}"\n' for n, cycle in ((3, 0), (6, "Average"))
    )
    write_csv(out, "HRBench8K_acc", '"cycle","type","accuracy"\n' + of_kinds)
    write_csv(out, "MME_score", '"perception","reasoning","OCR"\n"1500.5","600","100"\n')


def test_results_of_vlmevalkit_stand_beside_the_papers(tmp_path: Path) -> None:
    seven(tmp_path)
    found = {result.suite.name: result.value for result in collect_results(tmp_path).results}
    assert found == pytest.approx(
        {
            "HallusionBench": 70.0,
            "V*": 80.0,
            "VSR": 81.0,
            "MMVP": 75.0,
            "POPE": 87.0,
            "CV-Bench": 85.0,  # the mean of its two parts
            "HRBench-8K": 65.0,
            "MME": 1500.5,
        }
    )
    lines = results_table(collect_results(tmp_path).results).splitlines()
    assert lines[0].endswith("| paper: 4B-Thinking | paper: 4B + DiG | paper: 8B-Thinking | paper: 8B + DiG |")
    assert "| HallusionBench | 70.0 | - | 70.1 | 73.8 | 73.3 | 76.7 |" in lines
    assert "| MMBench | - | - | 83.7 | 84.5 | 85.5 | 87.2 |" in lines
    assert lines[-1] == "| mean of seven | 77.6 | - | 78.9 | 79.9 | 79.3 | 80.5 |"  # 543 / 7


def test_half_of_cv_bench_is_no_cv_bench_and_six_of_seven_have_no_mean(tmp_path: Path) -> None:
    seven(tmp_path)
    write_csv(tmp_path, "CV-Bench-3D_acc", "").unlink()
    results = collect_results(tmp_path).results
    assert "CV-Bench" not in {result.suite.name for result in results}
    assert "| mean of seven | - | - |" in results_table(results)


def test_the_newest_run_counts(tmp_path: Path) -> None:
    write_csv(tmp_path, "MMVP_acc", '"Average","Overall"\n"0.75","0.1"\n', day="T20261120_Gfff")
    write_csv(tmp_path, "MMVP_acc", '"Average","Overall"\n"0.5","0.1"\n', day="T20261121_Gaaa")
    assert [result.value for result in collect_results(tmp_path).results] == [50.0]


def test_results_of_lmms_eval_are_read(tmp_path: Path) -> None:
    write_lmms(tmp_path, {"results": {"mmvp": {"mmvp_accuracy,none": 0.5}}}, "20261120_101010_results.json")
    results = {
        "mmvp": {"alias": "mmvp", "mmvp_accuracy,none": 0.62, "mmvp_accuracy_stderr,none": "N/A"},
        "mmstar": {"math,none": 0.1, "average,none": 0.61},
        "mme": {"mme_cognition_score,none": 500.0, "mme_perception_score,none": 1600.0},
        "mmbench_en_dev": {"gpt_eval_score,none": 82.5},
        "other": {"x": 1},
    }
    write_lmms(tmp_path, {"results": results})
    found = {result.suite.name: result.value for result in collect_results(tmp_path).results}
    assert found == pytest.approx({"MMVP": 62.0, "MMStar": 61.0, "MME": 1600.0, "MMBench": 82.5})
    assert "| MMStar | - | 61.0 | 66.7 |" in results_table(collect_results(tmp_path).results)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected an overall row with a column Overall, found none"),
        ('"a","b"\n"1","2"\n"3","4"\n', "expected an overall row"),
        ('"split","other"\n"none","0.5"\n', r"found \['split', 'other'\]"),
        ('"Overall"\n"nan"\n', r"expected a figure from 0 to 1 \(fraction\), found 'nan'"),
        ('"Overall"\n"62"\n', "found '62'"),
        ('"Overall"\n"high"\n', "found 'high'"),
        ('"acc"\n"0.5"\n', r"expected an overall row with a column Overall, found \['acc'\]"),
    ],
)
def test_a_damaged_table_is_named_and_hides_no_other(tmp_path: Path, text: str, told: str) -> None:
    path = write_csv(tmp_path, "MMStar_acc", text)
    write_csv(tmp_path, "AI2D_TEST_acc", '"split","Overall"\n"none","0.5"\n')
    results, (problem,) = collect_results(tmp_path)
    assert [(result.suite.name, result.value) for result in results] == [("AI2D", 50.0)]
    assert re.search(told, problem) and str(path) in problem and "\n" not in problem


@pytest.mark.parametrize("contents", [[], {"results": []}, {"results": {"mmvp": 3}}, {"results": {"mmvp": {}}}, {}])
def test_damaged_results_of_lmms_eval_are_named_and_hide_no_other(tmp_path: Path, contents: object) -> None:
    write_lmms(tmp_path, {"results": {"mmstar": {"average,none": 0.61}}}, "20261120_101010_results.json")
    path = write_lmms(tmp_path, contents)
    results, (problem,) = collect_results(tmp_path)
    assert [(result.suite.name, result.value) for result in results] == [("MMStar", 61.0)]
    assert str(path) in problem


def test_one_suite_of_a_file_may_be_wrong(tmp_path: Path) -> None:
    results = {"mmvp": {"mmvp_accuracy,none": 62}, "mmstar": {"average,none": 0.61}, "ai2d": {"exact_match,x": "N/A"}}
    write_lmms(tmp_path, {"results": results})
    found, problems = collect_results(tmp_path)
    assert [(result.suite.name, result.value) for result in found] == [("MMStar", 61.0)]
    assert len(problems) == 2 and "task mmvp: expected a figure from 0 to 1 (fraction), found 62" in problems[0]


VLMEVALKIT = {"HallusionBench": "aAcc", "V*": "Overall", "POPE": "acc", "MMStar": "Overall", "MME": "perception"}


@pytest.mark.parametrize(
    ("name", "written", "shown"),
    [
        ("HallusionBench", "0.9", 0.9),
        ("HallusionBench", "1.0", 1.0),
        ("HallusionBench", "0", 0.0),
        ("HallusionBench", "100", 100.0),
        ("POPE", "0.5", 0.5),
        ("V*", "0.009", 0.9),
        ("V*", "0.01", 1.0),
        ("V*", "1.0", 100.0),
        ("V*", "0", 0.0),
        ("MME", "1.0", 1.0),
        ("MME", "0.9", 0.9),
    ],
)
def test_a_low_figure_keeps_its_unit(tmp_path: Path, name: str, written: str, shown: float) -> None:
    suite = next(suite for suite in SUITES if suite.name == name)
    kind = "acc" if suite.vlmevalkit_unit == "fraction" else "score"
    write_csv(tmp_path, f"{suite.vlmevalkit[0]}_{kind}", f'"split","{VLMEVALKIT[name]}"\n"Overall","{written}"\n')
    (result,) = collect_results(tmp_path).results
    assert result.value == pytest.approx(shown, abs=1e-12)


def test_a_low_figure_of_lmms_eval_keeps_its_unit(tmp_path: Path) -> None:
    results = {
        "hallusion_bench_image": {"aAcc,none": 0.9},
        "vstar_bench": {"vstar_overall_acc,none": 1.0},
        "mmbench_en_dev": {"gpt_eval_score,none": 0.4},
        "mmvp": {"mmvp_accuracy,none": 0.01},
        "mme": {"mme_perception_score,none": 1.0},
        "pope": {"pope_accuracy,none": 1.0},
    }
    write_lmms(tmp_path, {"results": results})
    found = {result.suite.name: result.value for result in collect_results(tmp_path).results}
    assert found == pytest.approx(
        {"HallusionBench": 0.9, "V*": 1.0, "MMBench": 0.4, "MMVP": 1.0, "MME": 1.0, "POPE": 100.0}
    )


def suites(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.suites", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def policy_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return folder


@pytest.mark.parametrize(
    "url",
    ["http://h:80000/v1", "http://h:abc/v1", "http://[::1/v1", "127.0.0.1:8000/v1", "localhost:8000", "http:///v1", ""],
)
def test_an_address_of_no_server_is_told_in_one_message(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        port_of(url, "URL")
    assert str(caught.value) == f"URL: expected http://host:port/v1, found {url}"


def test_the_port_of_a_server_may_be_left_out() -> None:
    urls = [URL, "https://h/v1", "http://[::1]:81/v1"]
    assert [port_of(url, "URL") for url in urls] == [8000, None, 81]


def test_make_suites_prints_and_collects(tmp_path: Path) -> None:
    seven(tmp_path / "out")
    broken = write_csv(tmp_path / "out", "MMStar_acc", '"Overall"\n"62"\n')
    policy = policy_folder(tmp_path / "demo1")
    settings = ["--set", "rollout.max_model_len=8192", "--out", str(tmp_path / "out"), "--vlmevalkit", str(tmp_path)]
    done = suites("--checkpoint", str(policy), *settings)
    assert done.returncode == 0, done.stderr
    assert "run.py --api-mode --base-url http://127.0.0.1:8000/v1 --model policy" in done.stdout
    assert "--max-tokens 1024" in done.stdout
    page = (tmp_path / "out/suites.md").read_text()
    assert "| V* | 80.0 | - |" in page and f"Left out: {broken}: expected a figure from 0 to 1" in page
    assert f"left out: {broken}: expected a figure from 0 to 1 (fraction), found '62'" in done.stdout
    done = suites("--checkpoint", str(policy), *settings, "--execute")
    assert done.returncode == 1
    assert f"error: no VLMEvalKit at {tmp_path}: expected its clone with run.py" in done.stderr
    mistyped = suites("--checkpoint", str(policy), "--judge-url", "h:1", "--judge", "j")
    assert mistyped.stderr.strip() == "error: JUDGE_URL: expected http://host:port/v1, found h:1"
    thinking = suites("--checkpoint", str(policy), "--set", "policy.thinking=true", "rollout.max_model_len=8192")
    assert "answers of 16384 tokens do not fit a server of rollout.max_model_len = 8192" in thinking.stderr


def test_the_server_gets_the_options_of_the_rollout_workers() -> None:
    config = load_config([], ['policy.path="p"', "rollout.vllm={gpu_memory_utilization=0.5, enforce_eager=false}"])
    command = serve_command("python", config, {"shortest_edge": 9, "longest_edge": 99}, port=8123, thinking=True)
    options = options_of(tuple(command))
    assert options["--model"] == ["p"] and options["--served-model-name"] == [SERVED_NAME]
    assert options["--host"] == ["127.0.0.1"] and options["--port"] == ["8123"]
    assert json.loads(options["--limit-mm-per-prompt"][0]) == {"image": 2, "video": 0}
    assert json.loads(options["--mm-processor-kwargs"][0]) == {"size": {"shortest_edge": 9, "longest_edge": 99}}
    assert options["--gpu-memory-utilization"] == ["0.5"]
    assert {"--no-enforce-eager", "--no-trust-remote-code", "--no-enable-chunked-prefill"} <= set(options)
    assert options["--reasoning-parser"] == ["qwen3"]


def parser_of(wheel: str, member: str, function: str, folder: Path) -> Any:
    """A function of a published wheel that makes and runs an argument parser, without what its module imports."""
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), wheel]
    done = subprocess.run(download, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no {wheel} from the package index: {done.stderr.strip()[-200:]}")
    (archive,) = folder.glob(f"{wheel.partition('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(archive) as opened:
        module = ast.parse(opened.read(member))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {"argparse": argparse, "partial": functools.partial, **vars(typing)}
    for node in functions:
        if "pars" in node.name or "arg" in node.name:
            exec(compile(ast.Module([node], []), member, "exec"), names)
    return names[function]


@pytest.mark.long
def test_the_tools_own_parsers_take_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(Path("/out"), Judge("judge", "http://h/v1"))
    run = vlmevalkit(choose_suites([], "vlmevalkit")[0], call, folder=Path("/kit"))
    parse = parser_of("ms-vlmeval==0.0.20", "vlmeval/run.py", "parse_args", tmp_path)  # VLMEvalKit of May 2026
    monkeypatch.setattr("sys.argv", list(run.command[1:]))
    found = vars(parse())
    assert found["data"] == [name for suite in SUITES for name in suite.vlmevalkit]
    assert (found["api_mode"], found["base_url"], found["model"]) == (True, URL, [SERVED_NAME])
    assert (found["max_tokens"], found["temperature"], found["judge"]) == (16384, 0.0, "judge")
    run = lmms_eval_run(choose_suites([], "lmms-eval")[0], call)
    parse = parser_of("lmms-eval==0.7.3", "lmms_eval/__main__.py", "parse_eval_args", tmp_path)
    monkeypatch.setattr("sys.argv", list(run.command[2:]))
    found = vars(parse()[1])
    assert (found["model"], found["batch_size"]) == ("async_openai", "1")
    assert found["gen_kwargs"] == "max_new_tokens=16384,temperature=0"
    assert found["tasks"].count(",") == 10
