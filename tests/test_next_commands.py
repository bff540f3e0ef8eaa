"""Commands that are printed for a user to run next work as they are pasted into a shell."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dig_rl.config import Config, load_config
from dig_rl.datagen.recipe import load_recipe
from dig_rl.errors import ConfigError
from dig_rl.next_command import next_command
from dig_rl.overrides import parse_override, split_overrides
from dig_rl.parsing import parse_answer
from launch import data, data_check, demo
from launch.arguments import chosen_run, split_paths, split_words
from launch.next_steps import after_data, after_not_finite, new_run, reward_settings, training_on, training_with
from tests.data_folders import line_of, write_folder
from tests.next_commands import HOSTILE, as_run, options_of, printed, resolve
from tests.tiny import ROOT


@pytest.mark.parametrize("value", [HOSTILE, "a\nb", "--", "$$x := $(shell id)"])
def test_a_value_reaches_the_command_as_it_was_meant(value: str) -> None:
    assert as_run(next_command("data-check", DATA=value)) == ["-m", "launch.data_check", "--data", value]


def test_settings_and_configs_reach_the_command_as_they_were_meant(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace('"', "")
    folder.mkdir()
    configs = [folder / "a.toml", folder / "b.toml"]
    for config in configs:
        config.touch()
    settings = {"data.path": HOSTILE, "learner.freeze": ["vision", "projector"], "learner.lr": 1e-6, "policy.hub": True}
    given = as_run(next_command("train", CONFIG=configs, RUN="mine", SET=settings))
    options = dict(zip(given[2::2], given[3::2], strict=True))
    assert split_paths(options["--config"]) == [str(config) for config in configs]
    assert dict(map(parse_override, split_overrides(options["--set"]))) == settings
    (one,) = [word for word in as_run(next_command("doctor", CONFIG=configs[0])) if word.endswith(".toml")]
    assert split_paths(one) == [str(configs[0])]  # a single path needs no quotes of its own


def test_a_value_of_the_environment_holds_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", HOSTILE)
    assert as_run("make data-check") == ["-m", "launch.data_check", "--data", HOSTILE]


def test_several_configs_are_told_apart(tmp_path: Path) -> None:
    spaced = tmp_path / "a b.toml"
    spaced.touch()
    assert split_words(f"x.toml '{spaced}' it's.toml \"c d\"") == ["x.toml", str(spaced), "it's.toml", "c d"]
    assert split_paths(str(spaced)) == [str(spaced)]
    assert split_paths("a.toml") == ["a.toml"]  # whether it is there is asked where it is read
    assert split_paths("") == []


def test_called_from_another_folder_the_next_command_is_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_RL_CALLED_FROM", str(ROOT))
    monkeypatch.chdir(ROOT)
    assert next_command("data") == "make data"
    monkeypatch.setenv("DIG_RL_CALLED_FROM", str(tmp_path))
    command = next_command("data-check", DATA="data/x")
    assert command == f"make -C {shlex.quote(str(ROOT))} data-check DATA=data/x"
    assert as_run(command, cwd=tmp_path)[-1] == "data/x"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a user keeps things."""
    (tmp_path / "it's mine, 100%").mkdir()
    return tmp_path / "it's mine, 100%"


def run(monkeypatch: pytest.MonkeyPatch, main: object, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["make", *map(str, arguments)])
    return main()  # type: ignore[operator]


RECIPE = """
seed = 5
width = 48
height = 32
samples = 1
num_objects = [3, 3]
arena_m = 1.6
renderer = "numpy"
[splits.train]
1 = 1
2 = 1
3 = 1
[splits.test]
1 = 1
"""


def test_from_a_recipe_to_training_every_printed_command_resolves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my recipe.toml").write_text(RECIPE)
    run(monkeypatch, data.main, "--config", folder / "my recipe.toml", "--out", folder / "my data", "--workers", "1")
    (check,) = printed(capsys.readouterr().out)
    options = resolve(check)
    run(monkeypatch, data_check.main, "--data", options["--data"], "--workers", "1", "--sheet-pairs", "1")
    (train,) = printed(capsys.readouterr().out)
    assert resolve(train)["--run"] == "on-my-data"
    assert split_overrides(options_of(train)["--set"]) == [f"data.path={folder}/my data"]


@pytest.mark.parametrize("recipe", sorted((ROOT / "launch/configs/data").glob("*.toml")), ids=lambda file: file.stem)
def test_data_of_every_shipped_recipe_is_followed_by_a_command_that_resolves(folder: Path, recipe: Path) -> None:
    config = load_recipe(recipe)
    lines = []
    for split, by_count in config.splits.items():
        for count in by_count:
            line = line_of(f"p{len(lines)}", split=split, num_differences=count)
            lines.append(line | {"differences": line["differences"] * count})
    write_folder(folder / "data", lines)
    command = after_data(folder / "data")
    options = resolve(command)
    if recipe.stem == "unseen":
        assert (options["module"], options["--checkpoint"]) == ("evaluate", "nano/policy")
    else:
        assert options["module"] == "train" and "curriculum" not in options["--set"]


