"""Faults of one kind as one message with a count: twenty equal lines hide the one that differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")

_VERBS = "is|has|does|holds|lies|claims|cannot|was|expected"
_NAME = re.compile(rf"^(image|picture|mask|the pair|pair) .*?(?=:? (?:{_VERBS})\b)")
_FOUND = re.compile(r", found .*")
_VALUES = re.compile(r"in pair \S+|\[[^\]]*\]|'[^']*'|-?\d+(?:\.\d+)?")


def kind_of_fault(problem: str) -> str:
    """What a message says of any entry: without numbers, names of pictures, and the values that were found."""
    return _VALUES.sub("#", _FOUND.sub("", _NAME.sub(r"\1", problem)))


def counted(items: Iterable[Item], problem_of: Callable[[Item], str]) -> list[tuple[Item, list[Item]]]:
    """The first item of each kind of fault, and the further ones of that kind, in the order of the first ones."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(kind_of_fault(problem_of(item)), []).append(item)
    return [(first, others) for first, *others in kinds.values()]
