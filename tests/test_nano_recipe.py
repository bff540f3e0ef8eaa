"""`make nano` up to its warm policy: every part once, finished parts kept, and other settings refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dig_rl.errors import ConfigError
from launch import nano
from tests.tiny import ROOT

pytestmark = pytest.mark.slow  # TRL takes long to import

RECIPE = """
[policy]
text_hidden = 64
text_layers = 2
text_heads = 2
vision_hidden = 64
vision_heads = 2

[families.numpy]
num_families = 3
[families.numpy.pictures]
seed = 5
width = 96
height = 64
samples = 1
arena_m = 1.8
renderer = "numpy"

[stages.see]
families = ["numpy"]
[stages.see.training]
steps = 2
batch_size = 4
single_steps = 0

[stages.habit]
families = ["numpy"]
[stages.habit.training]
steps = 2
batch_size = 4
single_steps = 0
imagined = 0.5
blind = 0.5
hints = false
"""


class Nano:
    """The command in one folder, without GRPO."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe, self.work, self.out = folder / "nano.toml", folder / "work", folder / "policy"
        self._runs_dir, self._monkeypatch = folder / "runs", monkeypatch
        self.recipe.write_text(RECIPE)

    def __call__(self, **seed: int) -> None:
        folders = {"--work": self.work, "--out": self.out, "--runs-dir": self._runs_dir, "--data": ROOT / "nano/data"}
        options = [str(word) for option in folders.items() for word in option]
        argv = [
            "make nano",
            "--recipe",
            str(self.recipe),
            *options,
            "--workers",
            "1",
            "--seeds",
            *map(str, seed.values()),
        ]
        self._monkeypatch.setattr(sys, "argv", argv)
        nano.main()


def test_a_warm_policy_is_made_stage_by_stage_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = Nano(tmp_path, monkeypatch)
    make()
    weights = "policy/model.safetensors"
    after = [(make.work / stage / weights).read_bytes() for stage in ("see", "habit")]
    assert after[0] != after[1] == (make.out / "model.safetensors").read_bytes()
    assert "== stage see: 2 steps" in capsys.readouterr().out

    make()
    assert f"{make.out} is there already; remove it to train it anew" in capsys.readouterr().out

    # What is finished is not made again; a stage is, when its folder is gone.
    shutil.rmtree(make.out)
    shutil.rmtree(make.work / "habit")
    make()
    told = capsys.readouterr().out
    assert "== stage see" not in told and "== stage habit: 2 steps" in told
    assert (make.out / "model.safetensors").read_bytes() == after[1]

    shutil.rmtree(make.out)
    make.recipe.write_text(RECIPE.replace("blind = 0.5", "blind = 0.25"))
    with pytest.raises(ConfigError, match=r"habit was trained with other settings:\n  training.blind: 0.5 -> 0.25\n"):
        make()
    assert (make.work / "habit" / weights).read_bytes() == after[1] and not make.out.exists()

    make.recipe.write_text(RECIPE.replace("[policy]", "[policy]\ncoordinate_levels = 25"))
    with pytest.raises(
        ConfigError, match=r"see was trained with other settings:\n  policy.coordinate_levels: 50 -> 25"
    ):
        make()


def test_every_beginning_has_the_random_policy_of_its_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Nano(tmp_path, monkeypatch)
    monkeypatch.setattr(nano, "_train", lambda recipe, name, start, arguments: start)
    for levels, there, gone in ((50, "20", "50"), (20, "50", "20")):
        make.recipe.write_text(RECIPE.replace("[policy]", f"[policy]\ncoordinate_levels = {levels}"))
        make()
        tokens = {token["content"] for token in json.loads((make.out / "tokenizer.json").read_text())["added_tokens"]}
        assert there in tokens and gone not in tokens
        shutil.rmtree(make.out)


def test_grpo_of_another_policy_is_not_reported_as_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = Nano(tmp_path, monkeypatch)
    make.out.mkdir()
    (make.out / "config.json").write_text("{}")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(nano, "run_part", lambda *command: asked.append(command) or 1)
    with pytest.raises(SystemExit):
        make(seed=0)
    # The run's own process compares: it refuses other settings, and says if there is nothing left to do.
    assert asked[0][0] == "launch.train" and f'policy.path="{make.out}"' in asked[0]
    monkeypatch.setattr(nano, "run_part", lambda *command: 0)
    make(seed=0)
    assert "validation f1" not in capsys.readouterr().out  # a run without validation has none


def test_a_stage_of_a_version_that_wrote_no_settings_down_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Nano(tmp_path, monkeypatch)
    (make.work / "see/checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"see was trained with other settings:\n  families: null -> \["):
        make()
    assert not (make.work / "see/stage.json").exists()


def test_a_stage_without_its_families_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Nano(tmp_path, monkeypatch)
    make.recipe.write_text(RECIPE.replace('families = ["numpy"]', 'families = ["blender"]', 1))
    with pytest.raises(ConfigError, match=r"stages.see names families \['blender'\], there are \['numpy'\]"):
        make()
    assert list(tmp_path.iterdir()) == [make.recipe]
