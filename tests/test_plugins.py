"""Loading reward plugins: what is found, what is bound, and what each mistake says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dig_rl.errors import PluginError
from dig_rl.plugins import load_plugin, plugin_hash
from dig_rl.types import RewardInput

ITEM = RewardInput(
    pair_id="pair-1",
    prompt="",
    completion="",
    status="ok",
    predicted_boxes_unit=np.array([[0.0, 0.0, 0.5, 0.5]]),
    target_boxes_unit=np.array([[0.0, 0.0, 0.5, 0.5]]),
    assignment=((0, 0, 1.0),),
    image_size_px=(96, 64),
    model_image_size_px=(96, 64),
    finish_reason="stop",
    num_tokens=1,
)


def write(folder: Path, source: str, name: str = "plugin.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(source, encoding="utf-8")
    return folder


def test_function_is_found_by_path_and_its_arguments_are_bound(tmp_path: Path) -> None:
    write(tmp_path / "deep", "def scaled(item, *, factor: float = 1.0): return factor * len(item.assignment)")
    assert load_plugin("deep/plugin.py:scaled", {}, tmp_path)(ITEM) == 1.0
    assert load_plugin("deep/plugin.py:scaled", {"factor": 0.25}, tmp_path)(ITEM) == 0.25
    assert load_plugin(f"{tmp_path}/deep/plugin.py:scaled", {"factor": 0.5}, Path("/"))(ITEM) == 0.5


def test_files_of_one_name_and_names_of_packages_do_not_clash(tmp_path: Path) -> None:
    for folder, value in (("a", 0.25), ("b", 0.75)):
        write(tmp_path / folder, f"def value(item): return {value}", name="json.py")
    first, second = (load_plugin(f"{folder}/json.py:value", {}, tmp_path) for folder in "ab")
    assert (first(ITEM), second(ITEM)) == (0.25, 0.75)
    assert np.__name__ == "numpy"
    assert not hasattr(__import__("json"), "value")


def test_plugin_file_may_define_dataclasses(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    value: float\n\ndef first(item): return Pair(1.0).value\n",
    )
    assert load_plugin("plugin.py:first", {}, tmp_path)(ITEM) == 1.0


@pytest.mark.parametrize("use", ["plugin.py", "plugin:function", "plugin.py:", "plugin.py:not a name", ""])
def test_name_must_be_file_and_function(tmp_path: Path, use: str) -> None:
    with pytest.raises(PluginError, match=r"path/to/file\.py:function"):
        load_plugin(use, {}, tmp_path)


def test_missing_file_names_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=f"no file at {tmp_path}/gone.py"):
        load_plugin("gone.py:function", {}, tmp_path)


def test_unknown_function_lists_what_the_file_offers(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from math import hypot\nfrom inspect import cleandoc\ndef one(item): ...\ndef two(item): ...\ndef _own(): ...",
    )
    with pytest.raises(PluginError, match=r"offers one, two$"):
        load_plugin("plugin.py:three", {}, tmp_path)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("def f(item:", "SyntaxError"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise ValueError('broken on purpose')", "ValueError: broken on purpose"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_file_that_does_not_import_says_why(tmp_path: Path, source: str, cause: str) -> None:
    with pytest.raises(PluginError, match=f"plugin.py failed: {cause}"):
        load_plugin("plugin.py:f", {}, write(tmp_path, source))


@pytest.mark.parametrize(
    ("signature", "kwargs", "message"),
    [
        ("", {}, "must take the RewardInput"),
        ("*, match_iou=0.5", {}, "must take the RewardInput"),
        ("item, match_iou=0.5", {}, r"put a bare \* before match_iou"),
        ("item, *boxes", {}, r"found f\(item, \*boxes\)"),
        ("item, **options", {}, r"found f\(item, \*\*options\)"),
        (
            "item, *, match_iou=0.5, power=1",
            {"mach_iou": 0.5},
            'no keyword argument "mach_iou"; did you mean "match_iou"?',
        ),
        ("item", {"match_iou": 0.5}, "it takes none"),
        ("item, *, match_iou", {}, "needs a value for match_iou"),
        ("item, *, match_iou: float = 0.5", {"match_iou": "half"}, "match_iou = 'half' does not fit"),
        ("item, *, match_iou: float = 0.5", {"match_iou": "0.5"}, "match_iou = '0.5' does not fit"),
        ("item, *, strict: bool = True", {"strict": 1}, "strict = 1 does not fit"),
        ("item, *, how: 'Unknown' = None", {"how": 1}, "'Unknown' is not defined"),
        ("item, *, how: type(lambda: 0) = None", {"how": 1}, "no config value fits the annotation of how"),
    ],
)
def test_wrong_signature_or_arguments_are_named(
    tmp_path: Path, signature: str, kwargs: dict[str, object], message: str
) -> None:
    write(tmp_path, f"def f({signature}): return 0.0")
    with pytest.raises(PluginError, match=message):
        load_plugin("plugin.py:f", kwargs, tmp_path)


def test_something_that_is_no_function_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "threshold = 0.5")
    with pytest.raises(PluginError, match='no function "threshold"; it offers no function at all'):
        load_plugin("plugin.py:threshold", {}, tmp_path)


@pytest.mark.parametrize(
    ("use", "kwargs"),
    [
        ("rewards/box_f1.py:box_f1", {"match_iou": 50}),
        ("rewards/box_f1.py:box_f1", {"match_iou": -0.1}),
        ("rewards/box_iou.py:box_iou", {"iou_reduction": "mean"}),
    ],
)
def test_shipped_plugins_refuse_values_out_of_range(repo_root: Path, use: str, kwargs: dict[str, object]) -> None:
    with pytest.raises(PluginError, match="does not fit"):
        load_plugin(use, kwargs, repo_root)


def test_hash_is_that_of_the_source(tmp_path: Path) -> None:
    source = "def f(item): return 0.0\n"
    write(tmp_path, source)
    assert plugin_hash("plugin.py:f", tmp_path) == hashlib.sha256(source.encode()).hexdigest()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (
            "def f(completions, **kwargs): ...",
            r"looks like a reward of TRL: .*found f\(completions, \*\*kwargs\) in line 2 of",
        ),
        ("def f(prompts, completions, answer, **kwargs): ...", "looks like a reward of TRL"),
        ("async def f(completions, **kwargs): ...", r"found async f\(completions"),
        (
            "def f(reward_inputs, format_weight=0.1): ...",
            r"a reward of EasyR1: .*found f\(reward_inputs, f",
        ),
        ("def f(reward_input: dict): ...", "looks like a reward of EasyR1"),
        ("def f(data_source, solution_str, ground_truth, extra_info=None): ...", "looks like a reward of verl"),
        ("def f(queries, prompts, labels): ...", "looks like a reward of"),
        ("def f(item, **options): ...", r"does not keep the contract: .*found f\(item, \*\*options\)"),
        ("def f(*everything): ...", r"does not keep the contract: .*found f\(\*everything\)"),
        ("async def f(item): ...", r"does not keep the contract: .*found async f\(item\)"),
        ("def f(item):\n    yield 1.0", "does not keep the contract"),
        ("class f: ...", r'has no function "f" \(a class is none\); it offers no function at all'),
    ],
)
def test_a_reward_of_another_trainer_is_told_what_is_expected(tmp_path: Path, source: str, found: str) -> None:
    write(tmp_path, "# a comment\n" + source)
    with pytest.raises(PluginError, match=found) as raised:
        load_plugin("plugin.py:f", {}, tmp_path)
    if "class" not in source:
        for words in (
            "expected f(item: RewardInput, *, ...) -> float",
            "plugin.py",
            "rewards/README.md",
            "dig_rl/adapters",
        ):
            assert words in str(raised.value)


def test_an_annotated_argument_may_have_any_name(tmp_path: Path) -> None:
    source = "from dig_rl.types import RewardInput\ndef f(completions: RewardInput, *, labels: int = 1): return 0.5"
    write(tmp_path, source)
    assert load_plugin("plugin.py:f", {"labels": 2}, tmp_path)(ITEM) == 0.5
    write(tmp_path, "def f(item, *, labels=1): return 0.25")
    assert load_plugin("plugin.py:f", {"labels": 2}, tmp_path)(ITEM) == 0.25
