"""Settings of a run that has been: what the user sets beside them is judged together with them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from dig_rl.config import Config, load_config
from dig_rl.errors import ConfigError, PolicyError
from launch.checkpoints import load_checkpoint_config, load_predictions_config, settings_over_run

TERM = "rewards/box_iou.py:box_iou"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with short answers in a short context, as a folder."""
    config = load_config([], ["rollout.max_completion_tokens=40", "rollout.max_model_len=128", "policy.thinking=true"])
    folder = tmp_path / "runs" / "x"
    for name, contents in (("config.json", config.model_dump_json()), ("policy/config.json", '{"model_type": "m"}')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(contents)
    return folder


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_set_is_judged_against_the_runs_settings(run: Path) -> None:
    for name in (run, run / "policy"):
        config, description = load_checkpoint_config(str(name), [], ["rollout.max_model_len=512"])
        assert (config.rollout.max_completion_tokens, config.rollout.max_model_len) == (40, 512)
        assert config.policy.path == str(run / "policy") and description.endswith(f"settings of {run}/config.json")
    (run / "heldout").mkdir()
    config, _ = load_predictions_config(run / "heldout" / "predictions.jsonl", [], ["rollout.max_model_len=64"])
    assert config.rollout.max_model_len == 64
    with pytest.raises(ConfigError, match=r"max_completion_tokens \(40\) must be below rollout.max_model_len \(32\)"):
        load_checkpoint_config(str(run), [], ["rollout.max_model_len=32"])


def test_a_config_of_the_user_goes_over_the_runs(run: Path, tmp_path: Path) -> None:
    mine = written(
        tmp_path / "mine.toml", f"[rollout]\nmax_model_len = 512\n[reward.terms.own]\nuse = '{TERM}'\nweight = 1"
    )
    config, description = load_checkpoint_config(str(run), [mine], ["rollout.num_threads=1"])
    assert (config.rollout.max_completion_tokens, config.rollout.max_model_len) == (40, 512)
    assert config.policy.thinking and list(config.reward.terms) == ["own"]
    assert description.endswith(f"settings of {run}/config.json, {mine}")
    # of a run with terms of its own, which SET alone still merges into
    config, _ = settings_over_run(run / "config.json", [], ["reward.terms.f1.kwargs={match_iou=0.75}"])
    assert list(config.reward.terms) == ["format", "f1", "iou"]


def test_a_policy_of_no_run_has_the_config_that_is_named(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "policy"
    (run / "policy").rename(alone)
    assert load_checkpoint_config(str(alone), [], ["rollout.max_model_len=512"])[0].rollout.max_completion_tokens == 40
    with pytest.raises(ConfigError, match=r"max_completion_tokens \(4096\)"):
        load_checkpoint_config(str(alone), [written(tmp_path / "c.toml", "[rollout]\nmax_model_len = 512")], [])
    with pytest.raises(PolicyError, match=r"SET=policy\.hub=true allows a hub name"):
        load_checkpoint_config("Qwen/some", [], [])
    config, _ = load_checkpoint_config("Qwen/some", [], ["policy.hub=true", "rollout.max_model_len=64"])
    assert (config.policy.path, config.rollout.max_model_len) == ("Qwen/some", 64)


def test_a_byte_order_mark_is_read_over(run: Path, tmp_path: Path) -> None:
    for path in (run / "config.json", tmp_path / "a.toml"):
        text = path.read_text() if path.exists() else "seed = 3\r\n"
        path.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert load_config([run / "config.json", tmp_path / "a.toml"]).seed == 3
    utf16 = tmp_path / "utf16.toml"
    utf16.write_bytes("seed = 3".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"utf16.toml is not valid TOML: it is not UTF-8 text .*; save it as UTF-8"):
        load_config([utf16])


def test_a_runs_own_config_comes_back_unchanged(run: Path) -> None:
    config, _ = settings_over_run(run / "config.json", [], [])
    assert config == Config.model_validate(json.loads((run / "config.json").read_text()))
