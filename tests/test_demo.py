"""`make demo`: its parts in order, what it does about earlier runs and obstacles, and all of it in an awkward place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dig_rl.datagen.recipe import load_recipe
from launch import demo
from launch.setup import point_to
from launch.terminal import end_with_message
from tests.next_commands import printed, resolve
from tests.tiny import ROOT


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone to the demo, and is the current one."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the demo would have run, in order."""
    recorded: list[list[str]] = []

    def run_part(*command: str) -> None:
        recorded.append(list(command))
        if command[0] == "launch.train" and "data.heldout_split=none" not in command:
            demo.BEFORE.parent.mkdir(parents=True)
            demo.BEFORE.touch()

    monkeypatch.setattr(demo, "run_part", run_part)
    return recorded


def run_demo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    return end_with_message(demo.main, "make demo continues where it stopped")


def write_summary(clone: Path, status: str) -> None:
    (clone / "runs" / "demo").mkdir(parents=True)
    (clone / "runs" / "demo" / "summary.json").write_text(json.dumps({"status": status}))


def test_parts_come_in_order_each_with_the_users_settings(
    clone: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "learner.lr=1e-4", "data.path=my pairs"]
    assert run_demo(monkeypatch, *settings) == 0
    heldout = "runs/demo/heldout/predictions_"
    assert commands == [
        ["launch.data", "--config", "launch/configs/data/unseen.toml", "--out", "data/unseen"],
        ["launch.train", "--run", "demo", "--config", "launch/configs/demo.toml", *settings],
        ["launch.compare", "--a", f"{heldout}before.jsonl", "--b", f"{heldout}after.jsonl",
         "--out", "runs/demo/comparison"],
        ["launch.evaluate", "--checkpoint", "runs/demo", "--data", "data/unseen", "--out", "runs/demo/unseen"],
    ]  # fmt: skip
    assert "What to try next" in capsys.readouterr().out


def test_without_held_out_pairs_there_is_nothing_to_compare(
    clone: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(monkeypatch, "--set", "data.heldout_split=none") == 0
    assert [command[0] for command in commands] == ["launch.data", "launch.train", "launch.evaluate"]
    assert commands[-1][-4:] == ["--split", "test", "--out", "runs/demo/unseen"]
    assert "is it better? Left out: this run answered no held-out pairs" in capsys.readouterr().out
    assert set(load_recipe(demo.UNSEEN_CONFIG).splits) == {"test"}


def test_a_finished_run_is_moved_aside(
    clone: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_summary(clone, "finished")
    assert run_demo(monkeypatch) == 0
    assert not (clone / "runs" / "demo" / "summary.json").exists()
    assert (clone / "runs" / "demo-1" / "summary.json").is_file()
    assert f"the last demo is kept as {clone / 'runs' / 'demo-1'}" in capsys.readouterr().out
    assert len(commands) == 4


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_an_unfinished_run_is_continued(
    clone: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    write_summary(clone, status)
    assert run_demo(monkeypatch) == 0
    assert [path.name for path in (clone / "runs").iterdir()] == ["demo"]
    assert len(commands) == 4


@pytest.mark.parametrize("obstacle", ["a file in its place", "a link to nowhere", "a folder that takes no files"])
def test_runs_that_cannot_be_written_end_with_one_message_before_anything_starts(
    clone: Path,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    obstacle: str,
) -> None:
    runs = clone / "runs"
    if obstacle == "a file in its place":
        runs.write_text("")
    else:  # file permissions do not bind root; /proc binds everybody
        runs.symlink_to("/proc/self" if obstacle == "a folder that takes no files" else "/proc/none")
    assert run_demo(monkeypatch) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: cannot write to ")
    assert message.endswith("make that folder writable")
    assert len(message.splitlines()) == 1
    assert commands == []


def test_a_failing_part_ends_the_demo_with_its_code(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "fails.py").write_text("raise SystemExit(3)")
    (clone / "later.py").write_text("open('later', 'w')")
    monkeypatch.setenv("PYTHONPATH", f"{clone}{os.pathsep}{ROOT}")
    monkeypatch.setattr(demo, "_parts", lambda *_: [("1/2", ["fails"]), ("2/2", ["later"])])
    with pytest.raises(SystemExit) as ended:
        run_demo(monkeypatch)
    assert ended.value.code == 3
    assert not (clone / "later").exists()


def test_an_interrupted_part_interrupts_the_demo(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "interrupted.py").write_text("raise SystemExit(130)")
    monkeypatch.setenv("PYTHONPATH", f"{clone}{os.pathsep}{ROOT}")
    monkeypatch.setattr(demo, "_parts", lambda *_: [("1/2", ["interrupted"]), ("2/2", ["never"])])
    assert run_demo(monkeypatch) == 130
    assert "interrupted; make demo continues where it stopped" in capsys.readouterr().err


@contextmanager
def occupied(ports: list[int]) -> Iterator[None]:
    """Listen on these loopback ports, those aside that somebody else has taken already."""
    with ExitStack() as stack:
        for port in ports:
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        yield


@pytest.mark.slow
def test_whole_demo_in_a_folder_with_a_space_and_an_apostrophe_while_rays_usual_ports_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "it's my clone"
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listing.stdout.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        if not (ROOT / name).is_symlink():
            shutil.copyfile(ROOT / name, clone / name)
    # As set-up leaves them beside a path with a space: commands that run where the environment lives.
    point_to(clone / ".venv", Path(sys.prefix))
    (clone / ".venv-blender").symlink_to(ROOT / ".venv-blender")
    operators = clone / ".cache" / "torch_extensions"
    shutil.copytree(os.environ["TORCH_EXTENSIONS_DIR"], operators, ignore=shutil.ignore_patterns("lock"))
    sizes = "curriculum=curricula/tiny.toml rollout.prompts_per_step=3 rollout.group_size=4 evaluation.max_pairs=8"

    with occupied([6379, 8265, 10001]):
        done = subprocess.run(
            ["make", "--old-file=setup", "--old-file=setup-blender", "demo", f"SET={sizes}"],
            cwd=clone,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before" in done.stdout and "after" in done.stdout
    assert "8 pairs" in done.stdout and "24 pairs" in done.stdout  # held out, and drawn a moment ago
    assert "What to try next" in done.stdout
    run = clone / "runs" / "demo"
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run / "report.html").is_file()
    assert (run / "policy" / "config.json").is_file()
    monkeypatch.chdir(clone)
    targets = [resolve(command)["module"] for command in printed(done.stdout)]
    assert targets == ["data_check", "compare", "tensorboard", "evaluate", "train", "reward_report"]
