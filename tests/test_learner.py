"""One update is the same update however it is computed: packed or not, split, reordered, on one rank or two.

All jobs of one number of ranks run in the same processes (see `tests.learner_ranks`); each test looks at some of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import Config, LoraConfig, load_config
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.policy.targets import part_of
from tests.float64_sums import BFLOAT16_LR, bfloat16_jobs, relative_errors
from tests.groups import varied_groups
from tests.learner_ranks import Job, Outcome, run_jobs
from tests.plain_updates import PlainLoop, mean_kl

pytestmark = pytest.mark.slow

LR, EPS, WEIGHT_DECAY = 3e-3, 1e-3, 0.01
# Adam divides by the size of a gradient; where that is rounding alone, a large eps keeps it from being blown up.
ADAM = f'{{type="AdamW", params={{lr={LR}, weight_decay={WEIGHT_DECAY}, torch_adam=true, eps={EPS}}}}}'
STILL = ADAM.replace(f"lr={LR}", "lr=0.0")
SGD_LR = 1e4
# Steps so long that the weights drown in them: what a weight moved, divided by the rate, is its gradient.
SGD = f'{{type="SGD", params={{lr={SGD_LR}}}}}'

ONE_BY_ONE = ("learner.shared_prefix=false", "learner.micro_batch_tokens=1")
"""The plain path: every completion with its own prompt and images, alone in a pass, nothing padded."""

LAYOUTS = {
    "shared prefix, a group a pass": ("learner.micro_batch_tokens=1",),
    "shared prefix, groups packed and padded": ("learner.micro_batch_tokens=4096",),
    "shared prefix, groups cut": ("learner.micro_batch_tokens=70",),
    "repeated prefix, packed and padded": ("learner.shared_prefix=false", "learner.micro_batch_tokens=600"),
    "with gradient checkpointing": ("learner.micro_batch_tokens=4096", "learner.gradient_checkpointing=true"),
}

TWO_UPDATES = ("learner.num_epochs=2", "learner.num_minibatches=2", "learner.max_grad_norm=0.05")
LIMITED = ("learner.kl_coef=0", "learner.max_grad_norm=0.05")
BOTH_CLIPS = ("learner.kl_coef=0.1", "learner.clip_low=0.01", "learner.clip_high=0.01")
LORA = ("learner.lora={rank=4, alpha=8}", "learner.kl_coef=0.1")


def config_of(policy: Path, *more: str, zero: int = 1, optimizer: str = ADAM) -> Config:
    table = f"zero_optimization={{stage={zero}}}, optimizer={optimizer}, zero_allow_untested_optimizer=true"
    settings = [f'policy.path="{policy}"', "learner.num_threads=1", *more]
    if not any(one.startswith("learner.deepspeed=") for one in more):
        settings.append(f"learner.deepspeed={{{table}}}")
    if optimizer == SGD:
        settings.append("learner.max_grad_norm=1e9")
    return load_config([], settings)


@pytest.fixture(scope="module")
def groups(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    return varied_groups(random_policy, tmp_path_factory.mktemp("pairs"))


def spoilt(groups: Sequence[TrainingGroup]) -> list[TrainingGroup]:
    """One advantage of one group is NaN; with two ranks, one of them has that group."""
    return [replace(groups[0], advantages=(math.nan, *groups[0].advantages[1:])), *groups[1:]]


@pytest.fixture(scope="module")
def alone(
    random_policy: Path, groups: list[TrainingGroup], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """What one rank does."""

    def job(*settings: str, batches: Sequence[list[TrainingGroup]] = (groups,), optimizer: str = ADAM) -> Job:
        return Job(config_of(random_policy, *settings, optimizer=optimizer), list(batches))

    jobs = {"one by one": job(*ONE_BY_ONE, optimizer=SGD)}
    jobs |= {name: job(*settings, optimizer=SGD) for name, settings in LAYOUTS.items()}
    jobs["groups in another order"] = job("learner.micro_batch_tokens=600", batches=[groups[::-1]], optimizer=SGD)
    jobs["frozen"] = job('learner.freeze=["vision", "projector"]', optimizer=SGD)
    jobs["no KL"] = job("learner.kl_coef=0")
    jobs["two batches"] = job("learner.micro_batch_tokens=200", batches=[groups, groups[:1]])
    jobs["two updates"] = job(*TWO_UPDATES, *BOTH_CLIPS)
    jobs["two updates on policy"] = job(*TWO_UPDATES, *BOTH_CLIPS, optimizer=STILL)
    jobs["adapters"] = job(*LORA, batches=[groups, groups])
    jobs["two budgets"] = replace(job("learner.loss=dr_grpo", optimizer=STILL), batches=[groups[:2]] * 2)
    of_run = jobs["two budgets"].config
    jobs["two budgets"].stages[:] = [
        of_run.model_copy(update={"rollout": of_run.rollout.model_copy(update={"max_completion_tokens": budget})})
        for budget in (40, 20)
    ]
    partly = "{zero_optimization={overlap_comm=false}, optimizer={type='AdamW', params={betas=[0.9, 0.95]}}"
    ours = (f"learner.lr={LR}", "learner.weight_decay=0.5")
    jobs["partly named"] = Job(config_of(random_policy, *ours, f"learner.deepspeed={partly}}}"), [groups[:1]])
    schedule = "{type='WarmupDecayLR', params={total_num_steps=4, warmup_num_steps=2, warmup_type='linear'}}"
    table = f"learner.deepspeed={partly}, scheduler={schedule}}}"
    jobs["schedule"] = Job(config_of(random_policy, *ours, table), [groups[:1]] * 4)
    stages = {f"bfloat16, ZeRO {zero}": f"zero_optimization={{stage={zero}}}" for zero in (1, 2)}
    jobs |= bfloat16_jobs(random_policy, groups[2:3], stages)
    few = [groups[1], groups[3]]
    still = [replace(group, advantages=(0.0,) * len(group.advantages)) for group in few]
    jobs["ZeRO 0"] = Job(config_of(random_policy, *LIMITED, zero=0), [few])
    jobs["ZeRO 1"] = Job(config_of(random_policy, *LIMITED), [few, still, spoilt(few)])
    jobs["bfloat16"] = job(*LIMITED, 'policy.dtype="bfloat16"', batches=[still, spoilt(few)])
    return run_jobs(jobs, 1, tmp_path_factory.mktemp("alone") / "jobs")


@pytest.fixture(scope="module")
def together(
    random_policy: Path, groups: list[TrainingGroup], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """What two ranks do."""

    def job(*settings: str, batches: Sequence[list[TrainingGroup]] = (groups,), **options: Any) -> Job:
        return Job(config_of(random_policy, *settings, "learner.num_ranks=2", **options), list(batches))

    packed = "learner.micro_batch_tokens=200"
    jobs = {f"ZeRO {zero}": job(packed, zero=zero, optimizer=SGD) for zero in (0, 1, 2, 3)}
    # The second batch leaves a rank without any group.
    jobs["two batches"] = job(packed, batches=[groups, groups[:1]], zero=2)
    jobs["two updates"] = job(*TWO_UPDATES, *BOTH_CLIPS, zero=3)
    jobs["adapters"] = job(*LORA, batches=[groups, groups], zero=3)
    jobs |= {
        f"spoilt, ZeRO {zero}": job(packed, batches=[spoilt([groups[1], groups[3]])], zero=zero) for zero in (0, 3)
    }
    return run_jobs(jobs, 2, tmp_path_factory.mktemp("together") / "jobs")


def gradients(outcome: Outcome) -> dict[str, torch.Tensor]:
    """Of the first update, by parameter."""
    before, after = outcome.weights[:2]
    return {name: (before[name].double() - after[name].double()) / SGD_LR for name in before}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of each tensor's largest entry; what rounding leaves of a zero, of a thousandth of the largest of all."""
    assert found.keys() == expected.keys() and expected
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-4
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale, name


