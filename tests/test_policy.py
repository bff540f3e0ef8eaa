"""A policy folder: what is in a small one, how any Qwen-VL folder opens, and what a broken one is told."""

from __future__ import annotations

import json
import math
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase

from dig_rl.config import Config, load_config
from dig_rl.errors import ConfigError, DataError, PolicyError
from dig_rl.policy.build import ANSWER_PIECES, SPECIAL_TOKENS, SmallPolicyConfig, build_processor
from dig_rl.policy.load import VISION_TOKENS, check_token_budget, load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.prompts import format_answer, instruction
from dig_rl.types import Example
from launch.next_steps import LONGEST_PROMPT_TOKENS, SMALL_POLICY, SMALL_RUN
from tests.groups import make_group, make_pair
from tests.qwen2_5 import build_tiny_qwen2_5
from tests.test_packing import one_by_one, rows_of_a_batch
from tests.tiny import ROOT


def config_of(folder: Path, *more: str) -> Config:
    return load_config([], [f'policy.path="{folder}"', *more])


@pytest.fixture(scope="module")
def tokenizer(random_policy: Path) -> PreTrainedTokenizerBase:
    return AutoProcessor.from_pretrained(random_policy).tokenizer


def test_a_small_policy_is_an_ordinary_hugging_face_folder(random_policy: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(random_policy)
    processor = AutoProcessor.from_pretrained(random_policy)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert json.loads((random_policy / "config.json").read_text())["model_type"] == "qwen3_vl"
    tokenizer = processor.tokenizer
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


@pytest.mark.parametrize("size_px", [(8, 8), (96, 64), (320, 224), (64, 1000), (4000, 3000)])
def test_the_policy_that_ships_has_room_for_pictures_of_any_size(size_px: tuple[int, int]) -> None:
    config = load_config([ROOT / SMALL_RUN])
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"path": str(ROOT / SMALL_POLICY)})})
    needed = load_frontend(config.policy, "union").num_prompt_tokens(size_px)
    assert needed <= LONGEST_PROMPT_TOKENS
    assert LONGEST_PROMPT_TOKENS + config.rollout.max_completion_tokens == config.rollout.max_model_len


def test_qwens_special_tokens_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token).input_ids) == 1, token
        assert tokenizer.decode(tokenizer(f"a{token}b").input_ids, skip_special_tokens=True) == "ab"


def test_the_chat_holds_both_images_before_the_question_with_qwens_markers(random_policy: Path) -> None:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    prompt = load_frontend(config_of(random_policy).policy, "union").prompt
    question = re.escape(instruction("union", "norm1000"))
    pattern = rf"<\|im_start\|>user\n{re.escape(image) * 2}{question}<\|im_end\|>\n<\|im_start\|>assistant\n"
    assert re.fullmatch(pattern, prompt)


@pytest.mark.parametrize("levels", [10, 50, 1000])
def test_coordinates_and_punctuation_are_one_token_each(levels: int) -> None:
    tokenizer = build_processor(SmallPolicyConfig(coordinate_levels=levels), []).tokenizer
    step = 1000 // levels
    pieces = [*ANSWER_PIECES, *(str(level * step) for level in range(levels + 1))]
    assert [piece for piece in pieces if len(tokenizer(piece).input_ids) != 1] == []
    # In an answer, a coordinate takes along the comma that follows: 8 coordinates, what parts the boxes, both ends.
    boxes = torch.tensor([[0.0, 0.1, 0.5, 1.0], [0.2, 0.2, 0.9, 0.9]]).double().numpy()
    answer = format_answer(boxes, "norm1000", (96, 64), levels)
    assert len(tokenizer(answer).input_ids) == 8 + 1 + 2
    assert tokenizer.decode(tokenizer(answer).input_ids) == answer


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_can_be_written(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    composed = unicodedata.normalize("NFC", text)  # Qwen's tokenizer composes accents
    assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == composed


def test_banned_tokens_are_the_vision_tokens_and_the_padding_of_the_vocabulary(random_policy: Path) -> None:
    frontend = load_frontend(config_of(random_policy).policy, "union")
    tokenizer = frontend.processor.tokenizer
    vocabulary = json.loads((random_policy / "config.json").read_text())["text_config"]["vocab_size"]
    expected = {tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS} | set(
        range(len(tokenizer), vocabulary)
    )
    assert set(frontend.banned_token_ids) == expected
    assert not expected & set(frontend.end_token_ids)
    assert not expected & set(tokenizer("[[0, 20, 1000, 500], [1, 2, 3, 4]]").input_ids)


def test_every_end_token_of_the_folder_ends_an_answer(random_policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(random_policy, folder)
    path = folder / "generation_config.json"
    tokenizer = load_frontend(config_of(folder).policy, "union").processor.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    listings = [(end, (end,)), ([end, pad], (end, pad)), ([pad, end], (end, pad)), (pad, (end, pad)), (None, (end,))]
    for listed, expected in listings:
        path.write_text(json.dumps({"eos_token_id": listed}))
        assert load_frontend(config_of(folder).policy, "union").end_token_ids == expected
    config = json.loads((folder / "config.json").read_text())
    for where in (config, config["text_config"]):  # read where there is no generation_config.json
        where["eos_token_id"] = [end, pad]
    (folder / "config.json").write_text(json.dumps(config))
    path.unlink()
    assert load_frontend(config_of(folder).policy, "union").end_token_ids == (end, pad)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 96), (160, 120), (333, 57), (16, 16), (1000, 1000)])
