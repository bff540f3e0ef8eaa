"""One table of DeepSpeed's options for learner and warm-up: merged key by key, and judged before anything loads."""

from __future__ import annotations

import inspect

import pytest
import torch

from dig_rl.config import load_config
from dig_rl.curriculum import Stage, stage_config
from dig_rl.deepspeed_options import SCHEDULES, find_optimizer
from dig_rl.deepspeed_table import learner_table, trainer_table, with_schedule_length
from dig_rl.errors import ConfigError

RATE, DECAY = 1e-6, 0.1


def table_of(text: str, *more: str) -> dict:
    settings = [f"learner.lr={RATE}", f"learner.weight_decay={DECAY}", f"learner.deepspeed={text}"]
    return learner_table(load_config([], [*settings, *more]), world_size=1)


def test_defaults_are_filled_in_and_the_users_words_win() -> None:
    table = learner_table(load_config([], ["learner.lr=3e-4", "policy.dtype=bfloat16"]), world_size=2)
    assert table["optimizer"]["params"] == {"lr": 3e-4, "weight_decay": 0.01, "torch_adam": True}
    assert table["zero_optimization"] == {"stage": 1} and table["bf16"]["enabled"]
    assert table["train_batch_size"] == 2
    own = load_config([], ["learner.deepspeed={zero_optimization={stage=3}, wall_clock_breakdown=true}"])
    table = learner_table(own, world_size=1)
    assert table["zero_optimization"] == {"stage": 3} and table["wall_clock_breakdown"] is True
    assert table["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("optimizer", "params"),
    [
        (
            "{type='AdamW', params={torch_adam=true, betas=[0.9, 0.95]}}",
            {"lr": RATE, "weight_decay": DECAY, "torch_adam": True, "betas": [0.9, 0.95]},
        ),
        ("{type='Adam'}", {"lr": RATE, "weight_decay": DECAY, "torch_adam": True}),
        ("{params={lr=2e-5}}", {"lr": 2e-5, "weight_decay": DECAY, "torch_adam": True}),
        ("{params={weight_decay=0.0, torch_adam=false}}", {"lr": RATE, "weight_decay": 0.0, "torch_adam": False}),
        ("{type='Lion'}", {"lr": RATE, "weight_decay": DECAY}),
        (
            "{type='Muon', params={muon_lr=1e-3}}",
            {"lr": RATE, "weight_decay": DECAY, "torch_adam": True, "muon_lr": 1e-3},
        ),
        ("{type='SGD', params={momentum=0.9}}", {"lr": RATE, "weight_decay": DECAY, "momentum": 0.9}),
        ("{type='Rprop'}", {"lr": RATE}),
    ],
)
def test_rate_and_decay_hold_unless_the_table_names_them(optimizer: str, params: dict[str, object]) -> None:
    offload = "zero_optimization={offload_optimizer={device='cpu'}}"  # Lion on CPUs needs it
    table = table_of(f"{{optimizer={optimizer}, zero_allow_untested_optimizer=true, {offload}}}")
    assert table["optimizer"]["params"] == params


def test_torchs_optimisers_take_what_they_are_given() -> None:
    for name in ("Adadelta", "Adafactor", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD", "Rprop"):
        params = table_of(f"{{optimizer={{type='{name}'}}, zero_allow_untested_optimizer=true}}")["optimizer"]["params"]
        known = inspect.signature(getattr(torch.optim, name)).parameters.keys()
        assert params.keys() == {"lr", "weight_decay"} & known, name


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ("{overlap_comm=false}", {"stage": 1, "overlap_comm": False}),
        ("{offload_optimizer={device='cpu'}}", {"stage": 1, "offload_optimizer": {"device": "cpu"}}),
        ("{stage=3, sub_group_size=7}", {"stage": 3, "sub_group_size": 7}),
        ("{stage='auto', reduce_bucket_size='auto'}", {"stage": 1}),
        ("{stage=0}", {"stage": 0}),
        ("{offload_optimizer='auto', offload_param='auto', compute_grad_norm='auto'}", {"stage": 1}),
    ],
)
def test_the_zero_stage_is_1_where_it_is_left_out(zero: str, expected: dict[str, object]) -> None:
    assert table_of(f"{{zero_optimization={zero}}}")["zero_optimization"] == expected
    text = f"learner.deepspeed={{zero_optimization={zero}}}"
    assert trainer_table(load_config([], [text]))["zero_optimization"]["stage"] == expected["stage"]