def assert_same_statistics(found: dict[str, float], expected: dict[str, float], *, rel: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.startswith("timing/"):
            assert found[name] == pytest.approx(value, rel=rel, abs=1e-6), name


@pytest.mark.parametrize("way", [*LAYOUTS, "groups in another order"])
def test_gradients_and_statistics_do_not_depend_on_the_layout(alone: dict[str, Outcome], way: str) -> None:
    assert_same_gradients(gradients(alone[way]), gradients(alone["one by one"]))
    assert_same_statistics(alone[way].statistics[0], alone["one by one"].statistics[0])


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_do_not_depend_on_the_number_of_ranks(
    alone: dict[str, Outcome], together: dict[str, Outcome], zero: int
) -> None:
    assert_same_gradients(gradients(together[f"ZeRO {zero}"]), gradients(alone["one by one"]))


def test_statistics_and_weights_do_not_depend_on_the_number_of_ranks(
    alone: dict[str, Outcome], together: dict[str, Outcome]
) -> None:
    expected, found = alone["two batches"], together["two batches"]
    for one, other in zip(found.statistics, expected.statistics, strict=True):
        assert_same_statistics(one, other)
    for one_rank, two_ranks in zip(expected.weights, found.weights, strict=True):
        for name, weight in one_rank.items():
            torch.testing.assert_close(two_ranks[name], weight, atol=1e-6, rtol=0)
    for before, after in pairwise(expected.weights):  # each update moved the weights by far more than that
        assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-4


def test_two_epochs_of_two_minibatches_equal_a_plain_pytorch_loop(
    alone: dict[str, Outcome], random_policy: Path, groups: list[TrainingGroup]
) -> None:
    statistics, weights = alone["two updates"].statistics[0], alone["two updates"].weights[1]
    loop = PlainLoop(config_of(random_policy, *TWO_UPDATES, *BOTH_CLIPS), lr=LR, eps=EPS, weight_decay=WEIGHT_DECAY)
    before = {name: weight.detach().clone() for name, weight in loop.scorer.model.named_parameters()}
    loop.run([groups[:2], groups[2:]], num_epochs=2)
    assert statistics["learner/updates"] == 4
    assert statistics["learner/grad_norm"] == pytest.approx(np.mean(loop.norms), rel=1e-4)
    # The old log-probabilities are those before the first update, so later updates have ratios beyond the clips.
    assert statistics["learner/ratio_max"] > 1.01
    assert statistics["learner/clip_high_frac"] > 0
    after = dict(loop.scorer.model.named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(weight, after[name].detach(), atol=1e-6, rtol=0)
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-3


def test_two_ranks_make_the_same_two_updates(alone: dict[str, Outcome], together: dict[str, Outcome]) -> None:
    expected, found = alone["two updates"], together["two updates"]
    assert_same_statistics(found.statistics[0], expected.statistics[0], rel=1e-4)
    for name, weight in expected.weights[1].items():
        torch.testing.assert_close(found.weights[1][name], weight, atol=1e-6, rtol=0)


def test_on_policy_every_ratio_is_one_and_the_kl_is_zero_however_often_a_batch_is_used(
    alone: dict[str, Outcome],
) -> None:
    # A learning rate of 0 keeps the policy where it was sampled, through all four updates.
    (statistics,) = alone["two updates on policy"].statistics
    assert statistics["learner/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert statistics["learner/clip_low_frac"] == statistics["learner/clip_high_frac"] == 0
    assert statistics["learner/kl"] == pytest.approx(0.0, abs=1e-6)


def test_without_a_kl_term_no_reference_is_loaded(alone: dict[str, Outcome]) -> None:
    assert alone["one by one"].has_reference and not alone["no KL"].has_reference
    assert "learner/kl" not in alone["no KL"].statistics[0]


def test_frozen_parts_have_no_gradient_and_stay(alone: dict[str, Outcome]) -> None:
    frozen, whole = alone["frozen"], alone["one by one"]
    for outcome, frozen_parts in ((whole, set()), (frozen, {"vision", "projector"})):
        before, after = outcome.weights
        for name, weight in before.items():
            assert torch.equal(after[name], weight) == (part_of(name) in frozen_parts), name
    of_text = [{n: g for n, g in gradients(outcome).items() if part_of(n) == "text"} for outcome in (frozen, whole)]
    assert_same_gradients(*of_text)


@pytest.mark.parametrize("zero", [1, 2])
def test_bfloat16_gradients_are_added_up_in_float32(alone: dict[str, Outcome], zero: int) -> None:
    """16 passes; DeepSpeed's own default, sums in bfloat16, is off by 4e-3, and stage 1 told of float32 alone by 7."""
    errors = relative_errors(alone[f"bfloat16, ZeRO {zero}"], alone["float64 sums"], lr=BFLOAT16_LR)
    assert max(errors) < 1e-5


def test_adapters_alone_are_trained_and_leave_merged(alone: dict[str, Outcome]) -> None:
    adapters = alone["adapters"]
    assert not adapters.has_reference  # it is the policy without its adapters
    before, _, after = adapters.weights
    assert before.keys() == alone["one by one"].weights[0].keys()
    targets = LoraConfig().targets
    for name, weight in before.items():
        is_target = name.removesuffix(".weight").endswith(targets) and part_of(name) == "text"
        assert torch.equal(after[name], weight) != is_target, name
    # Untouched at first, then away from the reference.
    first, second = adapters.statistics
    assert first["learner/kl"] == pytest.approx(0.0, abs=1e-6) and second["learner/kl"] > 1e-6


def test_merged_adapters_score_as_the_adapted_policy_does(
    alone: dict[str, Outcome], random_policy: Path, groups: list[TrainingGroup]
) -> None:
    """The second batch's first pass ran with adapters after one update; merged weights must score the same."""
    config = config_of(random_policy, *LORA)
    model = load_model(config.policy)
    model.load_state_dict(alone["adapters"].weights[1], strict=False)
    reference = PolicyScorer(load_model(config.policy), load_frontend(config.policy, "union"), config)
    merged = PolicyScorer(model, load_frontend(config.policy, "union"), config)
    expected = mean_kl(merged, reference, groups)
    assert alone["adapters"].statistics[1]["learner/kl"] == pytest.approx(expected, rel=1e-3)


def test_two_ranks_train_the_same_adapters(alone: dict[str, Outcome], together: dict[str, Outcome]) -> None:
    expected, found = alone["adapters"], together["adapters"]
    for name, weight in expected.weights[-1].items():
        torch.testing.assert_close(found.weights[-1][name], weight, atol=1e-6, rtol=0)


def test_the_token_budget_of_a_stage_reaches_the_loss(alone: dict[str, Outcome]) -> None:
    # dr_grpo divides by the budget; at a rate of 0 nothing else differs between the two batches.
    long, short = alone["two budgets"].statistics
    for name in ("learner/loss", "learner/grad_norm"):
        assert short[name] == pytest.approx(2 * long[name], rel=1e-4) and long[name] != 0, name


def test_what_a_deepspeed_table_leaves_out_is_the_learners(alone: dict[str, Outcome]) -> None:
    outcome = alone["partly named"]
    (statistics,) = outcome.statistics
    assert statistics["learner/lr"] == LR and np.isfinite(statistics["learner/grad_norm"])  # which ZeRO 1 reports
    # The first step of AdamW is the rate times the gradient's sign, and the decay times the weight, which is 1 here.
    before, after = outcome.weights
    norms = [name for name in before if part_of(name) == "text" and name.endswith("layernorm.weight")]
    steps = torch.cat([(before[name] - after[name]) / LR for name in norms])
    assert norms and bool(torch.cat([before[name] for name in norms]).eq(1).all())
    with_decay = torch.minimum((steps - 1.5).abs(), (steps + 0.5).abs())
    assert float(with_decay.median()) < 1e-2, "weight_decay of 0.5 is lost"


def test_a_schedule_without_a_peak_rises_to_the_learners_rate(alone: dict[str, Outcome]) -> None:
    rates = [statistics["learner/lr"] for statistics in alone["schedule"].statistics]
    assert max(rates) == pytest.approx(LR) and rates[-1] < LR, rates


def test_a_gradient_of_zero_is_reported_as_zero(alone: dict[str, Outcome]) -> None:
    # In a first update the gradient of the KL is 0, too; here there is no KL.
    for outcome, batch in ((alone["ZeRO 1"], 1), (alone["bfloat16"], 0)):
        assert outcome.statistics[batch]["learner/grad_norm"] == 0.0
        assert (outcome.statistics[batch]["learner/updates"], outcome.statistics[batch]["learner/skipped_updates"]) == (
            1,
            0,
        )


def test_without_zero_the_norm_is_that_of_zero_1_before_it_is_limited(alone: dict[str, Outcome]) -> None:
    norm = alone["ZeRO 1"].statistics[0]["learner/grad_norm"]
    assert norm > 0.1  # beyond the limit of 0.05
    assert alone["ZeRO 0"].statistics[0]["learner/grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("way", ["ZeRO 1", "bfloat16"])
def test_an_update_that_deepspeed_skips_is_counted_as_skipped_and_changes_nothing(
    alone: dict[str, Outcome], way: str
) -> None:
    outcome = alone[way]
    assert outcome.statistics[-1]["learner/skipped_updates"] == 1
    assert outcome.statistics[-1]["learner/updates"] == 0
    assert outcome.statistics[-1]["learner/grad_norm"] == math.inf
    assert math.isnan(outcome.statistics[-1]["learner/loss"])
    for name, weight in outcome.weights[-2].items():
        assert torch.equal(outcome.weights[-1][name], weight), name


@pytest.mark.parametrize("zero", [0, 3])
def test_a_nan_on_one_rank_of_two_shows_in_the_statistics_of_all(together: dict[str, Outcome], zero: int) -> None:
    (statistics,) = together[f"spoilt, ZeRO {zero}"].statistics
    assert math.isnan(statistics["learner/loss"])
    assert not math.isfinite(statistics["learner/grad_norm"])
    assert statistics["learner/updates"] + statistics["learner/skipped_updates"] == 1
