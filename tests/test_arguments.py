"""Options that entry points share."""

from __future__ import annotations

import argparse
from argparse import Namespace
from datetime import UTC, date, datetime, time

import pytest

from dig_rl.errors import ConfigError
from dig_rl.overrides import override, parse_override, split_overrides
from launch.arguments import add_list, add_settings, chosen_run, split_numbers, split_paths


def test_settings_given_twice_add_up() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    given = parser.parse_args(["--config", "a.toml", "--set", "seed=1", "--config", "b.toml", "--set", "data.path=x"])
    assert given.config == ["a.toml", "b.toml"]
    assert given.set == ["seed=1", "data.path=x"]
    assert parser.parse_args([]).set == []  # the default was not extended


def test_a_list_has_its_default_where_it_is_not_given() -> None:
    parser = argparse.ArgumentParser()
    add_list(parser, "--seeds", "of runs", split_numbers, default=[0])
    given = [["--seeds", "1 2", "--seeds", "3"], ["--seeds"], []]
    assert [parser.parse_args(words).seeds for words in given] == [[1, 2, 3], [], [0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learner.lr=1e-6 rollout.group_size=8", ["learner.lr=1e-6", "rollout.group_size=8"]),
        ('learner.freeze=["vision", "projector"] seed=2', ['learner.freeze=["vision", "projector"]', "seed=2"]),
        ("data.path=/my data/it's here\tseed=2\r\n", ["data.path=/my data/it's here", "seed=2"]),
        ('a.b="x c=1" d={e = "}", f = [1, 2]} g=1', ['a.b="x c=1"', 'd={e = "}", f = [1, 2]}', "g=1"]),
        ("a = 1 b = 2 c= d=3", ["a = 1", "b = 2", "c=", "d=3"]),
        ("a='never closed b=2 c=[1, d=3", ["a='never closed", "b=2", "c=[1,", "d=3"]),
        ("learner.lr 1e-6 seed=3", ["learner.lr 1e-6", "seed=3"]),  # refused where it is read
        (" \n", []),
    ],
)
def test_the_settings_of_one_text_are_told_apart(text: str, expected: list[str]) -> None:
    assert split_overrides(text) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("data/x", "my data", "it's", "1", "1e-6", "true", "none", "", " x ", "a b=c", "[1", '"q"', "a#b", "ü😀"),
        *(date(2024, 5, 1), time(7, 30), datetime(2024, 5, 1, 7, 30, tzinfo=UTC), [date(2024, 5, 1)], float("-inf")),
        *("2024-05-01", "07:30:00", "inf", "a\nb", "\x7f", True, 3, 0.5, ["a", "b c"], {"a b": [{"c": "}"}], "d": 1}),
    ],
)  # fmt: skip
def test_a_setting_reads_back_as_what_was_written(value: object) -> None:
    text = override("some.key", value)
    assert split_overrides(f"a=1 {text} b=2") == ["a=1", text, "b=2"]
    assert parse_override(text) == ("some.key", value)


def test_plain_settings_are_written_without_quotes() -> None:
    assert override("data.path", "data/my pairs") == "data.path=data/my pairs"


def test_a_run_without_a_name_is_called_after_its_last_config() -> None:
    chosen = [chosen_run(Namespace(run=None, config=config)) for config in (["a.toml", "x/it's mine.toml"], ["b.json"])]
    assert chosen == ["it-s-mine", "b"]
    assert chosen_run(Namespace(run="given", config=["a.toml"])) == "given"
    for nameless in ([], ["новый.toml"]):
        with pytest.raises(ConfigError, match="RUN="):
            chosen_run(Namespace(run=None, config=nameless))


def test_a_config_that_is_not_there_is_named_with_the_way_to_quote() -> None:
    with pytest.raises(ConfigError, match=r"no config file at my, .*quote it once more"):
        split_paths("my folder/a.toml")
