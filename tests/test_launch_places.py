"""Where the home folder cannot be written, libraries are pointed elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.places import ROOT, provide_caches, provide_temporary

NO_FOLDER = "/proc/nonexistent"
"""Not even root can make one there."""
OWN = ROOT / ".cache" / "home"


@pytest.mark.parametrize(
    "given",
    [{"HOME": NO_FOLDER}, {"HOME": "/tmp", "XDG_CACHE_HOME": f"{NO_FOLDER}/cache"}],
)
def test_caches_go_where_they_can_be_written(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    monkeypatch.setenv("HOME", given["HOME"])
    environment = dict(given)
    provide_caches(environment)
    assert environment["XDG_CACHE_HOME"] == str(OWN) and os.access(OWN, os.W_OK)
    assert Path(environment["TRITON_HOME"]) == OWN and Path(environment["MPLCONFIGDIR"]).parent == OWN
    assert environment["HOME"] == given["HOME"]


def test_a_user_of_whom_the_system_knows_no_home_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    environment: dict[str, str] = {}
    provide_caches(environment)
    assert environment["HOME"] == environment["XDG_CACHE_HOME"] == str(OWN)


def test_a_home_that_can_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = {"HOME": str(tmp_path)}
    provide_caches(environment)
    assert environment == {"HOME": str(tmp_path)}


def test_downloaded_models_and_the_users_own_places_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("launch.places.can_write", lambda folder: folder == OWN)
    environment = {"HOME": str(tmp_path), "TRITON_HOME": "/mine"}
    provide_caches(environment)
    assert (environment["HF_HOME"], environment["TRITON_HOME"]) == (f"{tmp_path}/.cache/huggingface", "/mine")


@pytest.mark.parametrize(
    ("folder", "used"), [("/scratch/job-1.tmp", None), ("/x/ü", "/tmp"), ("/tmp/a b", "/tmp"), ("/x/it's", "/tmp")]
)
def test_compilers_and_ray_get_a_folder_that_needs_no_quotes(folder: str, used: str | None) -> None:
    environment = {"TMPDIR": folder}
    provide_temporary(environment)
    assert environment == {"TMPDIR": used or folder}
    unset: dict[str, str] = {}
    provide_temporary(unset)
    assert unset == {}


def test_a_command_without_a_home_says_nothing_of_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"} | {"HOME": NO_FOLDER}
    command = [sys.executable, "-c", "import launch, matplotlib.pyplot"]  # which would warn
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
