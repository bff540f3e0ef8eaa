"""`make submit`: send a run to a Ray cluster, or write and queue a Slurm batch script. See docs/cluster.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import jinja2

from dig_rl.config import Config, load_config
from dig_rl.errors import ClusterError
from dig_rl.overrides import override
from launch.arguments import add_settings, chosen_run
from launch.terminal import end_with_message

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
LEFT_BEHIND = [".git", ".venv*", ".cache", "/runs", "/data", "/policies", "__pycache__", "*.egg-info", ".*_cache"]
"""What does not travel: environments, caches, and the folders that jobs reach by absolute path."""


def main() -> None:
    """Parse arguments and submit."""
    parser = argparse.ArgumentParser(prog="make submit", description=__doc__)
    parser.add_argument("--target", choices=["ray", "slurm"], default="ray", help="kind of cluster (TARGET=)")
    add_settings(parser)
    parser.add_argument("--run", help="name of the run (RUN=; default: that of the last config)")
    parser.add_argument("--runs-dir", default=os.environ.get("RUNS_DIR", "runs"), help="folder of all runs (RUNS_DIR)")
    parser.add_argument(
        "--allow-changed-plugins",
        action="store_true",
        help="continue although reward plugins changed since the last start (ALLOW_CHANGED_PLUGINS=1)",
    )
    parser.add_argument("--nodes", type=int, default=1, help="Slurm: machines to ask for (NODES=)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent (DRY_RUN=1)")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    name, runs_dir = chosen_run(arguments), Path(arguments.runs_dir).resolve()
    overrides = [*arguments.set, *absolute_paths(config)]
    training = training_arguments(arguments.config, name, runs_dir, overrides)
    training += ["--allow-changed-plugins"] if arguments.allow_changed_plugins else []
    if arguments.target == "slurm":
        script = slurm_script(training, config, name, runs_dir, arguments.nodes)
        print(script) if arguments.dry_run else queue(script, runs_dir)
    else:
        address = os.environ.get("RAY_ADDRESS", DEFAULT_ADDRESS)
        job = ray_job(training, python_of_job(address))
        print(json.dumps(job, indent=2)) if arguments.dry_run else run_on_ray(job, address)


def training_arguments(configs: list[str], run: str, runs_dir: Path, overrides: list[str]) -> list[str]:
    """The arguments of Python that train: same run, same config, folders named absolutely.

    Args:
        configs: TOML files; those inside the repository are named relative to it, since they travel along.
        run: name of the run.
        runs_dir: absolute folder that the run folder appears in; the cluster's machines must share it.
        overrides: `section.key=value` strings.
    """
    files = [Path(config).resolve() for config in configs]
    named = [str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file) for file in files]
    arguments = ["-m", "launch.train", "--run", run, "--runs-dir", str(runs_dir)]
    arguments += ["--config", *named] if named else []
    return arguments + (["--set", *overrides] if overrides else [])


def absolute_paths(config: Config) -> list[str]:
    """Overrides that name data and policy absolutely where they exist here: a job runs in another folder."""
    paths = {"data.path": config.data.path, "policy.path": config.policy.path}
    return [override(key, str(Path(path).resolve())) for key, path in paths.items() if Path(path).exists()]


def python_of_job(address: str) -> str:
    """`DIG_RL_PYTHON`; else this interpreter if the head is on this machine; else the cluster's own `python`."""
    return os.environ.get("DIG_RL_PYTHON") or (sys.executable if is_here(address) else "python")


def is_here(address: str) -> bool:
    """Whether an address, with or without a scheme, names this machine."""
    host = urlparse(address if "//" in address else f"//{address}").hostname
    return host in ("127.0.0.1", "localhost", "::1", socket.gethostname())


def has_ray_token() -> bool:
    """Whether Ray would find a token of this user; any `ray.init` on the machine makes one."""
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return named or (Path.home() / ".ray" / "auth_token").exists()


def ray_job(training: list[str], python: str) -> dict[str, Any]:
    """The job as Ray's API takes it: a command, and the working tree with its plugins, curricula and configs."""
    variables = {"PYTHONUNBUFFERED": "1"}
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        variables["TORCH_EXTENSIONS_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"]
    return {
        "entrypoint": shlex.join([python, *training]),
        "runtime_env": {"working_dir": str(ROOT), "excludes": LEFT_BEHIND, "env_vars": variables},
    }


