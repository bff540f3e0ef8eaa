"""Opening, continuing, locking and moving aside a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dig_rl.config import AlarmsConfig, Config, LearnerConfig, RolloutConfig
from dig_rl.errors import ConfigError, DigRlError, PluginError
from dig_rl.run_folder import RunFolder, move_aside


def test_a_new_run_records_its_config_and_environment(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "deep" / "runs", "first", Config(seed=3)) as run:
        assert run.path == tmp_path / "deep" / "runs" / "first"
        assert not run.continued
    assert Config.model_validate(json.loads((run.path / "config.json").read_text())) == Config(seed=3)
    (start,) = json.loads((run.path / "environment.json").read_text())["starts"]
    assert start["python"] == ".".join(map(str, sys.version_info[:3]))
    assert start["packages"]["numpy"] == __import__("numpy").__version__
    assert "git_revision" in start and "git_modified" in start


def test_same_name_and_config_continues_and_adds_a_start(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, "r", Config()).close()
    with RunFolder.open(tmp_path, "r", Config()) as run:
        assert run.continued
    assert len(json.loads((run.path / "environment.json").read_text())["starts"]) == 2


def test_a_changed_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, "r", Config()).close()
    changed = Config(seed=1, learner=LearnerConfig(lr=1e-5), rollout=RolloutConfig(group_size=4))
    for _ in range(2):  # the refusal leaves neither a lock nor the new config behind
        with pytest.raises(ConfigError) as caught:
            RunFolder.open(tmp_path, "r", changed)
        lines = str(caught.value).splitlines()
        assert lines[1:4] == ["  learner.lr: 1e-06 -> 1e-05", "  rollout.group_size: 8 -> 4", "  seed: 0 -> 1"]
        assert "RUN=" in lines[-1]
    RunFolder.open(tmp_path, "r", Config()).close()


def test_a_run_of_an_earlier_version_continues_and_is_compared_with_the_defaults_of_its_new_keys(
    tmp_path: Path,
) -> None:
    RunFolder.open(tmp_path, "r", Config()).close()
    path = tmp_path / "r/config.json"
    saved = json.loads(path.read_text())
    del saved["alarms"]["not_finite"], saved["evaluation"]
    path.write_text(json.dumps(saved))
    with RunFolder.open(tmp_path, "r", Config()) as run:
        assert run.continued
    with pytest.raises(ConfigError, match=r"\n  alarms\.not_finite: 1\.0 -> 2\.0\n  seed: 0 -> 1\nUse"):
        RunFolder.open(tmp_path, "r", Config(seed=1, alarms=AlarmsConfig(not_finite=2)))
    saved["alarms"]["gone"] = 3
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"\n  alarms\.gone: 3 -> null\n"):
        RunFolder.open(tmp_path, "r", Config())


def test_changed_plugins_are_refused_once_there_is_a_checkpoint_unless_told_to(tmp_path: Path) -> None:
    old, new = {"a.py:f": "0" * 64, "b.py:g": "1" * 64}, {"a.py:f": "2" * 64, "b.py:g": "1" * 64}
    with RunFolder.open(tmp_path, "r", Config()) as run:
        for hashes in (new, old, old):  # nothing is trained yet, so nothing is mixed
            run.record_plugins(hashes, allow_changed=False)
        (run.checkpoints / "step-1").mkdir(parents=True)
        run.record_plugins(old, allow_changed=False)
        for _ in range(2):
            with pytest.raises(PluginError) as caught:
                run.record_plugins(new, allow_changed=False)
            assert f'\n  a.py:f: "{"0" * 64}" -> "{"2" * 64}"\n' in str(caught.value)
            assert "b.py" not in str(caught.value)
            assert "ALLOW_CHANGED_PLUGINS=1" in str(caught.value)
        run.record_plugins(new, allow_changed=True)
        run.record_plugins(new, allow_changed=False)
    versions = json.loads((run.path / "plugins.json").read_text())["versions"]
    assert [version["sha256"] for version in versions] == [new, old, new]


@pytest.mark.parametrize("contents", ['{"seed": 0', "[]", "", "\xff"])
def test_a_damaged_config_is_named(tmp_path: Path, contents: str) -> None:
    RunFolder.open(tmp_path, "r", Config()).close()
    (tmp_path / "r" / "config.json").write_bytes(contents.encode("latin-1"))
    with pytest.raises(DigRlError, match=r"r/config\.json .*restore it, or choose another RUN= name"):
        RunFolder.open(tmp_path, "r", Config())


def test_a_folder_of_something_else_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "policies" / "small").mkdir(parents=True)
    with pytest.raises(DigRlError, match=r"policies has no config\.json but holds small"):
        RunFolder.open(tmp_path, "policies", Config())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/etc", "-x", ".hidden", "a b", "a\n", "ü"])
def test_names_that_are_no_plain_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="RUN takes letters"):
        RunFolder.open(tmp_path, name, Config())
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_runs_folder_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    for runs_dir in (tmp_path / "runs", Path("/proc/no-such-place")):
        with pytest.raises(DigRlError, match=f"cannot write the run folder {runs_dir}/r: .*make it writable"):
            RunFolder.open(runs_dir, "r", Config())


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_runs_folder_is_one_clear_message(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DigRlError, match=r"cannot write the run folder .*Permission denied"):
        RunFolder.open(tmp_path, "r", Config())


HOLD = """
import sys, time
from dig_rl.config import Config
from dig_rl.run_folder import RunFolder
run = RunFolder.open(sys.argv[1], "r", Config())
print("open", flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_run_one_run_and_a_kill_frees_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        with pytest.raises(DigRlError, match=f"run r in .* is in use by process {holder.pid} on "):
            RunFolder.open(tmp_path, "r", Config())
        with pytest.raises(DigRlError, match="is in use by process"):
            move_aside(tmp_path, "r")
        holder.send_signal(signal.SIGKILL)
    with RunFolder.open(tmp_path, "r", Config()) as run:
        assert run.continued


def test_the_lock_does_not_outlive_the_run_in_a_child_process(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "r", Config()):
        child = subprocess.Popen(["sleep", "30"])
    try:
        RunFolder.open(tmp_path, "r", Config()).close()
    finally:
        child.kill()
        child.wait()


def test_moving_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    moved = []
    for seed in range(3):
        RunFolder.open(tmp_path, "demo", Config(seed=seed)).close()
        moved.append(move_aside(tmp_path, "demo").name)
    assert moved == ["demo-1", "demo-2", "demo-3"]
    assert json.loads((tmp_path / "demo-2" / "config.json").read_text())["seed"] == 1
    assert not (tmp_path / "demo").exists()


def test_moving_aside_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DigRlError, match=r"no run folder at .*demo"):
        move_aside(tmp_path, "demo")
