"""A run goes without the splits that its data has not, and says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dig_rl.config import Config, load_config
from dig_rl.errors import DataError
from dig_rl.splits import load_splits, may_choose
from tests.data_folders import line_of, write_folder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run with validation on two pairs to train on and one held out."""
    folder = write_folder(
        tmp_path / "data", [line_of(f"p{index}", split=split) for index, split in enumerate(["train", "train", "test"])]
    )
    return load_config([], [f"data.path={folder}", "evaluation.every_steps=2"])


def with_data(config: Config, **changes: str | None) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def test_a_missing_split_is_told_in_one_line_with_what_there_is(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    assert [len(pairs) for pairs in load_splits(config)] == [2, 1, 0]
    (line,) = caplog.messages
    assert line == (
        f"data.validation_split: no pair of split 'validation' in {config.data.path}/metadata.jsonl, which holds 2 of "
        "'train', 1 of 'test'; going on without validation, so no checkpoint is chosen as the best"
    )
    caplog.clear()
    typo = with_data(config, heldout_split="tset", validation_split=None)
    assert [len(pairs) for pairs in load_splits(typo)] == [2, 0, 0]
    (line,) = caplog.messages  # nothing of a split that nobody asked for
    assert line.startswith("data.heldout_split: no pair of split 'tset' in ")
    assert line.endswith("1 of 'test'; going on without held-out answers before and after training")


def test_a_split_that_is_not_wanted_is_not_mentioned(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert [len(pairs) for pairs in load_splits(with_data(config, heldout_split=None, validation_split=None))] == [
            2,
            0,
            0,
        ]
        never = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"every_steps": None})})
        assert [len(pairs) for pairs in load_splits(never)] == [2, 1, 0]
    assert caplog.messages == []


def test_validation_on_held_out_pairs_chooses_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    same = with_data(config, validation_split="test")
    assert [len(pairs) for pairs in load_splits(same)] == [2, 1, 1]
    assert "no checkpoint is chosen as the best" in caplog.text
    assert not may_choose(same)
    assert may_choose(with_data(config, validation_split="train"))


def test_there_is_no_training_without_pairs_to_train_on(config: Config) -> None:
    with pytest.raises(
        DataError, match=r"of split 'tarin' in .*, which holds 2 of 'train', 1 of 'test'; .*data.train_split"
    ):
        load_splits(with_data(config, train_split="tarin"))
