"""`make doctor` names every way in which a config does not fit the machine, and passes one that does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dig_rl.config import Config
from launch import doctor


def problems(check: doctor.Check, **sections: dict[str, Any]) -> list[str]:
    return list(check(Config.model_validate(sections)))


def test_more_gpus_than_the_machine_has_are_refused() -> None:
    (problem,) = problems(doctor.check_devices, rollout={"num_workers": 900, "num_gpus": 1}, learner={"num_threads": 1})
    assert problem.startswith("rollout and learner ask for 900 GPUs")


def test_more_threads_than_processors_are_refused_where_they_run_here() -> None:
    threads = os.cpu_count() or 1
    crowded: dict[str, Any] = {"num_workers": 3, "num_threads": threads}
    (problem,) = problems(doctor.check_devices, rollout=crowded, learner={"num_threads": 1})
    assert problem.startswith(f"3 x rollout.num_threads ({threads}) exceed")
    assert problems(doctor.check_devices, rollout=crowded, cluster={"address": "10.0.0.1:6379"}) == []


def test_memory_counts_the_cache_of_every_worker() -> None:
    (problem,) = problems(doctor.check_memory, rollout={"num_workers": 2, "kv_cache_gib": 5000})
    needed = float(problem.removeprefix("about ").split()[0])
    # Two workers of 1.8 + 5000 GiB and a learner of 1.2 GiB, without a policy folder.
    assert needed == pytest.approx(2 * 5001.8 + 1.2, abs=0.1)


def test_checkpoints_must_fit_the_disk(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(2**40)  # a sparse file of 1 TiB
    (problem,) = problems(doctor.check_disk_space, policy={"path": str(tmp_path)}, checkpoint={"keep_last": 9000})
    assert problem.startswith("checkpoints need about")


def test_missing_data_and_policy_name_the_commands_that_make_them(tmp_path: Path) -> None:
    data, policy = str(tmp_path / "data"), str(tmp_path / "policy")
    no_data, no_policy = problems(doctor.check_data_and_policy, data={"path": data}, policy={"path": policy})
    assert f"make data OUT={data}" in no_data
    assert f"make policy OUT={policy}" in no_policy


def test_missing_build_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert any("no C++ compiler" in problem for problem in problems(doctor.check_build_tools))


def test_this_environment_is_complete() -> None:
    assert problems(doctor.check_packages) == []
    assert problems(doctor.check_build_tools) == []


def test_command_lists_versions_then_problems_and_fails(repo_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.doctor", "--set", f"data.path={tmp_path}/data"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    for name in ("python", "torch", "vllm", "deepspeed", "ray", "processors", "memory", "disk"):
        assert f"\n{name} " in f"\n{result.stdout}"
    assert f"no data at data.path = {tmp_path}/data" in result.stderr
    assert "Traceback" not in result.stderr
