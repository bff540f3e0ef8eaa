"""Values that an engine would refuse after it has loaded are refused with the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dig_rl.config import load_config
from dig_rl.curriculum import load_stages
from dig_rl.errors import ConfigError
from dig_rl.policy_limits import check_policy_limits
from dig_rl.vllm_options import engine_options
from launch.evaluate import Decoding

STAGES = "".join(f"[[stages]]\nname = '{name}'\ndifferences = [1, 1]\nsteps = 1\n" for name in "ab")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=4294967296", "seed: Input should be less than 4294967296, found 4294967296"),
        ("seed=9223372036854775808", "seed: Input should be less than 4294967296"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("rollout.temperature=2.5", "rollout.temperature: Input should be less than or equal to 2, found 2.5"),
        ("rollout.temperature=1e-9", "rollout.temperature: Input should be greater than or equal to 0.01"),
        ("rollout.temperature=0.0", "rollout.temperature: Input should be greater than or equal to 0.01"),
        ("rollout.num_gpus=1.5", "rollout.num_gpus: Ray shares one GPU among actors"),
        ("learner.num_gpus=2.25", "learner.num_gpus: Ray shares one GPU among actors"),
        ("reward.memory_limit_gib=1e12", "reward.memory_limit_gib: Input should be less than or equal to 1048576"),
        ("reward.time_limit_s=1e7", "reward.time_limit_s: Input should be less than or equal to 1000000"),
        ("cluster.start_timeout_s=1e9", "cluster.start_timeout_s: Input should be less than or equal to 1000000"),
        ("learner.importance_cap=inf", "learner.importance_cap: Input should be a finite number"),
        ("rollout.vllm={logprobs_mode='raw_logprobs'}", "rollout.vllm: logprobs_mode must be processed_logprobs"),
        ("rollout.vllm={model='other'}", "rollout.vllm: model is policy.path"),
        ("learner.num_threads=1000000", "learner.num_threads: Input should be less than or equal to 1024"),
        ("rollout.group_size=1025", "rollout.group_size: Input should be less than or equal to 1024"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_bound(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config([], [setting])
    assert message in str(raised.value)


def test_the_bounds_themselves_are_fine() -> None:
    for setting in ("seed=2147483648", "seed=4294967295", "rollout.temperature=2", "rollout.temperature=0.01"):
        load_config([], [setting])
    for setting in ("rollout.num_gpus=0.5", "rollout.num_gpus=2", "reward.time_limit_s=1e6"):
        load_config([], [setting])


@pytest.mark.parametrize("override", ["temperature = 2.5", "temperature = 1e-9", "group_size = 1", "lr = -1.0"])
def test_a_later_stage_has_the_same_bounds(tmp_path: Path, override: str) -> None:
    path = tmp_path / "stages.toml"
    path.write_text(STAGES + f"[stages.overrides]\n{override}\n")
    with pytest.raises(ConfigError, match=rf"stages.toml, stage 2 is not valid:\s+overrides.{override.split()[0]}: "):
        load_stages(path)


def test_an_evaluation_samples_within_the_bounds() -> None:
    assert Decoding.of_options(None, 0.01).temperature == 0.01 and Decoding.of_options(8, 2.0).temperature == 2.0
    for temperature in (2.5, 1e-9, -1.0, float("inf")):
        with pytest.raises(ConfigError, match=r"a TEMPERATURE of 0 or from 0.01 to 2, found 8 and"):
            Decoding.of_options(8, temperature)


def folder_with(path: Path, text: dict[str, object], **others: dict[str, object]) -> str:
    """A policy folder of JSON files alone."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "text_config": text}))
    for name, contents in others.items():
        (path / f"{name}.json").write_text(json.dumps(contents))
    return f'policy.path="{path}"'


TEXT = {
    "max_position_embeddings": 4096,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "head_dim": 128,
}