def test_a_rate_is_ours_until_the_table_names_one() -> None:
    ours = [
        "{}",
        "{optimizer={type='Adam', params={betas=[0.9, 0.95]}}}",
        "{optimizer={params={lr='auto'}}, scheduler={}}",
    ]
    theirs = ["{optimizer={params={lr=1e-5}}}", "{optimizer={type='Muon', params={adam_lr=1e-5}}}"]
    theirs.append("{scheduler={type='WarmupLR', params={}}}")
    stage = Stage.model_validate({"name": "a", "differences": [1, 1], "steps": 1, "overrides": {"lr": 5e-4}})
    for text in ours:
        config = load_config([], [f"learner.deepspeed={text}"])
        assert config.learner.lr_is_ours and stage_config(config, stage).learner.lr == 5e-4
    for text in theirs:
        config = load_config([], [f"learner.deepspeed={text}"])
        assert not config.learner.lr_is_ours
        with pytest.raises(ConfigError, match="decides on the learning rate"):
            stage_config(config, stage)


@pytest.mark.parametrize(
    ("scheduler", "peak"),
    [
        ("{type='WarmupLR'}", ("warmup_max_lr", None)),
        ("{type='WarmupDecayLR', params={}}", ("warmup_max_lr", None)),
        ("{type='WarmupDecayLR', params={warmup_max_lr=2e-4}}", ("warmup_max_lr", 2e-4)),
        ("{type='OneCycle', params={cycle_min_lr=1e-8}}", ("cycle_max_lr", RATE)),
        ("{type='OneCycle', params={cycle_min_lr=1e-8, cycle_max_lr='auto'}}", ("cycle_max_lr", RATE)),
        ("{type='LRRangeTest'}", ("lr_range_test_min_lr", RATE)),
        ("{type='OneCycleLR'}", ("max_lr", RATE)),
    ],
)
def test_a_schedule_peaks_at_the_learners_rate(scheduler: str, peak: tuple[str, float | None]) -> None:
    key, value = peak
    table = table_of(f"{{scheduler={scheduler}, zero_optimization={{stage=0}}}}")  # torch's own know no ZeRO
    assert table["scheduler"]["params"][key] == value


@pytest.mark.slow
def test_schedules_are_those_of_deepspeed_and_torch() -> None:
    from deepspeed.runtime import lr_schedules

    for name, schedule in SCHEDULES.items():
        kind = getattr(lr_schedules, name, None) or getattr(torch.optim.lr_scheduler, name)
        parameters = list(inspect.signature(kind).parameters.values())[1:]
        needed = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
        assert needed <= {*schedule.required, schedule.length, schedule.peak}, name
        assert {*schedule.required} <= needed, name
        assert {schedule.peak, schedule.length} - {None} <= {parameter.name for parameter in parameters}, name
    scheduler = "{type='WarmupDecayLR', params={total_num_steps=40, warmup_num_steps=10}}"
    params = table_of(f"{{scheduler={scheduler}}}")["scheduler"]["params"]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=RATE)
    warmup = lr_schedules.WarmupDecayLR(optimizer, **params)
    rates = []
    for _ in range(41):
        optimizer.step()
        warmup.step()
        rates.append(warmup.get_last_lr()[0])
    assert max(rates) == pytest.approx(RATE) and rates[-1] == 0


def test_the_length_of_a_schedule_is_the_runs() -> None:
    settings = ["learner.num_epochs=2", "learner.num_minibatches=3", "learner.deepspeed.zero_optimization.stage=0"]
    for name, key in (
        ("WarmupDecayLR", "total_num_steps"),
        ("WarmupCosineLR", "total_num_steps"),
        ("CosineAnnealingLR", "T_max"),
    ):
        config = load_config([], [f"learner.deepspeed.scheduler.type={name}", *settings])
        filled_in = with_schedule_length(config, 7, is_bound=False)
        assert learner_table(filled_in, 1)["scheduler"]["params"][key] == 42
        assert "params" not in config.learner.deepspeed["scheduler"]
        with pytest.raises(
            ConfigError, match=rf"scheduler.params.{key}: {name} needs .* leave open; write it, at most 42"
        ):
            with_schedule_length(config, 7, is_bound=True)
        own = load_config([], [f"learner.deepspeed.scheduler={{type='{name}', params={{{key}=9}}}}", *settings])
        assert with_schedule_length(own, 7, is_bound=True) is own
    for text in ("{}", "{scheduler={type='WarmupLR'}}"):
        config = load_config([], [f"learner.deepspeed={text}"])
        assert with_schedule_length(config, 7, is_bound=True) is config


HUGGING_FACE = (
    "{train_batch_size='auto', train_micro_batch_size_per_gpu='auto', gradient_accumulation_steps='auto', "
    "gradient_clipping='auto', bf16={enabled='auto'}, fp16={enabled='auto', loss_scale=0}, "
    "zero_optimization={stage=2, reduce_bucket_size='auto', overlap_comm=true}, "
    "optimizer={type='AdamW', params={lr='auto', betas='auto', eps='auto', weight_decay='auto'}}, "
    "scheduler={type='WarmupDecayLR', params={total_num_steps='auto', warmup_max_lr='auto', warmup_num_steps=4}}}"
)


