"""`import torchvision` beside CPU torch: mended where its operators failed to load, left alone everywhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REAL = """
import json, sys
before = "torch" in sys.modules
import torchvision
import torch
print(json.dumps({
    "before": before,
    "gpu_build": bool(torch.version.cuda or torch.version.hip),
    "loaded": torchvision.extension._has_ops(),
    "schema": hasattr(torch.ops.torchvision, "nms"),
    "resized": list(torchvision.transforms.functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape),
}))
"""

FAKE_TORCH = """
from types import SimpleNamespace
version = SimpleNamespace(cuda={cuda!r}, hip={hip!r})
declared = []
class Library:
    def __init__(self, namespace, kind):
        assert (namespace, kind) == ("torchvision", "FRAGMENT")
    def define(self, schema):
        declared.append(schema)
library = SimpleNamespace(Library=Library)
ops = SimpleNamespace(torchvision=SimpleNamespace(**{{name: None for name in {known!r}}}))
"""

PROBE = """
import json, sys
from launch.torchvision_ops import install
install(); install()
assert "torch" not in sys.modules, "starting up imports nothing"
import torchvision, torch
print(json.dumps([schema.partition("(")[0] for schema in torch.declared]))
"""


def run_python(code: str, *options: str, path: str = "") -> str:
    """Run code in a process of its own; returns what it prints."""
    environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run([sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def declared_schemas(
    folder: Path,
    root: Path,
    *,
    loads: bool,
    cuda: str | None = None,
    hip: str | None = None,
    known: tuple[str, ...] = (),
) -> list[str]:
    """Names of the schemas that importing a stand-in torchvision makes the hook declare."""
    (folder / "torch.py").write_text(FAKE_TORCH.format(cuda=cuda, hip=hip, known=list(known)))
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("from . import extension\n")
    (folder / "torchvision" / "extension.py").write_text(f"def _has_ops():\n    return {loads}\n")
    # -S leaves out the environment's packages, the real torch among them.
    return json.loads(run_python(PROBE, "-S", path=f"{folder}:{root}"))


def test_environment_imports_torchvision_in_every_process() -> None:
    found = json.loads(run_python(REAL))
    assert found["before"] is False
    assert found["resized"] == [3, 4, 4]
    assert found["loaded"] or found["gpu_build"] or found["schema"]


def test_missing_operators_are_declared_beside_cpu_torch(tmp_path: Path, repo_root: Path) -> None:
    assert declared_schemas(tmp_path, repo_root, loads=False) == ["nms", "qnms"]


def test_only_what_is_missing_is_declared(tmp_path: Path, repo_root: Path) -> None:
    assert declared_schemas(tmp_path, repo_root, loads=False, known=("nms",)) == ["qnms"]


def test_nothing_is_done_where_the_operators_loaded(tmp_path: Path, repo_root: Path) -> None:
    assert declared_schemas(tmp_path, repo_root, loads=True) == []


@pytest.mark.parametrize("build", [{"cuda": "13.0"}, {"hip": "6.4"}])
def test_nothing_is_done_where_torch_has_gpu_support(tmp_path: Path, repo_root: Path, build: dict[str, str]) -> None:
    assert declared_schemas(tmp_path, repo_root, loads=False, **build) == []
