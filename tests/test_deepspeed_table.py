"""One table of DeepSpeed's options for learner and warm-up."""

from __future__ import annotations

from dig_rl.config import load_config
from dig_rl.deepspeed_table import learner_table, trainer_table


def test_defaults_are_filled_in_and_the_users_words_win() -> None:
    table = learner_table(load_config([], ["learner.lr=3e-4", "policy.dtype=bfloat16"]), world_size=2)
    assert table["optimizer"]["params"] == {"lr": 3e-4, "weight_decay": 0.01, "torch_adam": True}
    assert table["zero_optimization"] == {"stage": 1} and table["bf16"] == {"enabled": True}
    assert table["train_batch_size"] == 2
    own = load_config([], ["learner.deepspeed={zero_optimization={stage=3}, wall_clock_breakdown=true}"])
    table = learner_table(own, world_size=1)
    assert table["zero_optimization"] == {"stage": 3} and table["wall_clock_breakdown"] is True
    assert table["gradient_clipping"] == 1.0


def test_the_warm_up_shares_memory_settings_and_keeps_its_own_optimiser_and_batch() -> None:
    text = '{zero_optimization={stage=3, overlap_comm=false}, optimizer={type="SGD"}, train_batch_size=7, fp16={}}'
    config = load_config([], [f"learner.deepspeed={text}"])
    table = trainer_table(config)
    assert table["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    assert "optimizer" not in table and table["train_batch_size"] == "auto" and table["fp16"] == {}
    assert config.learner.deepspeed["zero_optimization"] == {"stage": 3, "overlap_comm": False}
