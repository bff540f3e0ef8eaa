"""Which modules get adapters, in both families: what is refused before anything loads, and what is then trained."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from dig_rl.config import Config, load_config
from dig_rl.errors import ConfigError
from dig_rl.inputs import read_inputs
from dig_rl.policy.load import load_structure
from dig_rl.policy.targets import adapted_modules, part_of
from dig_rl.policy.trainable import prepare_for_training
from tests.data_folders import line_of, write_folder
from tests.qwen2_5 import build_tiny_qwen2_5
from tests.tiny import ROOT


@pytest.fixture(scope="module")
def qwen2_5(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen2_5(random_policy, tmp_path_factory.mktemp("qwen2_5") / "policy")


@pytest.fixture(scope="module")
def structures(random_policy: Path, qwen2_5: Path) -> dict[str, PreTrainedModel]:
    """Models without weights; tests must not change them."""
    folders = {"qwen3": random_policy, "qwen2_5": qwen2_5}
    return {family: load_structure(config_of(folder).policy) for family, folder in folders.items()}


def config_of(folder: Path, *more: str) -> Config:
    return load_config([], [f'policy.path="{folder}"', *more])


def targets(*names: str) -> str:
    return f"learner.lora={{targets={json.dumps(names)}}}"


ON_PATCHES = r"'proj' names model\.visual\.patch_embed\.proj \(Conv3d\), write 'attn\.proj' to leave that out"


@pytest.mark.parametrize(
    ("names", "clause"),
    [
        (["q_proj", "v_proj", "qkv", "proj"], ON_PATCHES),
        (["q_proj", "embed_tokens"], r"'embed_tokens' names model\.language_model\.embed_tokens \(Embedding\)\. Last"),
        (["pos_embed"], r"'pos_embed' names model\.visual\.pos_embed \(Embedding\)"),
        (["norm"], r"'norm' names model\.language_model\.norm \(Qwen3VLTextRMSNorm\)"),
        (["visual.merger.norm"], r"'visual\.merger\.norm' names model\.visual\.merger\.norm \(LayerNorm\)"),
        (["merger"], r"'merger' names model\.visual\.merger \(Qwen3VLVisionPatchMerger\)"),
        (["self_attn"], r"'self_attn' names .*layers\.0\.self_attn, .*layers\.1\.self_attn \(Qwen3VLTextAttention\)"),
        (["visual"], r"'visual' names model\.visual \(Qwen3VLVisionModel\)"),
        (["q_proj", "query"], r"'query' names no module of Qwen3VLForConditionalGeneration"),
        (["roj"], r"'roj' names no module"),
    ],
)
def test_what_cannot_get_an_adapter_is_refused_with_its_modules(
    structures: dict[str, PreTrainedModel], names: list[str], clause: str
) -> None:
    learner = load_config([], [targets(*names)]).learner
    with pytest.raises(ConfigError, match=f"learner.lora.targets: .*{clause}.*down_proj, .*up_proj, v_proj; longer"):
        adapted_modules(structures["qwen3"], learner)


def test_targets_that_freezing_leaves_nothing_of_are_refused(structures: dict[str, PreTrainedModel]) -> None:
    for part, name in (("vision", "qkv"), ("vision", "attn.proj"), ("projector", "merger.linear_fc1")):
        learner = load_config([], [targets("q_proj", name), f'learner.freeze=["{part}"]']).learner
        clause = rf"'{re.escape(name)}' names modules of frozen parts alone: model\.visual"
        with pytest.raises(ConfigError, match=clause):
            adapted_modules(structures["qwen3"], learner)


@pytest.mark.parametrize(
    ("family", "names", "freeze", "expected"),
    [
        ("qwen3", None, [], {"text": 14}),
        ("qwen2_5", None, [], {"text": 14}),  # its vision tower has gate_proj, up_proj and down_proj, too
        ("qwen2_5", None, ["vision", "projector"], {"text": 14}),
        ("qwen2_5", ["qkv", "attn.proj"], [], {"vision": 4}),
        ("qwen2_5", ["visual.blocks.0.mlp.gate_proj", "q_proj"], ["projector"], {"vision": 1, "text": 2}),
        ("qwen2_5", ["merger.mlp.0"], ["vision"], {"projector": 1}),
        ("qwen3", ["linear_fc1"], [], {"vision": 2, "projector": 2}),
        ("qwen3", ["linear_fc1"], ["vision"], {"projector": 2}),
        ("qwen3", ["linear_fc1", "linear_fc2"], ["projector"], {"vision": 4}),
        ("qwen3", ["merger.linear_fc1", "o_proj"], [], {"projector": 1, "text": 2}),
    ],
)
def test_adapters_are_the_text_models_unless_only_vision_has_the_name_and_never_in_a_frozen_part(
    structures: dict[str, PreTrainedModel],
    family: str,
    names: list[str] | None,
    freeze: list[str],
    expected: dict[str, int],
) -> None:
    lora = "learner.lora={}" if names is None else targets(*names)
    learner = load_config([], [lora, f"learner.freeze={json.dumps(freeze)}"]).learner
    assert Counter(map(part_of, adapted_modules(structures[family], learner))) == expected


def test_adapters_alone_are_trained_and_none_in_a_frozen_part(qwen2_5: Path) -> None:
    config = config_of(qwen2_5, "learner.lora={}", 'learner.freeze=["vision", "projector"]')
    model = prepare_for_training(load_structure(config.policy), config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.endswith((".lora_A.default.weight", ".lora_B.default.weight")) for name in trained)
    assert len(trained) == 28 and set(map(part_of, trained)) == {"text"}


def test_a_run_is_refused_by_what_it_reads_first(random_policy: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", [line_of("p0"), line_of("p1")])
    (tmp_path / "one.toml").write_text('[[stages]]\nname = "one"\ndifferences = [1, 1]\nsteps = 1\n')
    settings = [
        f'data.path="{tmp_path / "data"}"',
        f'curriculum="{tmp_path / "one.toml"}"',
        "rollout.prompts_per_step=2",
    ]
    config = config_of(random_policy, *settings, targets("q_proj", "proj"))
    with pytest.raises(ConfigError, match=ON_PATCHES):
        read_inputs(config, ROOT)
    with pytest.raises(ConfigError, match=ON_PATCHES):  # and where a model is prepared without reading these
        prepare_for_training(load_structure(config.policy), config)