def send(job: dict[str, Any], address: str) -> tuple[JobSubmissionClient, str]:
    """Hand a job to a head; returns the connection and the job's name.

    Raises:
        ClusterError: no head answers there, or it refuses.
    """
    if is_here(address) and has_ray_token():
        # A head asks for the user's Ray token once one exists, and Ray's client shows it only when told to. It is not
        # told to for other machines: there the user decides, since the token would travel in the clear.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it names every file that it packs
    try:
        client = JobSubmissionClient(address)
        return client, client.submit_job(**job)
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:  # OSError: those of requests, too
        lines = [line for line in str(error).split("\n") if line.strip()]
        # A head that fails sends a traceback, whose last line says why.
        reason = (lines[-1] if "Traceback" in lines[0] else lines[0]).partition(". ")[0]
    if "uthentication" in reason:
        raise ClusterError(
            f"the Ray head at {address} refuses: {reason}. Set RAY_AUTH_MODE=token, and name its token in "
            "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN if it is not in ~/.ray/auth_token"
        )
    raise ClusterError(
        f"no Ray head takes jobs at {address} ({reason}).\nStart one with: "
        "RAY_worker_niceness=0 .venv/bin/ray start --head --disable-usage-stats\n"
        "or name another in RAY_ADDRESS, for example http://127.0.0.1:8265"
    )


def run_on_ray(job: dict[str, Any], address: str) -> None:
    """Submit a job and follow it to its end.

    Raises:
        ClusterError: it cannot be sent, the connection is lost, or the job fails.
    """
    client, job_id = send(job, address)
    ray = f"{'RAY_AUTH_MODE=token ' if os.environ.get('RAY_AUTH_MODE') == 'token' else ''}.venv/bin/ray job"
    options = f"--address {address} {job_id}"
    print(f"job {job_id} sent to {address}; its log follows", flush=True)
    try:
        status = asyncio.run(follow(client, job_id))
    except KeyboardInterrupt:
        print(
            f"\njob {job_id} goes on without this terminal.\n"
            f"  follow it: {ray} logs --follow {options}\n"
            f"  stop it:   {ray} stop {options}"
        )
        raise
    except (RuntimeError, OSError) as error:
        raise ClusterError(
            f"lost the connection to {address} ({error}); ask for the job with: {ray} status {options}"
        ) from None
    if status.value != "SUCCEEDED":
        message = client.get_job_info(job_id).message
        raise ClusterError(f"job {job_id} ended as {status.value}: {message} (its log is above)")
    print(f"job {job_id} finished")


async def follow(client: JobSubmissionClient, job_id: str) -> JobStatus:
    """Print a job's log as it grows; returns the status it ends with."""
    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", flush=True)
    while not client.get_job_status(job_id).is_terminal():
        await asyncio.sleep(0.2)
    return client.get_job_status(job_id)


def slurm_script(training: list[str], config: Config, run: str, runs_dir: Path, nodes: int) -> str:
    """A batch script that starts a private Ray cluster on its nodes and trains in it.

    Args:
        training: arguments of Python.
        config: sizes the request for processors and GPUs.
        run: name of the run, also of the job.
        runs_dir: the job's log goes beside the run's folder.
        nodes: machines to ask for.
    """
    rollout, learner = config.rollout, config.learner
    num_gpus = rollout.num_workers * rollout.num_gpus + learner.num_ranks * learner.num_gpus
    num_actors = rollout.num_workers + learner.num_ranks + config.reward.num_workers
    threads = max(rollout.num_workers * rollout.num_threads, learner.num_ranks * learner.num_threads, num_actors)
    python = os.environ.get("DIG_RL_PYTHON") or sys.executable
    source = (Path(__file__).parent / "slurm.sh.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        run=run,
        nodes=nodes,
        cpus=-(-threads // nodes),
        gpus=-(-int(num_gpus + 0.999) // nodes),
        log=_sbatch_word(str(runs_dir).replace("%", "%%") + f"/{run}.slurm-%j.log"),
        root=shlex.quote(str(ROOT)),
        python=shlex.quote(python),
        ray=shlex.quote(str(Path(python).parent / "ray")),
        training=shlex.join(training),
    )


def _sbatch_word(text: str) -> str:
    """`text` as one argument of an `#SBATCH` line, where a number sign begins a comment even in quotes of old Slurm."""
    return '"' + re.sub(r'([\\"#])', r"\\\1", text) + '"'


def queue(script: str, runs_dir: Path) -> None:
    """Hand a batch script to sbatch.

    Raises:
        ClusterError: there is no sbatch, or it refuses.
    """
    if not shutil.which("sbatch"):
        raise ClusterError("no `sbatch` on PATH: run this on a Slurm login node, or see the script with DRY_RUN=1")
    runs_dir.mkdir(parents=True, exist_ok=True)  # Slurm does not start a job whose log it cannot open
    result = subprocess.run(["sbatch"], input=script, capture_output=True, text=True)
    if result.returncode != 0:
        raise ClusterError(f"sbatch refused the job: {result.stderr.strip()}")
    print(f"{result.stdout.strip()}; its log appears in {runs_dir}; stop it with scancel")


if __name__ == "__main__":
    sys.exit(end_with_message(main, "a job that was already sent goes on"))