def test_pairs_of_any_kind_have_settings_that_fit(folder: Path) -> None:
    one = line_of("p0")
    many = line_of("p1", num_differences=12) | {"differences": one["differences"] * 12}
    none = line_of("p2", num_differences=0, differences=[])
    write_folder(folder / "data", [one, many, none])
    settings = split_overrides(resolve(after_data(folder / "data"))["--set"])
    assert settings[1:] == [
        "data.allow_no_change=true",
        "curriculum=curricula/any.toml",
        "rollout.max_completion_tokens=120",
        "rollout.max_model_len=208",
    ]
    write_folder(folder / "later", [line_of("p0", split="validation")])
    assert options_of(after_data(folder / "later"))["--split"] == "validation"
    assert training_on(folder / "later") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (32, []),
        (33, ["reward.max_boxes=33"]),
        (1000, ["reward.max_boxes=1000", "reward.max_answer_characters=32000"]),
    ],
)
def test_the_right_answer_to_a_pair_of_many_changes_is_read_whole(
    folder: Path, changes: int, expected: list[str]
) -> None:
    line = line_of("p0", num_differences=changes)
    write_folder(folder / "data", [line | {"differences": line["differences"] * changes}])
    settings = split_overrides(resolve(after_data(folder / "data"))["--set"])
    tokens = [f"rollout.max_completion_tokens={10 * changes}", f"rollout.max_model_len={10 * changes + 88}"]
    assert settings[1:] == ["curriculum=curricula/any.toml", *expected, *tokens]
    config = load_config([ROOT / "launch/configs/demo.toml"], settings)
    answer = json.dumps([[997, 998, 999, 1000]] * changes)
    read = parse_answer(answer, config.reward, thinking=False, frame="norm1000", model_image_size_px=(48, 32))
    assert read.status == "ok"


def test_what_a_command_was_given_the_next_one_is_given_too(folder: Path) -> None:
    write_folder(folder / "data", [line_of(f"p{index}", num_differences=1) for index in range(2)])
    config = folder / "my config.toml"
    config.write_text('curriculum = "curricula/single_only.toml"\n[policy]\npath = "nano/policy"\n')
    command = training_with([str(config)], [f"data.path={folder / 'data'}", 'learner.freeze=["vision", "projector"]'])
    options = resolve(command)
    found = load_config(split_paths(options["--config"]), split_overrides(options["--set"]))
    assert (found.data.path, found.learner.freeze) == (str(folder / "data"), ("vision", "projector"))
    assert options["--run"] == "my-config"
    assert resolve(training_with([]))["--config"] == "launch/configs/demo.toml"