def test_auto_is_what_dig_rl_fills_in() -> None:
    table = table_of(HUGGING_FACE)
    assert "auto" not in str(table)
    assert table["optimizer"]["params"] == {"lr": RATE, "weight_decay": DECAY, "torch_adam": True}
    assert table["train_batch_size"] == 1 and table["gradient_clipping"] == 1.0 and table["bf16"] == {}
    assert table["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert table["scheduler"]["params"] == {"warmup_max_lr": None, "warmup_num_steps": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{scheduler={type='WarmupLR', params={warmup_min_lr='auto', warmup_num_steps='auto'}}, "
            "steps_per_print='auto'}",
            "none for deepspeed.scheduler.params.warmup_min_lr, deepspeed.scheduler.params.warmup_num_steps, "
            "deepspeed.steps_per_print: write a value",
        ),
        ("{optimizer={type='OneBitAdam'}}", r"optimizer.type: expected one of adam, .*found 'OneBitAdam'"),
        ("{optimizer={type='SGD'}}", "not tested SGD under ZeRO stage 1; set deepspeed.zero_allow_untested"),
        ("{optimizer={params={max_grad_norm=1}}}", "use learner.max_grad_norm"),
        ("{zero_optimisation={stage=2}}", "DeepSpeed has no such key; did you mean zero_optimization"),
        ("{optimiser={params={lr=1e-5}}}", "deepspeed.optimiser: .* did you mean optimizer"),
        (
            "{optimizer={type='AdamW', lr=1e-5}}",
            r"optimizer.lr: .* write deepspeed.optimizer.params.lr",
        ),
        ("{scheduler={type='WarmupLR', warmup_num_steps=3}}", "write deepspeed.scheduler.params.warmup_num_steps"),
        ("{optimizer='AdamW'}", r"deepspeed.optimizer: expected a table, found 'AdamW'"),
        ("{scheduler={params={warmup_num_steps=3}}}", r"scheduler.type: expected one of LRRangeTest.*found None"),
        ("{scheduler={type='cosine'}}", r"scheduler.type: expected one of .*WarmupCosineLR.*found 'cosine'"),
        ("{scheduler={type='OneCycle'}}", "scheduler.params.cycle_min_lr: OneCycle has no default"),
        ("{zero_optimization={stage=4}}", "stage: expected 0, 1, 2 or 3, found 4"),
        ("{zero_optimization={overlap_comm=true}}", "overlap_comm: works from stage 2 on, found stage 1"),
        (
            "{scheduler={type='CosineAnnealingLR'}}",
            "torch's CosineAnnealingLR refuses .* ZeRO stage 1; .*WarmupCosineLR",
        ),
        ("{zero_optimization={offload_optimizer='cpu'}}", "offload_optimizer: expected a table, found 'cpu'"),
        ("{zero_optimization={stage=3, offload_param=true}}", "offload_param: expected a table, found True"),
        ("{scheduler={type=['WarmupLR']}}", r"scheduler.type: expected one of LRRangeTest.*found \['WarmupLR'\]"),
        ("{optimizer={type=['Adam']}}", r"optimizer.type: expected one of adam.*found \['Adam'\]"),
        *(
            (f"{{zero_optimization={{stage={stage}, compute_grad_norm=false}}}}", "expected true, .* remove the key")
            for stage in (0, 1, 2, 3)
        ),
        ("{optimizer={type='Lion'}}", "computes Lion on GPUs alone, .*offload_optimizer.device"),
        ("{optimizer={type='Lamb'}, zero_optimization={stage=0}}", "computes Lamb on GPUs alone, found .*num_gpus = 0"),
        ("{optimizer={type='Muon'}, zero_optimization={stage=3}}", "reduce_scatter: Muon with stage 3 .*write false"),
        ("{gradient_accumulation_steps=4}", "gradient_accumulation_steps: .* remove the key"),
        ("{train_batch_size=64}", "train_batch_size: how many passes .* learner.num_minibatches"),
    ],
)
def test_what_deepspeed_would_refuse_late_or_drop_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([], [f"learner.deepspeed={text}"])


def test_the_warm_up_shares_memory_settings_and_keeps_its_own_optimiser_and_batch() -> None:
    zero = "zero_optimization={stage=3, overlap_comm=false}"
    text = f"{{{zero}, optimizer={{type='Adam'}}, fp16={{}}, bf16={{immediate_grad_update=true}}}}"
    config = load_config([], [f"learner.deepspeed={text}"])
    table = trainer_table(config)
    assert table["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    assert "optimizer" not in table and table["train_batch_size"] == "auto" and table["fp16"] == {}
    assert table["bf16"] == {"immediate_grad_update": True, "enabled": "auto"}
    assert config.learner.deepspeed["zero_optimization"] == {"stage": 3, "overlap_comm": False}


def test_names_are_found_as_deepspeed_finds_them() -> None:
    assert find_optimizer("ADAMW") is find_optimizer("Adam") is not None
    assert find_optimizer("sgd") is None and find_optimizer("LBFGS") is None
