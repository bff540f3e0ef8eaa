"""What is float32 in a bfloat16 run, and which tables are refused because engines would do otherwise."""

from __future__ import annotations

import pytest

from dig_rl.config import Config, load_config
from dig_rl.deepspeed_table import learner_table
from dig_rl.errors import ConfigError
from dig_rl.vllm_options import engine_options

AREA = {"shortest_edge": 1, "longest_edge": 2}


def config_of(deepspeed: str = "{}", vllm: str = "{}", dtype: str = "bfloat16") -> Config:
    tables = [f"learner.deepspeed={deepspeed}", f"rollout.vllm={vllm}"]
    return load_config([], ['policy.path="p"', f"policy.dtype={dtype}", *tables])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_runs_add_up_in_float32_in_every_zero_stage(stage: int) -> None:
    table = learner_table(config_of(f"{{zero_optimization={{stage={stage}}}}}"), world_size=1)
    assert table["data_types"] == {"grad_accum_dtype": "fp32"} and table["communication_data_type"] == "fp32"
    assert table["bf16"] == {"enabled": True, "immediate_grad_update": True}


def test_a_table_may_ask_for_bfloat16_sums() -> None:
    table = learner_table(config_of("{zero_optimization={stage=0}, data_types={grad_accum_dtype='bf16'}}"), 1)
    assert table["data_types"] == {"grad_accum_dtype": "bf16"} and table["zero_optimization"] == {"stage": 0}


@pytest.mark.parametrize("sums", ["fp32", "bf16"])
def test_a_table_of_a_bfloat16_policy_may_ask_for_bfloat16_between_ranks(sums: str) -> None:
    text = f"{{communication_data_type='bf16', data_types={{grad_accum_dtype='{sums}'}}}}"
    assert learner_table(config_of(text), 1)["communication_data_type"] == "bf16"
    config_of("{communication_data_type='fp32'}", dtype="float32")


def test_float32_runs_are_told_nothing_of_types() -> None:
    config = config_of(dtype="float32")
    assert not {"bf16", "data_types", "communication_data_type"} & learner_table(config, 1).keys()
    assert "hf_overrides" not in engine_options(config, AREA)


def test_the_samplers_logits_are_float32_and_other_overrides_stay() -> None:
    head = {"head_dtype": "float32"}
    assert engine_options(config_of(), AREA)["hf_overrides"] == head | {"text_config": head}
    options = engine_options(config_of(vllm="{hf_overrides={text_config={rope_theta=1e6}}}"), AREA)
    assert options["hf_overrides"] == head | {"text_config": head | {"rope_theta": 1e6}}


@pytest.mark.parametrize(
    "text",
    [
        "{bf16={immediate_grad_update=false}}",
        "{bf16={immediate_grad_update=false}, data_types={grad_accum_dtype='fp32'}, zero_optimization={stage=1}}",
        "{bf16={immediate_grad_update=false}, zero_optimization={offload_optimizer={device='none'}}}",
    ],
)
def test_stage_1_that_would_add_a_pass_up_again_and_again_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"immediate_grad_update: expected true .*found false.*72 times.*remove it"):
        config_of(text)


@pytest.mark.parametrize("zero", ["{stage=2}", "{stage=3}", "{offload_optimizer={device='cpu'}}"])
def test_other_stages_do_not_look_at_it(zero: str) -> None:
    config_of(f"{{bf16={{immediate_grad_update=false}}, zero_optimization={zero}}}")


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("{zero_optimization={stage=0}}", "bfloat16", r"stage: expected 1, 2 or 3 .*found 0.*write stage = 1"),
        ("{bf16={bf16_master_weights_and_grads=true}}", "bfloat16", "master_weights_and_grads: expected false"),
        ("{data_types={grad_accum_dtype='fp16'}}", "bfloat16", "grad_accum_dtype: expected \"fp32\".*found 'fp16'"),
        ("{data_types={grad_accum_dtype='bf16'}}", "float32", 'grad_accum_dtype: expected "fp32" with policy.dtype'),
        ("{bf16={enabled=false}}", "bfloat16", "bf16.enabled: expected true with policy.dtype = bfloat16"),
        ("{bf16={enabled=true}}", "float32", "bf16.enabled: expected false with policy.dtype = float32"),
        ("{fp16={enabled=true}}", "bfloat16", r"fp16.enabled: expected false .*policy.dtype chooses float32 or"),
        ("{fp16={enabled=true}}", "float32", "fp16.enabled: expected false"),
        ("{amp={enabled=true}}", "float32", "amp.enabled: expected false"),
        ("{torch_autocast={enabled=true, dtype='bfloat16'}}", "float32", "torch_autocast.enabled: expected false"),
        ("{bfloat16={enabled=true}}", "bfloat16", "write bf16"),
        (
            "{communication_data_type='bf16'}",
            "float32",
            "communication_data_type: expected \"fp32\" with policy.dtype = float32, found 'bf16'; remove it",
        ),
        ("{communication_data_type='fp16'}", "float32", "communication_data_type: expected"),
        ("{communication_data_type='fp16'}", "bfloat16", 'expected "fp32" or "bf16" with policy.dtype = bfloat16'),
    ],
)
def test_tables_that_compute_or_add_up_otherwise_are_refused(text: str, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(text, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables_of_another_trainer_that_leave_the_type_open_are_taken(dtype: str) -> None:
    config_of("{bf16={enabled='auto'}, fp16={enabled='auto', loss_scale=0}, torch_autocast=3}", dtype=dtype)


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("{hf_overrides={head_dtype='model'}}", "bfloat16", r"hf_overrides.head_dtype: .*\"float32\".*found 'model'"),
        ("{hf_overrides={text_config={head_dtype='bfloat16'}}}", "bfloat16", "text_config.head_dtype: expected"),
        ("{hf_overrides={head_dtype='bfloat16'}}", "float32", "head_dtype: expected"),
        ("{dtype='bfloat16'}", "float32", "rollout.vllm.dtype: expected float32 with policy.dtype = float32"),
    ],
)
def test_a_sampler_that_would_compute_other_logits_is_refused(text: str, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(vllm=text, dtype=dtype)
