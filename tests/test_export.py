"""Checkpoints of the real DeepSpeed engine: what they bring back, and the policy that is taken out of them offline."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dig_rl.actors.cluster import Actor, Cluster
from dig_rl.actors.fleet import LearnerRanks, _spawn_ranks
from dig_rl.actors.learner_files import check_parts
from dig_rl.algo.batch import TrainingGroup
from dig_rl.checkpoint import CheckpointStore
from dig_rl.config import ClusterConfig, Config, load_config
from dig_rl.errors import CheckpointError, ConfigError, PolicyError
from dig_rl.policy.load import load_frontend
from launch.checkpoints import find_policy, step_folder
from launch.export import export
from tests.groups import make_group, make_pair
from tests.tiny import ROOT

pytestmark = pytest.mark.slow

DIVISIONS = {
    "ZeRO 0": (1, 0, "float32", ""),
    "ZeRO 1 in bfloat16": (1, 1, "bfloat16", ""),
    "adapters, ZeRO 1": (1, 1, "float32", "{rank=4, alpha=8}"),
    "ZeRO 2 on 2 ranks": (2, 2, "float32", ""),
    "ZeRO 3 on 2 ranks": (2, 3, "bfloat16", ""),
}
"""Ranks, ZeRO stage, compute type, table of adapters."""


@dataclass(frozen=True)
class Saved:
    """A run folder with one checkpoint, and what the learner that wrote it had to say."""

    config: Config
    checkpoint: Path
    exported: Path
    """By the learner itself."""
    drawn: list[list[float]]
    """Random numbers drawn by each rank after saving."""
    drawn_again: list[list[float]]
    """After loading."""
    steps: list[dict[str, float]]
    """Statistics of two steps after saving, clocks left out."""
    steps_again: list[dict[str, float]]
    """After loading."""
    refusal: str
    """Of the checkpoint of two ranks, on one."""


def config_of(policy: Path, num_ranks: int, stage: int, dtype: str, lora: str) -> Config:
    settings = [f'policy.path="{policy}"', f"learner.num_ranks={num_ranks}", "learner.num_threads=1", "learner.lr=1e-2"]
    schedule = (
        '{type="WarmupLR", params={warmup_num_steps=9, warmup_min_lr=1e-3, warmup_max_lr=1e-2, warmup_type="linear"}}'
    )
    table = f"learner.deepspeed={{zero_optimization={{stage={stage}}}, scheduler={schedule}}}"
    if lora:
        settings.append(f"learner.lora={lora}")
    return load_config([], [*settings, "learner.kl_coef=0", f'policy.dtype="{dtype}"', table])


def seed(_: Any, number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def draw(_: Any) -> list[float]:
    return [random.random(), random.gauss(), np.random.random(), np.random.normal(), float(torch.rand(()))]


@pytest.fixture(scope="module")
def groups(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    """Three groups, about as likely under the policy as under the sampler."""
    folder = tmp_path_factory.mktemp("pairs")
    frontend = load_frontend(load_config([], [f'policy.path="{random_policy}"']).policy, "union")
    lengths = [[5, 12, 1, 20], [30, 3], [8, 8, 8]]
    made = [make_group(frontend, make_pair(folder, (96, 64), seed), row, seed) for seed, row in enumerate(lengths)]
    return [
        replace(group, logprobs_rollout=tuple((-6.0,) * len(row) for row in group.completion_token_ids))
        for group in made
    ]


def end(cluster: Cluster, ranks: list[Actor]) -> None:
    """Make room for the next ones."""
    import ray

    for rank in ranks:
        ray.kill(rank.handle)
        cluster._actors.remove(rank)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(ClusterConfig(), tmp_path_factory.mktemp("logs"), num_actors=2) as started:
        yield started


@pytest.fixture(scope="module")
def saved(
    cluster: Cluster,
    random_policy: Path,
    groups: list[TrainingGroup],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Saved]:
    found: dict[str, Saved] = {}
    ranks: list[Actor] = []
    for name in reversed(DIVISIONS):  # the checkpoint of two ranks is there before it is to be refused
        config = config_of(random_policy, *DIVISIONS[name])
        if len(ranks) == config.learner.num_ranks:  # processes that are there take seconds less than new ones
            cluster.gather([rank.run(begin_anew, config) for rank in ranks])
        else:
            end(cluster, ranks)
            ranks = start(cluster, config)
        others = [entry.checkpoint for entry in found.values() if entry.config.learner.num_ranks == 2]
        found[name] = save_one(cluster, ranks, config, groups, tmp_path_factory.mktemp("run"), others)
    end(cluster, ranks)
    return found


def begin_anew(learner: Any, config: Config) -> None:
    learner.__init__(config, learner._rank, learner._world_size)
    learner.join(("127.0.0.1", 0))  # the processes have met before


def save_one(
    cluster: Cluster,
    ranks: list[Actor],
    config: Config,
    batch: list[TrainingGroup],
    run: Path,
    of_two_ranks: list[Path],
) -> Saved:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(config.model_dump_json())
    learner = LearnerRanks(cluster, ranks, config)
    learner.step(batch)

    def write(folder: Path) -> None:
        (folder / "learner").mkdir()
        learner.save(folder / "learner")

    cluster.gather([rank.run(seed, number) for number, rank in enumerate(ranks)])
    checkpoint = CheckpointStore(run / "checkpoints", 1).save(1, write, {}, score=0.5)
    learner.export(run / "policy")
    drawn = cluster.gather([rank.run(draw) for rank in ranks])
    steps = two_steps(learner, batch)
    learner.load(checkpoint / "learner")
    drawn_again = cluster.gather([rank.run(draw) for rank in ranks])
    steps_again = two_steps(learner, batch)
    refusal = ""
    if len(ranks) == 1 and config.learner.deepspeed["zero_optimization"]["stage"]:
        with pytest.raises(CheckpointError) as caught:
            learner.load(of_two_ranks[0] / "learner")
        refusal = str(caught.value)
    return Saved(config, checkpoint, run / "policy", drawn, drawn_again, steps, steps_again, refusal)


def two_steps(learner: LearnerRanks, batch: list[TrainingGroup]) -> list[dict[str, float]]:
    both = [learner.step(batch) for _ in range(2)]
    return [{name: value for name, value in step.items() if not name.startswith("timing/")} for step in both]


def start(cluster: Cluster, config: Config) -> list[Actor]:
    ranks, joining = _spawn_ranks(cluster, config, ROOT)
    cluster.wait_until_ready(joining)
    return ranks


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("division", DIVISIONS)
def test_offline_export_equals_the_learners_own_bit_for_bit(
    saved: dict[str, Saved], division: str, tmp_path: Path
) -> None:
    one = saved[division]
    export(one.checkpoint, one.config, tmp_path / "deep" / "out")
    assert files_of(tmp_path / "deep" / "out") == files_of(one.exported)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    weights = load_file(one.exported / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {f"torch.{one.config.policy.dtype}"}
    before = load_file(Path(one.config.policy.path) / "model.safetensors")
    assert weights.keys() == before.keys()
    moved = [name for name in weights if not torch.equal(weights[name], before[name].to(weights[name].dtype))]
    lora = one.config.learner.lora
    if lora is None:
        assert len(moved) > len(weights) / 2
    else:
        targets = tuple(f"{target}.weight" for target in lora.targets)
        assert set(moved) == {name for name in weights if name.endswith(targets)}


@pytest.mark.parametrize("division", DIVISIONS)
def test_every_rank_gets_its_own_random_generators_back(saved: dict[str, Saved], division: str) -> None:
    one = saved[division]
    assert one.drawn_again == one.drawn
    if len(one.drawn) == 2:
        assert all(first != second for first, second in zip(*one.drawn, strict=True))


@pytest.mark.parametrize("division", DIVISIONS)
def test_optimiser_and_learning_rate_schedule_go_on_where_they_were(saved: dict[str, Saved], division: str) -> None:
    one = saved[division]
    assert repr(one.steps_again) == repr(one.steps)  # ZeRO 0 reports a gradient norm of NaN
    first, second = one.steps
    assert first["learner/lr"] < second["learner/lr"] and first["learner/loss"] != second["learner/loss"]


def test_another_number_of_ranks_is_refused_with_what_to_do(saved: dict[str, Saved]) -> None:
    refusal = saved["ZeRO 1 in bfloat16"].refusal
    assert "was written by 2 ranks, this run has 1; set learner.num_ranks = 2, or start a new RUN" in refusal


@pytest.mark.long
def test_without_zero_a_checkpoint_of_one_rank_continues_on_two(
    saved: dict[str, Saved], cluster: Cluster, random_policy: Path, tmp_path: Path
) -> None:
    one = saved["ZeRO 0"]
    config = config_of(random_policy, 2, 0, "float32")
    ranks = start(cluster, config)
    learner = LearnerRanks(cluster, ranks, config)
    learner.load(one.checkpoint / "learner")
    learner.export(tmp_path / "policy")
    assert files_of(tmp_path / "policy") == files_of(one.exported)
    assert cluster.gather([rank.run(draw) for rank in ranks]) == one.drawn * 2
    end(cluster, ranks)


@pytest.mark.long
def test_adapters_of_every_part_over_two_ranks_leave_a_checkpoint_as_they_leave_the_learner(
    cluster: Cluster, random_policy: Path, groups: list[TrainingGroup], tmp_path: Path
) -> None:
    targets = ["q_proj", "down_proj", "qkv", "merger.linear_fc1"]
    for number, dtype in enumerate(("float32", "bfloat16")):
        config = config_of(random_policy, 2, 3, dtype, f"{{rank=4, alpha=8, targets={targets}}}".replace("'", '"'))
        ranks = start(cluster, config)
        one = save_one(cluster, ranks, config, groups, tmp_path / str(number), [])
        end(cluster, ranks)
        export(one.checkpoint, one.config, tmp_path / f"out-{number}")
        assert files_of(tmp_path / f"out-{number}") == files_of(one.exported)
        weights = load_file(one.exported / "model.safetensors")
        before = load_file(random_policy / "model.safetensors")
        moved = {name for name in weights if not torch.equal(weights[name], before[name].to(weights[name].dtype))}
        ends = tuple(f".{target}.weight" for target in targets)
        assert moved == {name for name in weights if name.endswith(ends)}


def test_a_checkpoint_is_named_by_step_or_as_the_best_and_exported_once(saved: dict[str, Saved]) -> None:
    one = saved["ZeRO 0"]
    best = one.checkpoint.with_name("best")
    assert step_folder(best) == one.checkpoint
    found = find_policy(str(best))
    assert (Path(found.path), found.description) == (one.checkpoint / "policy", f"step-1 of run {best.parents[1].name}")
    assert found.run_config == one.checkpoint.parents[1] / "config.json"
    assert files_of(one.checkpoint / "policy") == files_of(one.exported)
    written = (one.checkpoint / "policy" / "config.json").stat().st_mtime_ns
    assert find_policy(str(one.checkpoint)) == found
    assert (one.checkpoint / "policy" / "config.json").stat().st_mtime_ns == written


def test_what_is_wrong_is_named_and_nothing_is_left_behind(saved: dict[str, Saved], tmp_path: Path) -> None:
    one, out = saved["ZeRO 2 on 2 ranks"], tmp_path / "out"
    shutil.copytree(one.checkpoint.parents[1], tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step-1"
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists already; name another OUT="):
        export(checkpoint, one.config, tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-2: .*there are: step-1"):
        step_folder(checkpoint.with_name("step-2"))
    with pytest.raises(PolicyError, match="no policy at nowhere"):
        export(checkpoint, load_config([tmp_path / "run/config.json"], ['policy.path="nowhere"']), out)
    file = next((checkpoint / "learner/learner").glob("*_optim_states.pt"))
    contents = file.read_bytes()
    for damaged, clause in ((contents[:-1], "bytes, recorded were"), (contents[:-1] + b"?", "sha256 differs")):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"step-1 is damaged: .*{file.name}.*{clause}"):
            export(checkpoint, one.config, out)
    with pytest.raises(CheckpointError, match=r"step-1 is damaged: .*sha256 differs"):
        find_policy(str(checkpoint))  # in a process of its own
    file.unlink()
    (checkpoint / "manifest.json").unlink()
    CheckpointStore(checkpoint.parent, 1).save(2, lambda new: shutil.copytree(checkpoint, new, dirs_exist_ok=True), {})
    with pytest.raises(CheckpointError, match=r"learner cannot be put together: ValueError: Expected 2 of"):
        export(checkpoint.with_name("step-2"), one.config, out)
    (checkpoint.parent / "best.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"checkpoints has no best\.json: .*evaluation\.every_steps"):
        find_policy(str(checkpoint.with_name("best")))
    assert not out.exists() and not (checkpoint / "policy").exists()


def test_a_checkpoint_without_zeros_parts_is_none_of_a_run_with_zero(saved: dict[str, Saved]) -> None:
    without, parts = (saved[name].checkpoint / "learner" for name in ("ZeRO 0", "ZeRO 2 on 2 ranks"))
    with pytest.raises(CheckpointError, match=r"was written without ZeRO, this run has a stage .* make export writes"):
        check_parts(without, uses_zero=True)
    check_parts(without, uses_zero=False)
    check_parts(parts, uses_zero=True)
