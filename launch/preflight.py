"""What a machine must have before anything is installed or built: system, compiler, Python with headers, disk.

Like launch/setup.py this runs on the system's Python: standard library only, no syntax newer than Python 3.7. Every
check passes in silence or raises a SetupError that says what to install.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from dig_rl.errors import SetupError


class Python(NamedTuple):
    """An interpreter that an environment can be made from."""

    executable: str
    version: str
    """`major.minor`"""
    include: str
    """Folder that holds Python.h, if the headers are installed."""
    has_venv: bool


def check_platform() -> None:
    """Refuse systems that the pinned packages do not exist for."""
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        raise SetupError(
            f"dig-rl runs on Linux (x86_64 or aarch64); this is {sys.platform} on {os.uname().machine}. "
            "Use a Linux machine or container."
        )


def find_compilers() -> list[str]:
    """The C++ compilers that vLLM's and DeepSpeed's kernels are built with, `CXX` or both of c++ and g++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]
    for name in names:
        if not shutil.which(name):
            raise SetupError(
                f"no C++ compiler: `{name}` is not on PATH. vLLM and DeepSpeed compile small CPU kernels with it. "
                "Install it (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++) or name one in CXX."
            )
    return names


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return listing.returncode == 0 and b"GPU 0" in listing.stdout


def find_python(names: tuple[str, ...], wanted: str) -> Python:
    """The running interpreter if it is one of `names`, else the first of them on PATH, with the venv module."""
    probe = (
        "import json, sys, sysconfig, importlib.util as u; "
        "print(json.dumps(['%d.%d' % sys.version_info[:2], sysconfig.get_paths()['include'], "
        "bool(u.find_spec('venv') and u.find_spec('ensurepip'))]))"
    )
    for candidate in (sys.executable, *names):
        executable = shutil.which(candidate)
        if executable is None:
            continue
        answer = subprocess.run([executable, "-c", probe], capture_output=True)
        if answer.returncode != 0:
            continue
        python = Python(executable, *json.loads(answer.stdout.decode()))
        if f"python{python.version}" not in names:
            continue
        if not python.has_venv:
            raise SetupError(
                f"{executable} (Python {python.version}) has no venv module. "
                f"Install it (Debian, Ubuntu: apt-get install python{python.version}-venv)."
            )
        return python
    raise SetupError(
        f"Python {wanted} is needed; {sys.executable} is {sys.version.split()[0]} and none of {', '.join(names)} is on "
        "PATH. Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev) or name one: "
        "make setup PYTHON=/path/to/python3.11"
    )


def check_headers(python: Python, compiler: str) -> None:
    """Compile a line of C++ that includes Python's headers."""
    if not (Path(python.include) / "Python.h").exists():
        raise SetupError(
            f"Python's headers are missing: no Python.h in {python.include}. Compiled kernels need them. "
            f"Install them (Debian, Ubuntu: apt-get install python{python.version}-dev)."
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <vector>\n#include <Python.h>\nint main() { return 0; }\n")
        command = [compiler, "-fsyntax-only", f"-I{python.include}", str(source)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        last = result.stdout.decode(errors="replace").strip().splitlines()[-1:]
        raise SetupError(f"the C++ compiler `{compiler}` cannot compile three lines: {' '.join(last)}. Reinstall it.")


def check_disk(folder: Path, needed_gib: float) -> None:
    """Refuse to start an installation that cannot fit."""
    free_gib = shutil.disk_usage(str(folder)).free / 2**30
    if free_gib < needed_gib:
        raise SetupError(
            f"the disk that holds {folder} has {free_gib:.1f} GiB free and {needed_gib:g} GiB are needed. "
            "Free some, or clone to a larger disk."
        )


def check_blender(environment: Path) -> None:
    """Import Blender once: it links against system libraries that a bare container may lack."""
    command = [str(environment / "bin/python"), "-c", "import bpy; print('Blender', bpy.app.version_string)"]
    result = subprocess.run(command, capture_output=True)
    library = re.search(rb"(lib[\w.+-]+\.so[\w.]*): cannot open shared object", result.stderr)
    if library:
        raise SetupError(
            f"Blender needs the system library {library.group(1).decode()}. Install it (Debian, Ubuntu: apt-get "
            "install libx11-6 libxi6 libxxf86vm1 libxfixes3 libxrender1 libxkbcommon0 libsm6 libice6 libgl1 libegl1)."
        )
    if result.returncode != 0:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise SetupError(f"Blender does not start in {environment}: {' '.join(last)}")
