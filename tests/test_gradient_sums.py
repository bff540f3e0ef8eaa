"""Every way in which DeepSpeed adds up bfloat16 gradients, against a float64 sum of the same passes.

`pytest -s` prints the table; `tests/test_learner.py` has two rows of it in the ordinary suite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dig_rl.algo.batch import TrainingGroup
from tests.float64_sums import BFLOAT16_LR, bfloat16_jobs, relative_errors
from tests.groups import varied_groups
from tests.learner_ranks import Outcome, run_jobs

pytestmark = [pytest.mark.slow, pytest.mark.long]

ON_REQUEST = "data_types={grad_accum_dtype='bf16'}"
OFFLOAD = "offload_optimizer={device='cpu'}"

FLOAT32 = {
    "ZeRO 1": "zero_optimization={stage=1}",
    "ZeRO 2": "zero_optimization={stage=2}",
    "ZeRO 3": "zero_optimization={stage=3}",
    "ZeRO 1, offload": f"zero_optimization={{stage=1, {OFFLOAD}}}",
    "ZeRO 2, offload": f"zero_optimization={{stage=2, {OFFLOAD}}}",
    "ZeRO 3, offload": f"zero_optimization={{stage=3, {OFFLOAD}}}",
    "ZeRO 2, overlap": "zero_optimization={stage=2, overlap_comm=true}",
    "ZeRO 2, not contiguous": "zero_optimization={stage=2, contiguous_gradients=false}",
    "ZeRO 3, small buckets": "zero_optimization={stage=3, reduce_bucket_size=1000}",
    "ZeRO 1, prescaled": "zero_optimization={stage=1}, prescale_gradients=true",
}
BFLOAT16 = {
    "ZeRO 0, bfloat16 sums": f"zero_optimization={{stage=0}}, {ON_REQUEST}",
    "ZeRO 1, bfloat16 sums": f"zero_optimization={{stage=1}}, {ON_REQUEST}",
    "ZeRO 2, bfloat16 sums": f"zero_optimization={{stage=2}}, {ON_REQUEST}",
    "ZeRO 3, bfloat16 sums": f"zero_optimization={{stage=3}}, {ON_REQUEST}",
    "ZeRO 1, bfloat16 between ranks": "zero_optimization={stage=1}, communication_data_type='bf16'",
}


CLIP = 0.05


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def outcomes(
    request: pytest.FixtureRequest, random_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """46 passes, on two ranks 23 or more each; fewer where several updates are made."""
    folder = tmp_path_factory.mktemp("sums")
    groups = varied_groups(random_policy, folder)
    stages = {name: FLOAT32[name] for name in ("ZeRO 1", "ZeRO 2", "ZeRO 3")}

    def jobs(title: str, groups: list[TrainingGroup], tables: dict[str, str], *settings: str, **more: Any) -> dict:
        made = bfloat16_jobs(random_policy, groups, tables, *settings, num_ranks=request.param, **more)
        return {f"{title}{name}": job for name, job in made.items()}

    everything = jobs("", groups * 2, FLOAT32 | BFLOAT16)
    everything |= jobs("updates, ", groups, stages, "learner.num_minibatches=2", "learner.num_epochs=2", lr=0.0)
    everything |= jobs("clipped, ", groups, stages, f"learner.max_grad_norm={CLIP}")
    everything |= jobs("adapters, ", groups, stages, "learner.lora={rank=4, alpha=8}")
    return run_jobs(everything, request.param, folder / "jobs")


def test_sums_are_exact_by_default_and_off_by_a_percent_at_most_on_request(outcomes: dict[str, Outcome]) -> None:
    print(f"\n{'':32}{'optimiser':32}{'norm':>10}{'update':>10}{'1 - cos':>10}")
    rows = {}
    for name in FLOAT32 | BFLOAT16:
        rows[name] = relative_errors(outcomes[name], outcomes["float64 sums"], lr=BFLOAT16_LR)
        print(f"{name:32}{outcomes[name].optimizer:32}" + "".join(f"{error:10.1e}" for error in rows[name]))
    for name, errors in rows.items():
        if name in FLOAT32:
            assert max(errors) < 1e-5, name
        else:
            assert 1e-4 < max(errors) < 2e-2, name


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_sums_begin_anew_at_every_update(outcomes: dict[str, Outcome], zero: int) -> None:
    found, truth = (outcomes[f"updates, {name}"].statistics[0] for name in (f"ZeRO {zero}", "float64 sums"))
    assert found["learner/updates"] == 4
    assert found["learner/grad_norm"] == pytest.approx(truth["learner/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_sums_are_clipped_as_they_are(outcomes: dict[str, Outcome], zero: int) -> None:
    found, truth = (outcomes[f"clipped, {name}"] for name in (f"ZeRO {zero}", "float64 sums"))
    norm = truth.statistics[0]["learner/grad_norm"]
    assert norm > 2 * CLIP
    assert max(relative_errors(found, truth, lr=BFLOAT16_LR * CLIP / norm)) < 1e-5


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_the_gradients_of_adapters_are_added_up_alike(outcomes: dict[str, Outcome], zero: int) -> None:
    found, truth = (outcomes[f"adapters, {name}"] for name in (f"ZeRO {zero}", "float64 sums"))
    norms = [outcome.statistics[0]["learner/grad_norm"] for outcome in (found, truth)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    # The second factors begin at 0; the first have no gradient yet.
    names = [name for name in truth.gradients if "lora_B" in name]
    moved = torch.cat([found.float32_weights[name].flatten().double() / -BFLOAT16_LR for name in names])
    exact = torch.cat([truth.gradients[name].flatten() for name in names])
    assert float((moved - exact).norm() / exact.norm()) < 1e-5
