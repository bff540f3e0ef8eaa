"""Light modules stay light, layers point down, Blender stays in its process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "ray", "vllm", "transformers", "deepspeed", "trl", "datasets", "bpy"]
LIGHT = [
    "adapters.easyr1",
    "adapters.trl",
    "adapters.verl",
    "boxes",
    "checkpoint",
    "config",
    "curriculum",
    "reporting.curriculum_preview",
    "data",
    "errors",
    "extension_lock",
    "finite",
    "masking",
    "metrics",
    "parsing",
    "plugins",
    "prompts",
    "run_folder",
    "scoring",
    "scoring_pool",
    "scoring_worker",
    "summary",
    "types",
    "algo.advantages",
    "datagen.build",
    "datagen.edits",
    "datagen.foresight",
    "datagen.labels",
    "datagen.numpy_renderer",
    "datagen.renderer",
    "datagen.sampling",
    "datagen.scene",
    "evaluation.comparison",
    "evaluation.detection",
    "evaluation.overview",
    "exchange.coco",
    "exchange.importing",
    "exchange.own_pairs",
    "image_files",
    "inspection.check",
]

IMPORT_ALL = """
import importlib, importlib.util, json, sys
modules, files, heavy = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(f"dig_rl.{name}")
for index, file in enumerate(files):
    spec = importlib.util.spec_from_file_location(f"reward_{index}", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def source_files(root: Path) -> list[Path]:
    """Every Python file of the project."""
    return [file for folder in ("dig_rl", "launch", "rewards", "tests") for file in (root / folder).rglob("*.py")]


def imported_names(file: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_light_modules_and_rewards_load_nothing_heavy(repo_root: Path) -> None:
    plugins = [str(file) for file in sorted((repo_root / "rewards").glob("*.py"))]
    assert plugins
    arguments = json.dumps([LIGHT, plugins, HEAVY])
    command = [sys.executable, "-c", IMPORT_ALL, arguments]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_blender_is_imported_only_in_its_own_process(repo_root: Path) -> None:
    users = [file for file in source_files(repo_root) if "bpy" in imported_names(file)]
    assert users
    assert {file.parent for file in users} == {repo_root / "launch" / "blender"}


def test_reward_plugins_are_never_imported_by_name(repo_root: Path) -> None:
    assert [file for file in source_files(repo_root) if "rewards" in imported_names(file)] == []


@pytest.mark.parametrize("name", ["ray", "vllm", "deepspeed"])
def test_engines_are_imported_only_by_actors_and_commands(repo_root: Path, name: str) -> None:
    library = [file for file in source_files(repo_root) if file.is_relative_to(repo_root / "dig_rl")]
    users = {file.parent for file in library if name in imported_names(file)}
    assert users == {repo_root / "dig_rl" / "actors"}


def test_imports_point_down(repo_root: Path) -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