def test_a_run_of_nan_is_followed_by_its_newest_checkpoint_at_a_lower_rate(folder: Path) -> None:
    run_folder, settings = folder / "runs" / "mine", ["learner.lr=1e6", "seed=4"]
    run_folder.mkdir(parents=True)
    (alone,) = after_not_finite(run_folder, ["launch/configs/demo.toml"], settings, 1e6)
    options = options_of(alone)
    assert options["--run"] == "mine-2"
    assert split_overrides(options["--set"]) == ["learner.lr=1e-06", "seed=4"]
    for step in (2, 10):
        (run_folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (run_folder / "checkpoints" / "step-11.partial").mkdir()
    export, train = after_not_finite(run_folder, ["launch/configs/demo.toml"], settings, 1e-3)
    assert options_of(export)["--checkpoint"] == f"{run_folder}/checkpoints/step-10"
    policy = options_of(export)["--out"]
    assert policy == "policies/mine-step-10"
    found = load_config([ROOT / "launch/configs/demo.toml"], split_overrides(options_of(train)["--set"]))
    assert (found.policy.path, found.learner.lr, found.seed) == (policy, 1e-4, 4)


def test_a_new_run_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert new_run("it's mine", tmp_path) == "it-s-mine"
    (tmp_path / "it-s-mine").mkdir()
    (tmp_path / "it-s-mine-2").mkdir()
    assert new_run("it's mine", tmp_path) == "it-s-mine-3"
    assert new_run("новый", tmp_path) == "first"


def test_a_plugin_by_itself_is_a_reward() -> None:
    settings = reward_settings("rewards/box_iou.py:box_iou", {"iou_reduction": "matched"})
    options = resolve(next_command("reward-report", SET=settings))
    (term,) = load_config([], split_overrides(options["--set"])).reward.terms.values()
    assert (term.use, term.weight, term.kwargs) == ("rewards/box_iou.py:box_iou", 1.0, {"iou_reduction": "matched"})


def test_what_the_demo_shows_at_its_end_exists() -> None:
    for command in re.findall("^ *(make .*)$", demo.NEXT.format(**demo.next_commands()), re.MULTILINE):
        target, *words = shlex.split(command)[1:]
        assert {word.partition("=")[0] for word in words} <= variables_of()[target]
        if target in ("train", "reward-report"):  # the others look at what the demo leaves
            resolve(command)


@cache
def variables_of() -> dict[str, set[str]]:
    """Variables that each target of the Makefile reads."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    macros = dict(re.findall(r"^(\w+) [:?]?= ?(.*)$", text, re.MULTILINE))

    def names(recipe: str) -> Iterator[str]:
        for name in re.findall(r"call option,[\w-]+,(\w+)|\$\((?:value )?(\w+)\)|\$\$(\w+)", recipe):
            yield from names(macros.get("".join(name), ""))
            yield "".join(name)

    recipes = re.findall(r"^([a-z-]+): .*##.*\n((?:\t.*\n)*)", text, re.MULTILINE)
    return {target: set(names(recipe)) | {"PYTHON", "MAKE"} for target, recipe in recipes}


def named_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Targets and variables of all `make target VARIABLE=...` of a text."""
    variable = r"[A-Z][A-Z_]*=(?:\"[^\"]*\"|'[^']*'|[^\s`]*)"
    for target, rest in re.findall(rf"\bmake ((?:[a-z]+-)*[a-z]+)\b((?: +{variable})*)", text):
        yield target, re.findall(r" ([A-Z][A-Z_]*)=", re.sub(r"\"[^\"]*\"|'[^']*'", "", rest))


DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md"))]
SOURCES = [path for folder in ("launch", "dig_rl") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("files", [DOCUMENTS, SOURCES], ids=["documents", "sources"])
def test_every_variable_that_a_text_names_belongs_to_its_target(files: list[Path]) -> None:
    known = variables_of()
    assert {"CONFIG", "RUN", "SET"} <= known["train"] and known["report"] >= {"RUN"}
    found = 0
    for path in files:
        for target, variables in named_commands(path.read_text()):
            if target in known:  # "make sure" is none
                assert set(variables) <= known[target], f"{path}: make {target}"
                found += len(variables)
            assert target in known or not variables, f"{path}: make {target}"
    assert found > 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_and_configs_of_documented_commands_exist(path: Path, tmp_path: Path) -> None:
    of_a_run = tmp_path / "config.json"
    of_a_run.write_text(Config().model_dump_json())
    for line in re.findall(r"^make .*$", path.read_text(), re.MULTILINE):
        for name, text in re.findall(r"""(SET|CONFIG)=("[^"]*"|'[^']*'|\S+)""", line):
            words = text.strip("\"'")
            if name == "SET":
                load_config([of_a_run], split_overrides(words))
            for config in split_words(words) if name == "CONFIG" else []:
                assert (ROOT / config).is_file() or config in ("my.toml", "runs/ablations/configs/format-0.json"), line


def test_no_message_puts_a_value_into_a_command_by_itself() -> None:
    for path, text in [(path, path.read_text()) for path in SOURCES]:
        for node in ast.walk(ast.parse(text)) if re.search(r"make [a-z-]+ |[Nn]ext: ", text) else []:
            if isinstance(node, ast.JoinedStr):
                words = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                assert not re.search(r"make [a-z-]+ [^.;`]*[A-Z]+=[^ ]*\{\}", words), f"{path}: {words}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.parts[-2] == "launch":
                assert not re.search(r"[Nn]ext: make .*=\.\.\.", node.value), f"{path}: {node.value}"


def test_a_recipe_that_needs_no_blender_is_known_by_its_file_whatever_its_name(folder: Path) -> None:
    recipe = folder / "my $HOME recipe.toml"
    recipe.write_text(RECIPE)
    for name, needed in ((recipe, False), ("launch/configs/data/tiny.toml", True)):
        command = shlex.split(next_command("data", CONFIG=name))
        planned = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert ("--blender" in planned) == needed


def test_files_from_windows_are_read(folder: Path) -> None:
    (folder / "a.toml").write_bytes(b"seed = 3\r\n[learner]\r\nlr = 1e-5\r\n")
    config = load_config([folder / "a.toml"], split_overrides("rollout.group_size=4\r\nlearner.dual_clip=none\r\n"))
    assert (config.seed, config.learner.lr, config.rollout.group_size) == (3, 1e-5, 4)


@pytest.mark.parametrize("run", ["it's", "a/b", "a b", "-x", "ü", "..", "a\nb", "$HOME"])
def test_a_name_that_no_run_may_have_ends_in_one_message(run: str) -> None:
    with pytest.raises(ConfigError, match=r'RUN takes letters, digits, "\.", "_" and "-", .*; found "'):
        chosen_run(Namespace(run=run, config=[]))