def test_a_context_beyond_the_policys_positions_is_refused(tmp_path: Path) -> None:
    policy = folder_with(tmp_path / "p", TEXT, tokenizer_config={"model_max_length": 2048})
    short = ("rollout.max_completion_tokens=40", "rollout.kv_cache_gib=9")
    with pytest.raises(
        ConfigError, match=r"max_model_len: policy .* has positions for 2048 tokens .*, found 2049; set it"
    ):
        check_policy_limits(load_config([], [policy, *short, "rollout.max_model_len=2049"]))
    check_policy_limits(load_config([], [policy, *short, "rollout.max_model_len=2048"]))
    rope = {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    scaled = folder_with(tmp_path / "scaled", TEXT | rope)
    check_policy_limits(load_config([], [scaled, *short, "rollout.max_model_len=8192"]))


def test_a_cache_without_room_for_one_answer_is_refused(tmp_path: Path) -> None:
    # 2 x 36 layers x 8 heads x 128 x 4 bytes = 294,912 bytes a token; 4096 of them are 1.125 GiB
    policy = folder_with(tmp_path / "p", TEXT)
    context = ("rollout.max_completion_tokens=40", "rollout.max_model_len=4096")
    with pytest.raises(ConfigError, match=r"kv_cache_gib: .* 4096 tokens takes 1.1 GiB, found 1; set it to 2 or more"):
        check_policy_limits(load_config([], [policy, *context]))
    for more in ("rollout.kv_cache_gib=2", "policy.dtype=bfloat16", "rollout.num_gpus=1", "rollout.max_model_len=3000"):
        check_policy_limits(load_config([], [policy, *context, more]))


def test_areas_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    own = {"image_processor": {"size": {"shortest_edge": 1024, "longest_edge": 4096}}}
    policy = folder_with(tmp_path / "p", {}, processor_config=own)
    for wrong in (
        ["policy.min_pixels=8192"],
        ["policy.max_pixels=512"],
        ["policy.min_pixels=9", "policy.max_pixels=8"],
    ):
        with pytest.raises(ConfigError, match=r"smallest area of a resized image is .* set both"):
            check_policy_limits(load_config([], [policy, *wrong]))
    check_policy_limits(load_config([], [policy, "policy.min_pixels=4096"]))
    check_policy_limits(load_config([], ["policy.path=Qwen/on-the-hub", "policy.min_pixels=9", "policy.max_pixels=8"]))


def test_an_area_under_one_image_token_is_refused(tmp_path: Path) -> None:
    size = {"shortest_edge": 256, "longest_edge": 4096}
    own = {"image_processor": {"size": size, "patch_size": 16, "merge_size": 2}}
    policy = folder_with(tmp_path / "p", {}, processor_config=own)
    with pytest.raises(ConfigError, match=r"max_pixels: one image token of .* covers 32x32 = 1024 px, found 1023; set"):
        check_policy_limits(load_config([], [policy, "policy.max_pixels=1023"]))
    check_policy_limits(load_config([], [policy, "policy.max_pixels=1024"]))


def test_what_is_shipped_fits_its_bounds(repo_root: Path) -> None:
    for name in ("demo", "tiny", "bench"):
        check_policy_limits(load_config([repo_root / f"launch/configs/{name}.toml"], ['policy.path="nano/policy"']))


def test_vllms_table_is_merged_key_by_key() -> None:
    table = "{mm_processor_kwargs={fps=2}, limit_mm_per_prompt={image=4}, enforce_eager=false}"
    options = engine_options(load_config([], [f"rollout.vllm={table}"]), {"shortest_edge": 1, "longest_edge": 9})
    assert options["mm_processor_kwargs"] == {"size": {"shortest_edge": 1, "longest_edge": 9}, "fps": 2}
    assert options["limit_mm_per_prompt"] == {"image": 4, "video": 0}
    assert options["enforce_eager"] is False and options["logprobs_mode"] == "processed_logprobs"
