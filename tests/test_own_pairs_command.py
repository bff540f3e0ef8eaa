"""`make data-import FORMAT=pairs`: from a user's files to the command that trains on them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from dig_rl.errors import ConfigError, DataError
from launch import data_check, data_import
from tests.next_commands import printed, resolve
from tests.own_pairs import TRUTH, write_csv, write_masks, write_pictures


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["data_import", *map(str, arguments)])
    data_import.main()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "it's mine")


def test_every_command_that_an_import_prints_resolves(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(own)
    run(monkeypatch, "--format", "pairs", "--from", own, "--out", own / "my data")
    told = capsys.readouterr().out
    assert f"{own / 'my data'}: 10 pairs " in told and "19 boxes {'add': 19}" in told
    assert "splits: train, validation, test 0.8, 0.1, 0.1 by a hash of the name" in told
    check, train = printed(told)
    assert resolve(train)["module"] == "train"
    monkeypatch.setattr(data_check, "contact_sheet", lambda *_: "")  # takes seconds
    monkeypatch.setattr(sys, "argv", ["data_check", "--data", resolve(check)["--data"], "--workers", "1"])
    data_check.main()
    told = capsys.readouterr().out
    assert "is sound" in told and printed(told) == [train]


def test_pairs_without_a_change_are_allowed_by_the_commands_that_follow(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = write_masks(own)
    name = Path(TRUTH[0].name).with_suffix(".png").name

    Image.new("L", TRUTH[0].size).save(masks / name)
    run(monkeypatch, "--format", "pairs", "--from", own, "--out", own / "data", "--split", "train")
    told = capsys.readouterr().out
    assert "1 pairs have no change; the commands below allow such pairs" in told and "splits: all in train" in told
    check, train = printed(told)
    assert "ALLOW_NO_CHANGE=1" in check and "data.allow_no_change=true" in resolve(train)["--set"]


def test_shares_and_formats_are_checked_before_anything_is_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(own)
    with pytest.raises(DataError, match="SPLITS= expects the shares"):
        run(monkeypatch, "--format", "pairs", "--from", own, "--out", own / "data", "--splits", "80,10,10")
    with pytest.raises(ConfigError, match="SPLIT= puts every pair into one split"):
        run(monkeypatch, "--format", "pairs", "--from", own, "--out", "x", "--splits", "1,0,0", "--split", "test")
    with pytest.raises(ConfigError, match="BOXES= and SPLITS= are for FORMAT=pairs"):
        run(monkeypatch, "--format", "mig-bench", "--from", own, "--out", "x", "--boxes", "xyxy_px")


def test_an_interrupted_import_leaves_nothing(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(own)

    class Stopped:
        def __enter__(self) -> object:
            return self.show

        def __exit__(self, *_error: object) -> None:
            return None

        def show(self, done: int, _total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(data_import, "item_progress", lambda _what: Stopped())
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, "--format", "pairs", "--from", own, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["it's mine"]
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out exists and nothing is overwritten"):
        run(monkeypatch, "--format", "pairs", "--from", own, "--out", tmp_path / "out")
    assert json.dumps(sorted(path.name for path in own.iterdir())) == '["a", "b", "boxes.csv"]'
