"""`make submit`: what is sent, where it lands, and how every end is told."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dig_rl.config import Config, load_config
from dig_rl.errors import ClusterError
from launch import submit
from tests.ray_head import running_ray_head


def submit_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as make does."""
    command = [sys.executable, "-m", "launch.submit", *arguments]
    return subprocess.run(
        command, cwd=submit.ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )


def test_ray_job_trains_the_same_run_into_the_submitters_folder(tmp_path: Path) -> None:
    result = submit_command(
        "--run", "first", "--config", "launch/configs/demo.toml", "--set", "learner.lr=1e-5", f"data.path={tmp_path}",
        "--dry-run", "--runs-dir", "runs", RAY_ADDRESS=submit.DEFAULT_ADDRESS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    words = shlex.split(json.loads(result.stdout)["entrypoint"])
    assert words[:3] == [sys.executable, "-m", "launch.train"]
    assert words[words.index("--run") + 1] == "first"
    assert words[words.index("--runs-dir") + 1] == str(submit.ROOT / "runs")
    assert words[words.index("--config") + 1] == "launch/configs/demo.toml"
    assert words[words.index("--set") + 1] == "learner.lr=1e-5"
    assert load_config([], words[words.index("--set") + 1 :]).data.path == str(tmp_path)


def test_config_outside_the_working_tree_is_named_absolutely(tmp_path: Path) -> None:
    inside, outside = submit.ROOT / "launch" / "configs" / "demo.toml", tmp_path / "mine.toml"
    words = submit.training_arguments([str(inside), str(outside)], "x", tmp_path, [])
    start = words.index("--config")
    assert words[start + 1 : start + 3] == ["launch/configs/demo.toml", str(outside)]
    assert "--set" not in words


def test_paths_are_made_absolute_only_where_they_exist_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    config = load_config([], ["data.path=my data", "policy.path=Qwen/some-hub-name"])
    overrides = submit.absolute_paths(config)
    assert load_config([], overrides).data.path == str(tmp_path / "my data")
    assert not [override for override in overrides if override.startswith("policy.path")]


def test_python_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIG_RL_PYTHON", raising=False)
    assert submit.python_of_job("http://127.0.0.1:8265") == sys.executable
    assert submit.python_of_job("127.0.0.1:6379") == sys.executable
    assert submit.python_of_job("http://head.example:8265") == "python"
    monkeypatch.setenv("DIG_RL_PYTHON", "/opt/dig-rl/bin/python")
    assert submit.python_of_job("http://head.example:8265") == "/opt/dig-rl/bin/python"


def test_wrong_config_is_refused_before_anything_is_sent() -> None:
    result = submit_command("--run", "x", "--set", "learner.lrr=1", RAY_ADDRESS="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "no such key; did you mean" in result.stderr


def test_no_head_says_how_to_start_one() -> None:
    result = submit_command("--run", "x", RAY_ADDRESS="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "no Ray head takes jobs at http://127.0.0.1:9" in result.stderr
    assert ".venv/bin/ray start --head" in result.stderr
    assert "Traceback" not in result.stderr


def test_slurm_without_sbatch_points_to_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"no `sbatch` on PATH.*DRY_RUN=1"):
        submit.queue("#!/bin/bash\n", tmp_path)


def slurm_script(tmp_path: Path, config: Config, nodes: int) -> str:
    training = submit.training_arguments([], "slurm run", tmp_path, ["learner.lr=1e-6"])
    return submit.slurm_script(training, config, "slurm", tmp_path, nodes)


def test_slurm_request_counts_processors_and_gpus(tmp_path: Path) -> None:
    gpus = {"rollout": {"num_workers": 6, "num_gpus": 1, "num_threads": 4}, "learner": {"num_ranks": 2, "num_gpus": 1}}
    lines = slurm_script(tmp_path, Config.model_validate(gpus), nodes=2).splitlines()
    assert "#SBATCH --nodes=2" in lines
    assert "#SBATCH --cpus-per-task=12" in lines  # 6 workers of 4 threads on 2 machines
    assert "#SBATCH --gpus-per-node=4" in lines  # 6 for rollouts, 2 for the learner
    assert "gpus-per-node" not in slurm_script(tmp_path, Config(), nodes=1)


def test_the_log_of_a_slurm_job_may_lie_in_any_folder(tmp_path: Path) -> None:
    runs_dir = tmp_path / "it's 100% mine #1"
    script = submit.slurm_script([], Config(), "first", runs_dir, 1)
    (line,) = [line for line in script.splitlines() if line.startswith("#SBATCH --output")]
    assert line == f'#SBATCH --output="{tmp_path}/it\'s 100%% mine \\#1/first.slurm-%j.log"'


@pytest.mark.parametrize("nodes", [1, 2])
def test_slurm_script_starts_head_then_workers_then_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    programs = {
        "srun": (
            'echo "srun $*" >> "$RECORD"\nwhile [ "$1" != "${1#-}" ] || [ "$1" = first ]; do shift; done\nexec "$@"'
        ),
        "scontrol": "echo first; echo second",
        "hostname": "echo 10.0.0.1 192.168.0.1",
        # The head answers once it is there, and training lasts until every node has joined.
        "ray": '[ "$1" != health-check ] || exec grep -q "^ray start --head" "$RECORD"; echo "ray $*" >> "$RECORD"',
        "python": (
            f'while [ "$(grep -c "^ray start" "$RECORD")" -lt {nodes} ]; do sleep 0.1; done\n'
            'echo "python RAY_ADDRESS=$RAY_ADDRESS $*" >> "$RECORD"; exit 7'
        ),
    }
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("DIG_RL_PYTHON", str(tools / "python"))
    record = tmp_path / "record"
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "x",
        "RECORD": str(record),
    }
    script = slurm_script(tmp_path, Config(), nodes)
    result = subprocess.run(["bash"], input=script, env=environment, capture_output=True, text=True, timeout=60)

    assert result.returncode == 7, result.stderr  # the training's own exit status
    lines = record.read_text().splitlines()
    address = "127.0.0.1:32345" if nodes == 1 else "10.0.0.1:32345"
    trained = [line for line in lines if line.startswith("python")]
    assert trained == [
        f"python RAY_ADDRESS={address} -m launch.train --run slurm run --runs-dir {tmp_path} --set learner.lr=1e-6"
    ]
    heads = [line for line in lines if line.startswith("ray start --head")]
    assert len(heads) == 1
    assert f"--node-ip-address={address.split(':')[0]} --port=32345" in heads[0]
    workers = [line for line in lines if line.startswith("srun") and f"--address={address}" in line]
    assert len(workers) == nodes - 1
    if workers:
        assert lines.index(heads[0]) < lines.index(workers[0])
        assert "--nodes=1 --ntasks=1 --exclude=first" in workers[0]


@pytest.fixture(scope="module")
def ray_head() -> Iterator[dict[str, str]]:
    with running_ray_head() as client:
        yield client


FOLLOW = """
import sys
from launch import submit
from launch.terminal import end_with_message
job = submit.ray_job(sys.argv[1:], sys.executable)
sys.exit(end_with_message(lambda: submit.run_on_ray(job, submit.os.environ["RAY_ADDRESS"]), "the job goes on"))
"""


def start_following(python_arguments: list[str], client: dict[str, str]) -> subprocess.Popen[str]:
    """Submit a job that runs Python with these arguments, and follow it, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOW, *python_arguments],
        cwd=submit.ROOT,
        env=os.environ | client,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_job_runs_in_a_copy_of_the_working_tree_and_its_log_is_followed(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    code = (
        f"import os; print('runs in', os.getcwd()); open({str(tmp_path / 'seen')!r}, 'w').write(' '.join(os.listdir()))"
    )
    follower = start_following(["-c", code], ray_head)
    output, errors = follower.communicate(timeout=180)
    assert follower.returncode == 0, errors
    assert "runs in " in output
    assert f"runs in {submit.ROOT}\n" not in output
    seen = set((tmp_path / "seen").read_text().split())
    assert {"dig_rl", "launch", "rewards", "curricula", "setup.cfg"} <= seen
    assert not {".venv", ".venv-blender", ".git", ".cache", "runs", "data"} & seen


@pytest.mark.slow
def test_failed_job_is_an_error(ray_head: dict[str, str]) -> None:
    follower = start_following(["-c", "raise SystemExit('the job said no')"], ray_head)
    output, errors = follower.communicate(timeout=180)
    assert follower.returncode == 1
    assert "the job said no" in output
    assert "ended as FAILED" in errors


@pytest.mark.slow
def test_head_that_refuses_the_token_says_what_to_set(ray_head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    follower = start_following(["-c", "pass"], ray_head | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    _, errors = follower.communicate(timeout=60)
    assert follower.returncode == 1
    assert "RAY_AUTH_TOKEN_PATH" in errors


@pytest.mark.slow
def test_interrupt_leaves_the_job_running_and_says_how_to_stop_it(ray_head: dict[str, str]) -> None:
    follower = start_following(["-c", "import time; print('started', flush=True); time.sleep(600)"], ray_head)
    assert follower.stdout is not None
    while "started" not in (line := follower.stdout.readline()):
        assert line, "the log ended before the job started"
    follower.send_signal(signal.SIGINT)
    output, errors = follower.communicate(timeout=60)
    assert follower.returncode == 130, errors
    assert "Traceback" not in errors
    stop = next(line for line in output.splitlines() if "stop it:" in line).partition("stop it:")[2].strip()
    stopped = subprocess.run(
        stop, shell=True, cwd=submit.ROOT, env=os.environ | ray_head, capture_output=True, text=True, timeout=60
    )
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped" in (stopped.stdout + stopped.stderr).lower()


def test_a_head_that_hangs_up_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class HangsUp:
        def __init__(self, address: str) -> None:
            pass

        def submit_job(self, **job: Any) -> str:
            raise OSError("Connection aborted.")  # what requests' own errors are

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", HangsUp)
    with pytest.raises(ClusterError, match=r"no Ray head takes jobs at http://10.0.0.1:8265 .Connection aborted"):
        submit.send({}, "http://10.0.0.1:8265")
