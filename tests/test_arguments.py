"""Options that entry points share."""

from __future__ import annotations

import argparse

from launch.arguments import add_settings


def test_settings_given_twice_add_up() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    given = parser.parse_args(["--config", "a.toml", "--set", "seed=1", "--config", "b.toml", "--set", "data.path=x"])
    assert given.config == ["a.toml", "b.toml"]
    assert given.set == ["seed=1", "data.path=x"]
    assert parser.parse_args([]).set == []  # the default was not extended
