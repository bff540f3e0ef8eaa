"""Layers of settings, `SET` values, and what every mistake is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dig_rl.config import Config, load_config
from dig_rl.curriculum import load_stages
from dig_rl.errors import ConfigError
from dig_rl.layers import differing_keys
from dig_rl.plugins import load_plugin
from tests.tiny import ROOT


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistake(*overrides: str, files: list[str | Path] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(files or [], list(overrides))
    return str(caught.value)


def test_later_layers_win_and_tables_merge(tmp_path: Path) -> None:
    first = write(
        tmp_path, "first.toml", "seed = 1\n[learner]\nlr = 1e-5\nnum_threads = 3\n[rollout]\ngroup_size = 4\n"
    )
    second = write(tmp_path, "second.toml", "[learner]\nlr = 1e-4\n")
    config = load_config([first, second], ["rollout.group_size=6"])
    assert config.learner.lr == 1e-4  # the later file
    assert config.learner.num_threads == 3  # the table merged
    assert config.seed == 1
    assert config.rollout.group_size == 6  # SET comes last
    assert config.rollout.temperature == 1.0  # a default
    assert load_config([second, first]).learner.lr == 1e-5


def test_lists_replace_and_free_tables_merge(tmp_path: Path) -> None:
    first = write(tmp_path, "first.toml", "[rollout.vllm]\nsizes = [1, 2, 3]\nmode = 'a'\n")
    second = write(tmp_path, "second.toml", "[rollout.vllm]\nsizes = [9]\nextra = {deep = 1}\n")
    config = load_config([first, second], ["rollout.vllm.extra.deeper=2"])
    assert config.rollout.vllm == {"sizes": [9], "mode": "a", "extra": {"deep": 1, "deeper": 2}}


def test_layers_leave_each_other_and_the_defaults_alone(tmp_path: Path) -> None:
    file = write(tmp_path, "one.toml", "[learner.deepspeed.zero_optimization]\nstage = 3\n")
    assert load_config([file]).learner.deepspeed == {"zero_optimization": {"stage": 3}}
    assert load_config([]) == Config()
    assert Config().learner.deepspeed == {}


def test_a_file_names_all_reward_terms_or_none() -> None:
    terms = load_config([], ["reward.terms.f1.use=rewards/box_f1.py:box_f1", "reward.terms.f1.weight=1.0"]).reward.terms
    assert list(terms) == ["f1"]  # not added to the default ones, whose weights already sum to 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("-1", -1),
        ("1e-6", 1e-6),
        ("0.5", 0.5),
        ("true", True),
        ("bare", "bare"),
        ("two words", "two words"),
        ("data/my-pairs", "data/my-pairs"),
        ("/abs/with = sign", "/abs/with = sign"),
        ('"1"', "1"),
        ("'single'", "single"),
        ("", ""),
        ("[1, 2]", [1, 2]),
        ('{deep = {x = 1}, y = "z"}', {"deep": {"x": 1}, "y": "z"}),
        ("True", "True"),  # TOML knows `true` alone
    ],
)
def test_set_values_are_toml_and_bare_words_are_strings(text: str, expected: Any) -> None:
    value = load_config([], [f"rollout.vllm.x={text}"]).rollout.vllm["x"]
    assert value == expected
    assert type(value) is type(expected)


def test_set_reads_dotted_tables_and_spaces_around_the_key() -> None:
    config = load_config([], [" learner.deepspeed.zero_optimization.stage =2", "checkpoint.every_minutes=2"])
    assert config.learner.deepspeed["zero_optimization"]["stage"] == 2
    assert config.checkpoint.every_minutes == 2.0


@pytest.mark.parametrize("text", ["learner.lr", "=3", "  =3", ""])
def test_set_without_key_or_value_shows_the_form(text: str) -> None:
    assert f'SET takes "section.key=value", found "{text}"' in mistake(text)


@pytest.mark.parametrize("text", ["1\nseed = 4", "1\n[learner]\nlr = 1"])
def test_a_set_value_that_goes_on_with_other_keys_is_a_plain_string(text: str) -> None:
    config = load_config([], [f"rollout.vllm.x={text}"])
    assert config.rollout.vllm == {"x": text}
    assert config.seed == 0


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("learner.lrr=1", "learner.lr"),
        ("leaner.lr=1", "learner"),
        ("rollout.groupsize=4", "rollout.group_size"),
        ("sed=1", "seed"),
        ("checkpoint.keep=1", "checkpoint.keep_last"),
        ("reward.terms.f1.wieght=1", "reward.terms.f1.weight"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(override: str, nearest: str) -> None:
    message = mistake(override)
    (line,) = [line for line in message.splitlines() if "no such key" in line]
    key = line.strip().partition(":")[0]
    assert override.startswith(key)
    assert line.endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.lr=fast", ["learner.lr", "number", "'fast'"]),
        ("learner.lr=-1", ["learner.lr", "greater than or equal to 0", "-1"]),
        ("learner.lr=nan", ["learner.lr", "finite"]),
        ("learner.lr=inf", ["learner.lr", "finite"]),
        ("rollout.temperature=0", ["rollout.temperature", "greater than or equal to 0.01"]),
        ("rollout.group_size=1", ["rollout.group_size", "greater than or equal to 2"]),
        ("rollout.group_size=2.5", ["rollout.group_size", "integer", "2.5"]),
        ("policy.dtype=float16", ["policy.dtype", "'float32' or 'bfloat16'", "'float16'"]),
        ("data.box_target=both", ["data.box_target", "'union', 'a' or 'b'"]),
        ("policy.path=3", ["policy.path", "string", "3"]),
        ("learner.loss=ppo", ["learner.loss", "'grpo', 'dapo', 'dr_grpo' or 'gspo'", "'ppo'"]),
        ("learner.attention=flex_attention", ["no backward pass on CPUs", "learner.num_gpus"]),
        ('learner.lora={targets=["lm_head"]}', ["learner.lora.targets", "lm_head cannot get an adapter"]),
        ('learner.freeze=["text"]', ["learner.freeze", "'vision' or 'projector'"]),
        ("learner.dual_clip=1.1", ["dual_clip (1.1) must be above 1 + clip_high (1.2)"]),
        ("learner.importance_band=[1.1, 0.9]", ["importance_band must be [lowest, highest], found [1.1, 0.9]"]),
        ("learner=3", ["learner", "3"]),
        ("rollout.vllm=3", ["rollout.vllm", "dictionary"]),
    ],
)
def test_wrong_values_are_named_with_what_was_expected_and_found(override: str, words: list[str]) -> None:
    message = mistake(override)
    for word in words:
        assert word in message
    assert "pydantic" not in message


@pytest.mark.parametrize("text", ["2024", "2024-05-01", "07:30:00", "true", "0.5"])
def test_a_name_that_toml_reads_as_something_else_is_told_how_to_be_quoted(text: str) -> None:
    message = mistake(f"data.path={text}")
    assert f"data.path: Input should be a valid string, found {text}; " in message
    (quoted,) = re.findall("'(data.path=.*)'$", message)
    assert load_config([], [quoted]).data.path == text


def test_every_mistake_is_told_at_once() -> None:
    message = mistake("learner.lrr=1", "rollout.temperature=0", "seed=-1")
    assert len(message.splitlines()) == 4  # a heading and one line each


def test_weights_must_sum_to_one() -> None:
    assert "weights of reward.terms must sum to 1, found 0.95" in mistake("reward.terms={a={use='x.py:x',weight=0.95}}")
    assert "found 0" in mistake("reward.terms={}")
    thirds = "{use='x.py:x', weight=0.333333333}"
    load_config([], [f"reward.terms={{a={thirds}, b={thirds}, c={thirds}}}"])


def test_the_longest_answer_must_leave_room_for_the_prompt() -> None:
    message = mistake("rollout.max_completion_tokens=512", "rollout.max_model_len=512")
    assert "rollout.max_completion_tokens (512) must be below rollout.max_model_len (512)" in message
    load_config([], ["rollout.max_completion_tokens=511", "rollout.max_model_len=512"])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert f"no config file at {missing}" in mistake(files=[missing])
    broken = write(tmp_path, "broken.toml", "seed = 1\n[learner\n")
    assert f"{broken} is not valid TOML" in mistake(files=[broken])
    assert "line 2" in mistake(files=[broken])
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe seed")
    assert f"{binary} is not valid TOML" in mistake(files=[binary])
    assert str(tmp_path) in mistake(files=[tmp_path])
    wrong = write(tmp_path, "wrong.toml", "sed = 1\n")
    assert f"config from {wrong} is not valid" in mistake(files=[wrong])


def test_differing_keys_are_dotted_and_show_both_values() -> None:
    saved = load_config([], ["seed=1", "rollout.vllm.a=1", "rollout.vllm.b=[1, 2]"]).model_dump()
    current = load_config([], ["seed=2", "learner.lr=1e-5", "rollout.vllm.b=[1]", "policy.max_pixels=4"]).model_dump()
    assert differing_keys(saved, current) == [
        "learner.lr: 1e-06 -> 1e-05",
        "policy.max_pixels: null -> 4",
        "rollout.vllm.a: 1 -> null",
        "rollout.vllm.b: [1, 2] -> [1]",
        "seed: 1 -> 2",
    ]
    assert differing_keys(saved, saved) == []


@pytest.mark.parametrize("file", sorted((ROOT / "launch" / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_shipped_config_is_valid_and_so_is_what_it_names(file: Path) -> None:
    config = load_config([file])
    load_stages(ROOT / config.curriculum)
    for term in config.reward.terms.values():
        load_plugin(term.use, term.kwargs, ROOT)


@pytest.mark.parametrize("file", sorted((ROOT / "curricula").glob("*.toml")), ids=lambda file: file.name)
def test_every_shipped_curriculum_loads(file: Path) -> None:
    assert load_stages(file)


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.learner.lr = 1.0  # type: ignore[misc]


def test_the_saved_copy_reads_back_as_the_same_config() -> None:
    config = load_config([ROOT / "launch/configs/demo.toml"], ["rollout.vllm.x={a = [1, 2]}"])
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_an_unknown_key_that_resembles_none_shows_what_the_table_has() -> None:
    assert "learner.learning_rate: no such key; learner has lr, weight_decay, " in mistake("learner.learning_rate=1")


@pytest.mark.parametrize(
    ("key", "before"),
    [
        ("evaluation.every_steps", "20"),
        ("evaluation.max_pairs", "20"),
        ("learner.dual_clip", "3.0"),
        ("learner.lora", "{rank = 4}"),
        ("policy.max_pixels", "4096"),
        ("cluster.address", '"10.0.0.1:6379"'),
    ],
)
def test_none_is_a_value_wherever_none_is_a_default(tmp_path: Path, key: str, before: str) -> None:
    section, name = key.split(".")
    set_before = write(tmp_path, "before.toml", f"[{section}]\n{name} = {before}\n")
    unset = write(tmp_path, "unset.toml", f'[{section}]\n{name} = "none"\n')
    assert getattr(getattr(load_config([set_before]), section), name) is not None
    for config in (load_config([set_before], [f"{key}=none"]), load_config([set_before, unset])):
        assert getattr(getattr(config, section), name) is None


def test_none_is_text_where_text_is_meant(tmp_path: Path) -> None:
    config = load_config([], ["data.path=none", "rollout.vllm.x=none", "learner.lora={}", "cluster.address=None"])
    assert (config.data.path, config.rollout.vllm, config.cluster.address) == ("none", {"x": "none"}, None)
    assert "learner.lr: Input should be a valid number" in mistake("learner.lr=none")
    stages = write(
        tmp_path,
        "stages.toml",
        '[[stages]]\nname = "none"\ndifferences = [1, 1]\nsteps = 2\nepochs = "none"\npromotion = "none"\n'
        'overrides = {lr = "none", temperature = 0.5}\n',
    )
    (stage,) = load_stages(stages)  # in lists of tables, too
    assert (stage.name, stage.epochs, stage.promotion) == ("none", None, None)
    assert (stage.overrides.lr, stage.overrides.temperature) == (None, 0.5)
