"""`make submit TARGET=ray`: a whole training run on a Ray head that was there before, and one that fails there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_head import running_ray_head
from tests.tiny import ENVIRONMENT, ROOT, TinyWorld

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_head() -> Iterator[dict[str, str]]:
    with running_ray_head() as client:
        yield client


def make_submit(
    client: dict[str, str], runs_dir: Path, run: str, overrides: list[str]
) -> subprocess.CompletedProcess[str]:
    """`make submit` as a user types it; its prerequisite, the set-up, has been made for these tests."""
    variables = {"CONFIG": "launch/configs/tiny.toml", "TARGET": "ray", "RUN": run, "SET": " ".join(overrides)}
    return subprocess.run(
        ["make", "--old-file=setup", "submit", *(f"{name}={value}" for name, value in variables.items())],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | client | {"RUNS_DIR": str(runs_dir)},
        capture_output=True,
        text=True,
        timeout=1200,
    )


def test_submitted_run_finishes_on_the_head_with_its_run_folder_in_place(
    ray_head: dict[str, str], tiny_world: TinyWorld, tmp_path: Path
) -> None:
    done = make_submit(ray_head, tmp_path, "sent", tiny_world.overrides())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3/3  mixed  reward" in done.stdout  # its log was followed
    run = tmp_path / "sent"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert [stage["name"] for stage in summary["stages"]] == ["single", "dual", "mixed"]
    assert summary["heldout"]["after"]["pairs"] == 4
    assert "<html" in (run / "report.html").read_text()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        assert (run / "policy" / name).is_file(), name
    # It joined the head that took it, which must outlive it: another job runs there.
    assert "Started a local Ray instance" not in done.stdout + done.stderr


def test_run_that_fails_on_the_head_fails_here_with_its_message(
    ray_head: dict[str, str], tiny_world: TinyWorld, tmp_path: Path
) -> None:
    done = make_submit(ray_head, tmp_path, "wrong", tiny_world.overrides('data.train_split="none"'))
    assert done.returncode != 0
    assert "no pair of split 'none'" in done.stdout  # what the run itself said, from its log
    assert "ended as FAILED" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "wrong" / "policy").exists()
