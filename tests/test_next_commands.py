"""Commands that are printed for a user to run next work as they are pasted into a shell."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dig_rl.overrides import parse_override, split_overrides
from launch.arguments import split_paths, split_words
from launch.next_command import next_command
from tests.tiny import ROOT

HOSTILE = 'it\'s a $HOME #1 100% «ü» "q" `id` \\ 😀 \t=x'
SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"


def as_run(command: str, cwd: Path = ROOT) -> list[str]:
    """What a pasted command hands to the module it runs, set-up left out."""
    show = f"{shlex.quote(sys.executable)} -c {shlex.quote(SHOW)}"
    pasted = command.replace("make ", f"make --old-file=setup PY={shlex.quote(show)} ", 1)
    done = subprocess.run(["bash", "-c", pasted], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))


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
    assert command == f"make -C {ROOT} data-check DATA=data/x"
    assert as_run(command, cwd=tmp_path)[-1] == "data/x"
