"""Settings as text, `section.key=value`: one read, several told apart, one written so that it reads back."""

from __future__ import annotations

import json
import math
import re
import tomllib
from datetime import date, time
from typing import Any

from dig_rl.errors import ConfigError

_KEY = re.compile(r"\w[\w.-]*[ \t]*=(?:[ \t]+(?!\w[\w.-]*[ \t]*=))?")
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL)
_CLOSING = {"[": "]", "{": "}"}


def split_overrides(text: str) -> list[str]:
    """The settings of one text, as `learner.lr=1e-6 learner.freeze=["vision", "projector"]`.

    White space ends a value only where another `key=` follows it, and never inside quotes or brackets that TOML would
    read, so a value may hold spaces.
    """
    starts, position = [0], _end_of_value(text, 0)
    while position < len(text):
        space = len(text) - len(text[position:].lstrip())
        if space > position and _KEY.match(text, space):
            starts.append(space)
        position = _end_of_value(text, max(space, position + 1))
    parts = [text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [part for part in parts if part]


def parse_override(text: str) -> tuple[str, Any]:
    """The dotted key and the value of one setting; a value is TOML, or else the text as it stands.

    Raises:
        ConfigError: there is no key, or no equals sign.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f'SET takes "section.key=value", found "{text}"')
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    # A line break could begin further keys, which would then be dropped in silence.
    return key.strip(), parsed["value"] if parsed.keys() == {"value"} else raw


def override(key: str, value: Any) -> str:
    """`key=value` that reads back as `value`, alone or among others; quotes only where they are needed.

    Args:
        key: dotted.
        value: text, a number, a truth value, a date or time, or a list or table of these.
    """
    bare = f"{key}={value}"
    is_plain = isinstance(value, str) and value and value == value.strip() and value.isprintable()
    if is_plain and split_overrides(bare) == [bare] and parse_override(bare)[1] == value:
        return bare
    return f"{key}={as_toml(value)}"


def as_toml(value: Any) -> str:
    """`value` as TOML writes it, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(str(key))} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # JSON's strings are TOML's, but for letters beyond 16 bits, which JSON would write as two, and for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _end_of_value(text: str, start: int) -> int:
    """Where the word at `start` ends, or the quoted or bracketed value that it begins with."""
    key = _KEY.match(text, start)
    value = key.end() if key else start
    end = (_end_of_brackets(text, value) or _end_of_string(text, value)) if key else None
    if end is None:
        end = value
    while end < len(text) and not text[end].isspace():
        end += 1
    return end


def _end_of_string(text: str, start: int) -> int | None:
    found = _STRING.match(text, start)
    return found.end() if found else None


def _end_of_brackets(text: str, start: int) -> int | None:
    """Behind the bracket that closes the one at `start`; None where there is none, or it is never closed."""
    awaited: list[str] = []
    position = start
    while position < len(text):
        letter = text[position]
        position = _end_of_string(text, position) or position + 1
        if letter in _CLOSING:
            awaited.append(_CLOSING[letter])
        elif awaited and letter == awaited[-1]:
            awaited.pop()
        if not awaited:
            return position if position > start + 1 else None
    return None
