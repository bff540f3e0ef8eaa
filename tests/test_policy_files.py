"""A run goes on from the policy folder that it began with, and from no other."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dig_rl.config import Config, load_config
from dig_rl.errors import CheckpointError
from dig_rl.policy_files import STATE_KEY, check_policy_files, hash_policy_files

KL, NO_KL = "learner.kl_coef=0.01", "learner.kl_coef=0"
LORA = (NO_KL, "learner.lora={}")
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", WEIGHTS, "README.md"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def config_of(policy: Path, *settings: str) -> Config:
    return load_config([], [f'policy.path="{policy}"', *settings])


def saved(checkpoints: Path, step: int, files: dict[str, str] | None) -> Path:
    """A checkpoint's state, as a run writes it."""
    folder = checkpoints / f"step-{step}"
    folder.mkdir(parents=True)
    state = {"curriculum": {}} if files is None else {"curriculum": {}, STATE_KEY: files}
    (folder / "state.json").write_text(json.dumps(state))
    return checkpoints


def flip_a_byte(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[7] ^= 1
    path.write_bytes(contents)


def test_what_is_hashed_is_what_a_start_reads(policy: Path) -> None:
    settings = {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert set(hash_policy_files(config_of(policy, NO_KL))) == settings
    for needed in ((KL,), LORA):
        assert set(hash_policy_files(config_of(policy, *needed))) == settings | {WEIGHTS}
    assert hash_policy_files(config_of(policy, KL)) == hash_policy_files(config_of(policy, KL))
    assert hash_policy_files(load_config([], ["policy.path=nobody/here", "policy.hub=true"])) == {}


@pytest.mark.parametrize("settings", [(KL,), LORA])
def test_weights_of_one_other_byte_are_refused_where_they_matter(
    policy: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = config_of(policy, *settings)
    checkpoints = saved(saved(tmp_path / "c", 9, {}), 10, hash_policy_files(config))
    check_policy_files(checkpoints, hash_policy_files(config), config)
    flip_a_byte(policy / WEIGHTS)
    message = rf"recorded in .*step-10 -> now\):\s+{WEIGHTS}: sha256 \w{{12}} -> \w{{12}}\s.*Restore these files"
    with pytest.raises(CheckpointError, match=message):
        check_policy_files(checkpoints, hash_policy_files(config), config)
    (policy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: sha256 \w{{12}} -> missing"):
        check_policy_files(checkpoints, hash_policy_files(config), config)


def test_without_a_reference_the_checkpoint_holds_all_weights_but_not_the_prompt(policy: Path, tmp_path: Path) -> None:
    config = config_of(policy, NO_KL)
    checkpoints = saved(tmp_path / "c", 1, hash_policy_files(config))
    flip_a_byte(policy / WEIGHTS)
    (policy / "notes.json").write_text("{}")  # a new file is none that the run began with
    check_policy_files(checkpoints, hash_policy_files(config), config)
    flip_a_byte(policy / "chat_template.jinja")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja: sha256"):
        check_policy_files(checkpoints, hash_policy_files(config), config)


def test_a_policy_that_is_gone_is_named_in_short(policy: Path, tmp_path: Path) -> None:
    config = config_of(policy, KL)
    checkpoints = saved(tmp_path / "c", 1, hash_policy_files(config))
    policy.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja: sha256 \w+ -> missing[\s\S]*and 1 more\nIts"):
        check_policy_files(checkpoints, hash_policy_files(config), config)


def test_a_checkpoint_without_a_record_goes_on_and_says_so(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path / "c", 4, None)
    with caplog.at_level(logging.WARNING):
        for settings in ((NO_KL,), (KL,)):
            config = config_of(policy, *settings)
            check_policy_files(checkpoints, hash_policy_files(config), config)
            check_policy_files(tmp_path / "a new run", hash_policy_files(config), config)
    assert len(caplog.messages) == 1 and "step-4 does not say which policy files" in caplog.messages[0]


def test_what_is_no_checkpoint_or_damaged_does_not_hide_the_newest_record(policy: Path, tmp_path: Path) -> None:
    config = config_of(policy, KL)
    checkpoints = saved(tmp_path / "c", 4, hash_policy_files(config))
    for name, state in (("step-5", "[1]"), ("step-10", '{"curricu'), ("step-4.bak1", "{}"), ("step-12.partial", "{}")):
        (checkpoints / name).mkdir()
        (checkpoints / name / "state.json").write_text(state)
    check_policy_files(checkpoints, hash_policy_files(config), config)
    flip_a_byte(policy / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"recorded in .*step-4 -> now"):
        check_policy_files(checkpoints, hash_policy_files(config), config)


def test_of_a_hubs_policy_what_is_here_is_compared(tmp_path: Path) -> None:
    config = load_config([], ["policy.path=nobody/here", "policy.hub=true", KL])
    checkpoints = saved(tmp_path / "c", 4, {"config.json": "one", WEIGHTS: "two"})
    for found in ({}, {"config.json": "one"}, {"config.json": "one", WEIGHTS: "two", "more.json": "three"}):
        check_policy_files(checkpoints, found, config)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: sha256 two -> three"):
        check_policy_files(checkpoints, {"config.json": "one", WEIGHTS: "three"}, config)
