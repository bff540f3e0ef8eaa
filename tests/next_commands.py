"""Printed commands, taken apart and resolved: what they name is there, and what they would read can be read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from dig_rl.config import Config, load_config
from dig_rl.data import METADATA_NAME, read_records
from dig_rl.inputs import read_inputs
from dig_rl.overrides import split_overrides
from dig_rl.plugins import load_plugin
from launch.arguments import split_paths, split_words
from launch.checkpoints import find_policy, load_checkpoint_config
from tests.tiny import ROOT

HOSTILE = 'it\'s a $HOME #1 100% «ü» "q" `id` \\ 😀 \t=x'
_SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"


def printed(text: str) -> list[str]:
    """Commands that an output tells to run next."""
    return re.findall(r"^(?:Next: | +)(make .*)$", text, re.MULTILINE)


def as_run(command: str, cwd: Path = ROOT) -> list[str]:
    """What a pasted command hands to Python, set-up left out."""
    show = f"{shlex.quote(sys.executable)} -c {shlex.quote(_SHOW)}"
    setups = "--old-file=setup --old-file=setup-blender"
    pasted = command.replace("make ", f"make {setups} PY={shlex.quote(show)} ", 1)
    done = subprocess.run(["bash", "-c", pasted], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("["))))


def options_of(command: str) -> dict[str, str]:
    """The options that it hands on, by name; every variable that it sets is among them."""
    _, module, *words = as_run(command)
    options = {"module": module.removeprefix("launch.")}
    for index, word in enumerate(words):
        if word.startswith("--"):
            value = " ".join(words[index + 1 : index + 2])
            told = "" if value.startswith("--") else value
            options[word] = " ".join(filter(None, [options.get(word), told]))
    given = [word.partition("=")[2] for word in shlex.split(command)[1:] if re.match("[A-Z_]+=", word)]
    for value in given:
        assert value == "1" or any(value in told for told in options.values()), f"{value} of {command} is not handed on"
    return options


def resolve(command: str) -> dict[str, str]:
    """Its options, once all that they name was found, in the working folder."""
    if shlex.split(command)[-1] == "tensorboard":  # runs no module of ours
        return {"module": "tensorboard"}
    options = options_of(command)
    paths, settings = split_paths(options.get("--config", "")), split_overrides(options.get("--set", ""))
    for path in paths:
        assert Path(path).is_file(), command
    for name in ("--checkpoint", "--a", "--b"):
        if name in options:
            config, _ = load_checkpoint_config(options[name], paths, settings)
            assert find_policy(options[name]), command
            if options["module"] in ("evaluate", "compare"):
                folder, split = config.data.path, config.data.heldout_split
                _check_split(Path(options.get("--data", folder)), options.get("--split", split))
            elif options["module"] == "suites":
                assert int(options.get("--max-tokens", 1024)) < config.rollout.max_model_len, command
    if options["module"] == "train":
        config = load_config(paths, settings)
        read_inputs(config, ROOT)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options["--run"]) and Path(config.policy.path).is_dir()
        assert not Path("runs", options["--run"]).exists(), command
    elif options["module"] == "warmup":
        assert Path(load_config(paths, settings).warmup.start).is_dir() and not Path(options["--out"]).exists()
    elif options["module"] == "data_check":
        assert Path(options["--data"], METADATA_NAME).is_file(), command
    elif options["module"] == "reward_report":
        _check_plugins(load_config(paths, settings))
    elif options["module"] == "report":
        assert Path("runs", *split_words(options["--run"])).is_dir(), command
    return options


def _check_split(folder: Path, split: str | None) -> None:
    assert split in {record.split for _, record in read_records(folder, allow_no_change=True)}


def _check_plugins(config: Config) -> None:
    for term in config.reward.terms.values():
        load_plugin(term.use, term.kwargs, ROOT)
