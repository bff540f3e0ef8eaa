"""Layers of TOML become one validated model; every mistake names the file, the key and the nearest known key."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dig_rl.durable import read_json_object
from dig_rl.errors import ConfigError
from dig_rl.overrides import as_toml, parse_override

S = TypeVar("S", bound=BaseModel)


def read_layers(paths: Sequence[str | Path], overrides: Sequence[str]) -> dict[str, Any]:
    """Merge files from left to right, then `section.key=value` overrides; tables merge, everything else is replaced."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge_tables(merged, _read_layer(path))
    return with_overrides(merged, overrides)


def with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `section.key=value` merged in; a value is TOML, or else the text as it stands.

    Raises:
        ConfigError: one has no key, or no equals sign.
    """
    for one in overrides:
        values = merge_tables(values, _nested(one))
    return values


def merge_tables(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Both tables key by key; where both name a key, `top` wins, unless both have a table there."""
    merged = dict(base)
    for key, value in top.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_tables(merged[key], value) if both_tables else value
    return merged


def build(model: type[S], values: dict[str, Any], where: str) -> S:
    """Validate `values` as `model`; the text `none` is None wherever a key may be None, since TOML has no word for it.

    Raises:
        ConfigError: pydantic's report in our words, with the nearest known key.
    """
    try:
        return model.model_validate(_with_nones(model, values))
    except ValidationError as error:
        lines = [_describe(problem, model) for problem in error.errors()]
        raise ConfigError(f"config from {where} is not valid:\n  " + "\n  ".join(lines)) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse one TOML file, naming it in every error."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors of Windows begin it with a BOM
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; name an existing TOML file with CONFIG=") from None
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: it is not UTF-8 text ({error}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def differing_keys(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key: saved -> current`."""
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        old, new = saved.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _read_layer(path: str | Path) -> dict[str, Any]:
    if Path(path).suffix != ".json":
        return read_toml(path)
    saved = read_json_object(Path(path), "restore it, or name a TOML file with CONFIG=")
    if saved is None:
        raise ConfigError(f"no config file at {path}; name an existing file with CONFIG=")
    return saved


def _with_nones(annotation: Any, value: Any) -> Any:
    """`value` with None for the text `none` where `annotation` allows None, in tables and lists of tables, too."""
    choices = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
    if isinstance(value, str):
        return None if value.lower() == "none" and NoneType in choices else value
    for choice in choices:
        inner = get_args(choice)
        if isinstance(value, dict) and isinstance(choice, type) and issubclass(choice, BaseModel):
            kinds = {key: field.annotation for key, field in choice.model_fields.items()}
            return {key: _with_nones(kinds.get(key), one) for key, one in value.items()}
        if isinstance(value, dict) and get_origin(choice) is dict:
            return {key: _with_nones(inner[1], one) for key, one in value.items()}
        if isinstance(value, list) and get_origin(choice) in (list, tuple) and len(set(inner) - {...}) == 1:
            return [_with_nones(inner[0], one) for one in value]
    return value


def _nested(text: str) -> dict[str, Any]:
    key, value = parse_override(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _describe(problem: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path) or "config"
    if problem["type"] != "extra_forbidden":
        given = problem.get("input")
        found = "" if isinstance(given, dict) else f", found {given!r}"
        in_list = any(isinstance(part, int) for part in problem["loc"])
        if problem["type"] == "string_type" and isinstance(given, int | float | date | time) and not in_list:
            text = as_toml(given)
            found = f""", found {text}; a name that reads as a number, true or a date is quoted: '{name}="{text}"'"""
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}{found}"
    known = _known_keys(model, path)
    table = name.rpartition(".")[0]
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == table}
    near = [siblings[key] for key in difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6)]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if near:
        return f"{name}: no such key; did you mean {near[0]}?"
    return f"{name}: no such key; {table or 'the config'} has {', '.join(siblings)}"


def _known_keys(model: type[BaseModel], path: list[str], prefix: str = "") -> list[str]:
    """Dotted keys of `model`; a table whose keys the user names has the one that stands in `path`."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inner, below = field.annotation, f"{prefix}{name}."
        if get_origin(inner) is UnionType:  # an optional table
            inner = get_args(inner)[0]
        if get_origin(inner) is dict:
            own_name = path[below.count(".") :][:1] or ["*"]
            inner, below = get_args(inner)[1], f"{below}{own_name[0]}."
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _known_keys(inner, path, below)
    return keys
