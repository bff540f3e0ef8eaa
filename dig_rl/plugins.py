"""Reward plugins: one function in one file, named `path/to/file.py:function`, checked before anything heavy starts."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from dig_rl.errors import PluginError
from dig_rl.types import RewardInput

_Parameter = inspect.Parameter

_OTHER_TRAINERS = {
    "TRL": {"completions", "prompts", "completion_ids", "trainer_state"},
    "EasyR1": {"reward_input", "reward_inputs"},
    "verl": {"data_source", "data_sources", "solution_str", "solution_strs", "extra_info", "extra_infos"},
    "OpenRLHF": {"queries", "labels"},
}
"""Names of the arguments that rewards of other trainers take."""

RewardFunction = Callable[[RewardInput], float]
"""A plugin with its keyword arguments bound; returns a value in [0, 1]."""


def load_plugin(use: str, kwargs: dict[str, Any], root: Path) -> RewardFunction:
    """Load one reward function and bind its keyword arguments.

    The function takes one positional argument, the `RewardInput`, and keyword-only ones; a keyword argument that has a
    type annotation is checked against it.

    Args:
        use: `path/to/file.py:function`, the path relative to `root` or absolute.
        kwargs: keyword arguments from the config.
        root: folder that relative paths start from.

    Raises:
        PluginError: the file is missing or fails to import, the function is not there, or `kwargs` does not fit it.
    """
    path, name = _locate(use, root)
    module = _import_file(path, use)
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        is_class = " (a class is none)" if isinstance(function, type) else ""
        offered = _offered(module)
        raise PluginError(f'reward plugin "{use}": {path} has no function "{name}"{is_class}; it offers {offered}')
    _refuse_other_contracts(function, use)
    return functools.partial(function, **_checked_kwargs(function, kwargs, use))


def plugin_hash(use: str, root: Path) -> str:
    """Sha256 of the plugin's source file, 64 hexadecimal digits.

    Raises:
        PluginError: `use` is not `path/to/file.py:function`, or there is no such file.
    """
    return hashlib.sha256(_locate(use, root)[0].read_bytes()).hexdigest()


def _locate(use: str, root: Path) -> tuple[Path, str]:
    file, colon, name = use.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise PluginError(f'a reward plugin is named "path/to/file.py:function", found "{use}"')
    path = (root / file).resolve()
    if not path.is_file():
        raise PluginError(f'reward plugin "{use}": no file at {path}; paths are relative to {root.resolve()}')
    return path, name


def _import_file(path: Path, use: str) -> ModuleType:
    # Two files of one name must not share a module, and a plugin must not hide an installed package.
    module_name = f"dig_rl_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f'reward plugin "{use}": Python cannot import {path}')
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up here while it is being imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise PluginError(f'reward plugin "{use}": importing {path} failed: {type(error).__name__}: {error}') from error
    return module


def _offered(module: ModuleType) -> str:
    functions = inspect.getmembers(module, inspect.isfunction)
    own = [name for name, function in functions if function.__module__ == module.__name__ and not name.startswith("_")]
    return ", ".join(own) or "no function at all"


def _refuse_other_contracts(function: Callable[..., Any], use: str) -> None:
    """Say what a function written for another trainer takes, and what ours takes."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = {parameter.name for parameter in parameters if parameter.kind is not _Parameter.KEYWORD_ONLY}
    trainers = [trainer for trainer, names in _OTHER_TRAINERS.items() if names & positional]
    is_ours = bool(parameters) and "RewardInput" in str(parameters[0].annotation)
    is_delayed = inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)
    is_open = any(parameter.kind in (_Parameter.VAR_KEYWORD, _Parameter.VAR_POSITIONAL) for parameter in parameters)
    if (is_ours or not trainers) and not is_open and not is_delayed:
        return
    what = f"looks like a reward of {trainers[0]}" if trainers and not is_ours else "does not keep the contract"
    code, kind = function.__code__, "async " if inspect.iscoroutinefunction(function) else ""
    raise PluginError(
        f'reward plugin "{use}" {what}: expected {code.co_name}(item: RewardInput, *, ...) -> float, a plain function '
        f"that scores one answer and names its keyword arguments, found {kind}{code.co_name}"
        f"({', '.join(map(str, parameters))}) in line {code.co_firstlineno} of {code.co_filename}. "
        "rewards/README.md shows such a function. dig_rl/adapters goes the other way and takes rewards of dig-rl into "
        'TRL, EasyR1 and verl (docs/rewards.md, "In other trainers")'
    )


def _checked_kwargs(function: Callable[..., Any], kwargs: dict[str, Any], use: str) -> dict[str, Any]:
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (_Parameter.POSITIONAL_ONLY, _Parameter.POSITIONAL_OR_KEYWORD):
        raise PluginError(f'reward plugin "{use}" must take the RewardInput as its first, positional argument')
    known = {parameter.name: parameter for parameter in parameters[1:]}
    loose = [name for name, parameter in known.items() if parameter.kind is not _Parameter.KEYWORD_ONLY]
    if loose:
        raise PluginError(
            f'reward plugin "{use}" may take one positional argument, the RewardInput; '
            f"put a bare * before {', '.join(loose)} to make what follows keyword-only"
        )
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f'did you mean "{near[0]}"? It takes {", ".join(known)}' if near else "it takes none"
            raise PluginError(f'reward plugin "{use}" has no keyword argument "{name}"; {hint}')
    missing = [name for name in known if known[name].default is _Parameter.empty and name not in kwargs]
    if missing:
        raise PluginError(f'reward plugin "{use}" needs a value for {", ".join(missing)}; set it under kwargs')
    return _typed(function, kwargs, use)


def _typed(function: Callable[..., Any], kwargs: dict[str, Any], use: str) -> dict[str, Any]:
    try:
        annotations = typing.get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise PluginError(
            f'reward plugin "{use}": {error}; define or import the names in its annotations at module level'
        ) from None
    typed = {}
    for name, value in kwargs.items():
        try:
            typed[name] = TypeAdapter(annotations.get(name, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise PluginError(f'reward plugin "{use}": {name} = {value!r} does not fit: {problem}') from None
        except PydanticSchemaGenerationError:
            raise PluginError(f'reward plugin "{use}": no config value fits the annotation of {name}') from None
    return typed