def test_prompt_length_is_what_encoding_gives(random_policy: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    frontend = load_frontend(config_of(random_policy).policy, "union")
    encoded = frontend.encode(make_pair(tmp_path, size))
    assert encoded["input_ids"].shape == (1, frontend.num_prompt_tokens(size))
    width, height = frontend.model_image_size_px(size)
    patch = frontend.processor.image_processor.patch_size
    assert encoded["image_grid_thw"].tolist() == [[1, height // patch, width // patch]] * 2


def test_the_resize_rule_keeps_shape_and_area_within_bounds(random_policy: Path) -> None:
    def resized(size: tuple[int, int], *more: str) -> tuple[int, int]:
        return load_frontend(config_of(random_policy, *more).policy, "union").model_image_size_px(size)

    # An image token covers 16 x 16 pixels, and the folder allows 96 x 64.
    assert resized((96, 64)) == (96, 64)
    assert resized((100, 60)) == (96, 64)  # the nearest multiples of 16
    assert resized((480, 320)) == (96, 64)  # too large: the same shape within the area
    assert resized((480, 320), "policy.max_pixels=24576") == (192, 128)
    assert resized((48, 32), "policy.min_pixels=6144") == (96, 64)


def test_both_images_are_resized_alike_whatever_their_content(random_policy: Path, tmp_path: Path) -> None:
    config = config_of(random_policy, "policy.max_pixels=1024")
    frontend = load_frontend(config.policy, "union")
    assert frontend.resize_area_px["longest_edge"] == 1024
    assert frontend.encode(make_pair(tmp_path, (96, 64)))["image_grid_thw"].tolist() == [[1, 2, 4]] * 2  # 32 x 16
    assert frontend.num_prompt_tokens((96, 64)) == frontend.encode(make_pair(tmp_path, (96, 64)))["input_ids"].shape[1]


def test_token_budget_names_the_first_pair_that_is_too_long(random_policy: Path) -> None:
    config = config_of(random_policy, "rollout.max_model_len=200", "rollout.max_completion_tokens=100")
    frontend = load_frontend(config.policy, "union")
    short, long = frontend.num_prompt_tokens((16, 16)), frontend.num_prompt_tokens((96, 64))
    assert long == short + 2 * (6 * 4 - 1)

    def examples() -> list[Example]:
        sizes = [(16, 16), (96, 64), (96, 64)]
        return [Example(f"pair-{i}", "a", "b", size, (), (), "train") for i, size in enumerate(sizes)]

    fitting = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_model_len": 100 + long})})
    check_token_budget(frontend, examples(), fitting)
    tight = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_model_len": 99 + long})})
    with pytest.raises(ConfigError, match=rf"pair pair-1: its prompt takes {long} tokens .*96x64.* leaves {long - 1}"):
        check_token_budget(frontend, examples(), tight)


def broken_copy(policy: Path, folder: Path) -> Path:
    shutil.copytree(policy, folder)
    return folder


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_missing_folder_says_how_to_get_one(tmp_path: Path) -> None:
    for load in (lambda policy: load_frontend(policy, "union"), load_model):
        with pytest.raises(PolicyError, match=r"no policy at .*nowhere: .*make warmup.*policy\.hub"):
            load(config_of(tmp_path / "nowhere").policy)


def test_an_undeclared_family_is_refused(random_policy: Path, tmp_path: Path) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    rewrite(folder / "config.json", model_type="qwen2_vl")
    with pytest.raises(PolicyError, match=r"no coordinate convention .*qwen2_vl.*known: qwen2_5_vl, qwen3_vl"):
        load_frontend(config_of(folder).policy, "union")
    rewrite(folder / "config.json", model_type="of_my_own")
    with pytest.raises(PolicyError, match="of_my_own"):
        load_frontend(config_of(folder).policy, "union")


@pytest.mark.parametrize("contents", ["{", "", "[]", "null", '"text"', "{}"])
def test_a_corrupt_config_is_a_policy_error(random_policy: Path, tmp_path: Path, contents: str) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    (folder / "config.json").write_text(contents)
    with pytest.raises(PolicyError, match="policy"):
        load_frontend(config_of(folder).policy, "union")


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_processor_is_a_policy_error(random_policy: Path, tmp_path: Path, file: str, damage: str) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    if damage == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_text((folder / file).read_text()[:50])
    with pytest.raises(PolicyError, match=re.escape(str(folder))):
        load_frontend(config_of(folder).policy, "union")


def test_a_template_that_forgets_the_images_is_a_policy_error(random_policy: Path, tmp_path: Path) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    with pytest.raises(PolicyError, match=r"twice in the prompt of a pair, found token \d+, 0 times"):
        load_frontend(config_of(folder).policy, "union")


def test_a_text_only_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(PolicyError, match="qwen3"):
        load_frontend(config_of(folder).policy, "union")
    with pytest.raises(PolicyError, match="cannot open policy"):
        load_model(config_of(folder).policy)


@pytest.mark.parametrize("keep", [0, 7, 1000, -100])
def test_cut_off_weights_are_a_policy_error(random_policy: Path, tmp_path: Path, keep: int) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(PolicyError, match=f"cannot open policy {re.escape(str(folder))}"):
        load_model(config_of(folder).policy)


def test_missing_weights_are_a_policy_error(random_policy: Path, tmp_path: Path) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match="cannot open policy"):
        load_model(config_of(folder).policy)


def test_weights_of_another_size_are_a_policy_error(random_policy: Path, tmp_path: Path) -> None:
    folder = broken_copy(random_policy, tmp_path / "policy")
    saved = json.loads((folder / "config.json").read_text())
    rewrite(folder / "config.json", text_config=saved["text_config"] | {"intermediate_size": 128})
    with pytest.raises(PolicyError, match=r"6 weights are missing or of another shape .*layers\.0\.mlp\.down_proj"):
        load_model(config_of(folder).policy)


def test_weights_that_are_not_in_the_folder_are_a_policy_error(random_policy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = broken_copy(random_policy, tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "layers.1." in name)
    save_file({n: w for n, w in weights.items() if n != dropped}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PolicyError, match=re.escape(dropped)):
        load_model(config_of(folder).policy)


def test_an_image_that_cannot_be_read_names_its_pair(random_policy: Path, tmp_path: Path) -> None:
    example = make_pair(tmp_path, (96, 64))
    frontend = load_frontend(config_of(random_policy).policy, "union")
    Path(example.image_b_path).write_bytes(Path(example.image_b_path).read_bytes()[:200])
    with pytest.raises(DataError, match=r"pair pair-0: cannot read image .*-b\.png"):
        frontend.encode(example)


@pytest.fixture(scope="module")
def qwen2_5(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen2_5(random_policy, tmp_path_factory.mktemp("qwen2_5") / "policy")


def test_qwen2_5_answers_in_pixels_of_the_resized_image(qwen2_5: Path) -> None:
    frontend = load_frontend(config_of(qwen2_5).policy, "union")
    assert frontend.frame == "absolute_px"
    assert instruction("union", "absolute_px") in frontend.prompt
    assert frontend.prompt.count("<|image_pad|>") == 2


@pytest.mark.parametrize("size", [(96, 64), (160, 120)])
def test_qwen2_5_prompt_length_is_what_encoding_gives(qwen2_5: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    frontend = load_frontend(config_of(qwen2_5).policy, "union")
    assert frontend.encode(make_pair(tmp_path, size))["input_ids"].shape[1] == frontend.num_prompt_tokens(size)


def test_qwen2_5_packed_values_equal_separate_ones(qwen2_5: Path, tmp_path: Path) -> None:
    config = config_of(qwen2_5, "rollout.temperature=0.7")
    frontend = load_frontend(config.policy, "union")
    scorer = PolicyScorer(load_model(config.policy), frontend, config)
    group = make_group(frontend, make_pair(tmp_path, (96, 64)), [5, 12, 1])
    with torch.no_grad():
        packed = rows_of_a_batch(scorer, frontend, [group, group])
        separate = one_by_one(scorer, frontend, [group, group])
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("part", "value"), [("layers.1.mlp", math.nan), ("visual.blocks", -math.inf)])
def test_one_value_that_is_not_a_number_is_a_policy_error(
    random_policy: Path, tmp_path: Path, part: str, value: float
) -> None:
    """The reference is read in the same way."""
    from safetensors.torch import load_file, save_file

    folder = broken_copy(random_policy, tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if part in name)
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    expected = (
        rf"{re.escape(name)} \(1 of {weights[name].numel()} values\)\. .*take the policy of an earlier checkpoint"
    )
    with pytest.raises(PolicyError, match=expected):
        load_model(config_of(folder).policy)
