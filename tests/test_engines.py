"""vLLM and DeepSpeed agree: same tokens, same images, same numbers, before and after weight syncs."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import Fleet, LearnerRanks, launch_fleet, num_actors
from dig_rl.algo.batch import TrainingGroup
from dig_rl.config import Config, PolicyConfig
from dig_rl.data import load_examples
from dig_rl.errors import ClusterError, NotFiniteError, PolicyError
from dig_rl.first_step import FirstStep
from dig_rl.looks import with_look
from dig_rl.rollout import group_seeds
from dig_rl.types import Example, Look, Question, SampledGroup
from tests.hosted import own_pid, set_weight
from tests.tiny import ROOT, TinyWorld

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def seeing_policy(tiny_world: TinyWorld, tmp_path_factory: Any) -> Path:
    """The tiny policy with its image features turned up: after seconds of training it hardly looks at them.

    Like Qwen's, its generation_config.json lists two end tokens.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path_factory.mktemp("seeing") / "policy"
    model = AutoModelForImageTextToText.from_pretrained(tiny_world.policy)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "merger" in name and name.endswith("linear_fc2.weight"):
                weight *= 30
    processor = AutoProcessor.from_pretrained(tiny_world.policy)
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[1.0, 0.7], ids=["temperature 1", "temperature 0.7"])
def fleet(
    request: pytest.FixtureRequest, tiny_world: TinyWorld, seeing_policy: Path, tmp_path_factory: Any
) -> Iterator[Fleet]:
    world = replace(tiny_world, policy=seeing_policy)
    config = world.config(f"rollout.temperature={request.param}", "learner.lr=1e-3")
    with Cluster(config.cluster, tmp_path_factory.mktemp("logs"), num_actors(config)) as cluster:
        yield launch_fleet(cluster, config, ROOT)


@pytest.fixture(scope="module")
def examples(tiny_world: TinyWorld) -> list[Example]:
    return load_examples(tiny_world.data, "train")[:3]


def sample(fleet: Fleet, examples: Sequence[Example], step: int = 0) -> list[SampledGroup]:
    seeds = group_seeds(0, step, examples)
    return fleet.cluster.gather([fleet.workers[0].call("sample_groups", list(examples), seeds)])[0]


def as_training_group(group: SampledGroup, example: Example | None = None) -> TrainingGroup:
    num = len(group.completions)
    return TrainingGroup(
        example or group.example,
        group.prompt_token_ids,
        tuple(completion.token_ids for completion in group.completions),
        tuple(completion.logprobs_rollout for completion in group.completions),
        tuple(np.linspace(-1, 1, num).tolist()),
    )


def largest_difference(fleet: Fleet, groups: Sequence[SampledGroup], seen: Sequence[Example] | None = None) -> float:
    """Between rollout and learner log-probability of one token; `seen`: what the learner looks at instead."""
    seen = seen or [group.example for group in groups]
    calls = [
        fleet.ranks[0].call("logprobs", as_training_group(group, example))
        for group, example in zip(groups, seen, strict=True)
    ]
    differences = []
    for group, rows in zip(groups, fleet.cluster.gather(calls), strict=True):
        for completion, row in zip(group.completions, rows, strict=True):
            differences += np.abs(np.subtract(completion.logprobs_rollout, row)).tolist()
    return max(differences)


def update(fleet: Fleet, groups: Sequence[SampledGroup]) -> dict[str, float]:
    return fleet.learner.step([as_training_group(group) for group in groups])


def test_logprobs_agree_before_and_after_two_weight_syncs(fleet: Fleet, examples: list[Example]) -> None:
    for version in range(3):
        groups = sample(fleet, examples, step=version)
        assert largest_difference(fleet, groups) < TOLERANCE
        stats = update(fleet, groups)
        assert stats["rollout/mismatch_kl"] < 1e-6
        # On policy the ratio is 1: nothing of this batch has been learned yet when it is computed.
        assert stats["learner/ratio_max"] == 1.0
        # With a fresh sync sampler and learner give every token the same probability.
        assert stats["rollout/importance_max"] == pytest.approx(1.0, abs=1e-4)
        assert stats["rollout/sequence_importance_min"] == pytest.approx(1.0, abs=1e-4)
        if version == 0:
            assert abs(stats["learner/kl"]) < 1e-6
        # The update moved the policy, so agreement after the sync is not agreement with the old weights.
        assert largest_difference(fleet, groups) > 1e-3
        fleet.sync_weights(version + 1)
    assert sample(fleet, examples)[0].policy_version == 3


def test_images_matter_and_both_sides_agree_on_how(fleet: Fleet, examples: list[Example], tmp_path: Path) -> None:
    example = examples[0]
    blank_path = tmp_path / "blank.png"
    Image.new("RGB", example.image_size_px, (128, 128, 128)).save(blank_path)
    blanked = replace(example, image_b_path=str(blank_path))
    swapped = replace(blanked, image_a_path=blanked.image_b_path, image_b_path=blanked.image_a_path)
    for before, after in [(example, blanked), (blanked, swapped)]:
        groups = sample(fleet, [before])
        assert largest_difference(fleet, groups) < TOLERANCE
        assert largest_difference(fleet, groups, [after]) > 1e-2
        assert largest_difference(fleet, sample(fleet, [after])) < TOLERANCE


def _first_step(fleet: Fleet, examples: Sequence[Example]) -> list[SampledGroup]:
    with FirstStep(fleet).same_pictures():
        return sample(fleet, examples, step=50)


def _set_largest_area(learner: Any, area_px: int) -> int:
    """Another resize rule for the learner alone; gives the one before."""
    processor = learner._frontend.processor.image_processor
    before = processor.size
    processor.size = {"shortest_edge": before["shortest_edge"], "longest_edge": area_px}
    return int(before["longest_edge"])


def test_the_first_step_compares_what_reaches_the_policy(
    fleet: Fleet, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every look, and from vLLM's caches as well; what is sampled and what the caches hold stay the same."""
    looks = [Look(), Look(swap=True, mirror=True), Look(channels=(2, 0, 1))]
    shown = [with_look(example, look) for example, look in zip(examples, looks, strict=True)]
    fleet.rollouts.reset_caches()
    plain = sample(fleet, shown, step=50)
    fleet.rollouts.reset_caches()
    watched, from_caches = _first_step(fleet, shown), _first_step(fleet, shown)
    assert watched == plain
    assert all(group.num_cached_tokens for group in from_caches)
    assert sample(fleet, shown, step=50) == from_caches

    turned = replace(examples[0], image_b_path=str(tmp_path / "turned.png"))
    picture = Image.open(examples[0].image_b_path)
    picture.save(turned.image_b_path)

    def turn(_: Any, examples: Sequence[Example], dtypes: Sequence[str]) -> Any:
        picture.transpose(Image.Transpose.ROTATE_180).save(turned.image_b_path)
        return original(fleet.learner, examples, dtypes)

    original = LearnerRanks.policy_inputs
    with monkeypatch.context() as patch:
        patch.setattr(LearnerRanks, "policy_inputs", turn)
        with pytest.raises(PolicyError, match=f"pair {turned.pair_id}: .*different pictures.*1 of the 2 pairs"):
            _first_step(fleet, [examples[1], turned])
    before = fleet.cluster.gather([fleet.ranks[0].run(_set_largest_area, 32 * 32)])[0]
    try:
        with pytest.raises(PolicyError, match=r"different pictures.*3 of the 3 pairs"):
            _first_step(fleet, shown)
    finally:
        fleet.cluster.gather([fleet.ranks[0].run(_set_largest_area, before)])


def _reload_without_reset(worker: Any, references: list[Any]) -> None:
    named = (item for reference in references for item in ray.get(reference).items())
    worker._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named})


def _store_weights(learner: Any) -> list[Any]:
    return [ray.put(bucket) for bucket in learner.weight_buckets()]


def test_features_of_old_weights_are_never_served(fleet: Fleet, examples: list[Example]) -> None:
    groups = sample(fleet, examples, step=20)  # every cache now holds features of these images
    update(fleet, groups)
    fleet.sync_weights(21)
    renewed = sample(fleet, examples, step=20)
    assert largest_difference(fleet, renewed) < TOLERANCE

    # The same without dropping caches goes wrong, or this test would prove nothing.
    update(fleet, renewed)
    references = fleet.cluster.gather([fleet.ranks[0].run(_store_weights)])[0]
    fleet.cluster.gather([fleet.workers[0].run(_reload_without_reset, references)])
    try:
        stale = largest_difference(fleet, sample(fleet, examples, step=20))
    finally:
        fleet.cluster.gather([fleet.workers[0].call("reset_caches")])
    assert stale > TOLERANCE
    fleet.sync_weights(22)
    assert largest_difference(fleet, sample(fleet, examples, step=20)) < TOLERANCE


def _reload_changed(worker: Any, references: list[Any], names: Sequence[str], repack: bool) -> None:
    """Take over weights of which some differ in their last value, with or without what follows a reload."""
    weights = {name: weight for reference in references for name, weight in ray.get(reference).items()}
    for name in names:
        weights[name] = weights[name].clone()
        weights[name].view(-1)[-1] += 1e-5
    if repack:
        worker.load_weights([weights], 99)
    else:
        worker._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})


TEXT, SEEN = "model.language_model.", "model.visual."
EMBEDDING = f"{TEXT}embed_tokens.weight"
OF_EVERY_KIND = {
    f"{TEXT}layers.1.self_attn.k_proj.weight",  # fused with others, and packed on CPUs
    f"{TEXT}layers.0.mlp.up_proj.weight",
    f"{TEXT}layers.0.self_attn.q_norm.weight",
    f"{SEEN}patch_embed.proj.weight",
    f"{SEEN}pos_embed.weight",
    f"{SEEN}blocks.1.attn.qkv.bias",
    f"{SEEN}deepstack_merger_list.0.linear_fc1.weight",
}


def test_a_weight_that_an_engine_holds_otherwise_ends_the_run_with_its_name(fleet: Fleet) -> None:
    fleet.sync_weights(30)
    fleet.check_weights()
    references, expected = fleet.cluster.gather(
        [fleet.ranks[0].run(_store_weights), fleet.ranks[0].call("weight_records")]
    )
    worker = fleet.workers[0]

    def differing(*names: str, repack: bool) -> set[str]:
        fleet.cluster.gather([worker.run(_reload_changed, references, names, repack)])
        records = fleet.cluster.gather([worker.call("held_weights", list(expected))])[0].records
        assert records.keys() == expected.keys()
        return {name for name, record in records.items() if record != expected[name]}

    assert differing(*OF_EVERY_KIND, repack=True) == OF_EVERY_KIND
    assert differing(EMBEDDING, repack=False) == {EMBEDDING}  # the head still multiplies with its old copy
    assert differing(EMBEDDING, repack=True) == {EMBEDDING, "lm_head.weight"}
    clause = rf"of 64 weights, 2 with other values: lm_head\.weight, {re.escape(EMBEDDING)}\. The run stops"
    with pytest.raises(PolicyError, match=rf"rollout_worker-0 samples with other weights than .*: {clause}"):
        fleet.check_weights()
    fewer = fleet.cluster.gather([worker.call("held_weights", [name for name in expected if name != EMBEDDING])])[0]
    assert "language_model.model.embed_tokens.weight" not in fewer.records  # the head stands for it, too
    fewer = fleet.cluster.gather([worker.call("held_weights", [f"{TEXT}norm.weight", "model.more.weight"])])[0]
    assert "model.more.weight" not in fewer.records  # so it counts as missing
    assert "visual.patch_embed.proj.bias" in fewer.records  # the learner sent nothing for it
    fleet.sync_weights(31)
    fleet.check_weights()


def test_the_second_sample_of_a_pair_hits_the_prefix_cache(fleet: Fleet, examples: list[Example]) -> None:
    fleet.cluster.gather([fleet.workers[0].call("reset_caches")])
    group = sample(fleet, examples[:1])[0]
    # Whole blocks of 32 tokens that precede the last prompt token can come from the cache.
    assert group.num_cached_tokens == (len(group.prompt_token_ids) - 1) // 32 * 32 > 0


def test_seeds_make_samples_repeatable_and_different(fleet: Fleet, examples: list[Example]) -> None:
    first, again, later = sample(fleet, examples, 5), sample(fleet, examples[::-1], 5)[::-1], sample(fleet, examples, 6)
    for group, same in zip(first, again, strict=True):  # also when the batch is in another order
        assert group.completions == same.completions
    seeds = [completion.seed for group in [*first, *later] for completion in group.completions]
    assert len(set(seeds)) == len(seeds)
    assert [group.completions for group in first] != [group.completions for group in later]


def test_vision_tokens_are_never_sampled(fleet: Fleet, examples: list[Example], tiny_world: TinyWorld) -> None:
    from dig_rl.policy.load import load_frontend

    config: Config = tiny_world.config()
    banned = set(load_frontend(config.policy, config.data.box_target).banned_token_ids)
    sampled = {
        token
        for step in range(30, 40)
        for group in sample(fleet, examples, step)
        for completion in group.completions
        for token in completion.token_ids
    }
    assert len(banned) > 5
    assert not sampled & banned


def _answer_with_likelier(worker: Any, examples: list[Example], token: int) -> list[SampledGroup]:
    from vllm import SamplingParams

    options = worker._common_params(40)
    options["logit_bias"] = options["logit_bias"] | {token: 11.0}
    return worker._generate(examples, [SamplingParams(n=4, seed=1, **options) for _ in examples])


def test_the_second_end_token_ends_an_answer_on_both_sides(
    fleet: Fleet, examples: list[Example], seeing_policy: Path
) -> None:
    from dig_rl.policy.load import load_frontend

    frontend = load_frontend(PolicyConfig(path=str(seeing_policy)), "union")
    tokenizer = frontend.processor.tokenizer
    assert frontend.end_token_ids == (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    for end in frontend.end_token_ids:
        groups = fleet.cluster.gather([fleet.workers[0].run(_answer_with_likelier, examples, end)])[0]
        completions = [completion for group in groups for completion in group.completions]
        assert end in {completion.token_ids[-1] for completion in completions}
        for completion in completions:
            assert completion.finish_reason == "stop"
            assert not {*completion.token_ids[:-1]} & {*frontend.end_token_ids}
            assert completion.text == tokenizer.decode(completion.token_ids[:-1], skip_special_tokens=True)
        # The learner scores the end like any other token.
        scored = fleet.cluster.gather([fleet.ranks[0].call("logprobs", as_training_group(group)) for group in groups])
        assert [len(row) for rows in scored for row in rows] == [len(one.token_ids) for one in completions]


def test_questions_about_one_picture_are_answered_in_order(fleet: Fleet, examples: list[Example]) -> None:
    questions = [Question("Locate it.", example.image_a_path, example.image_size_px) for example in examples]
    replies = fleet.rollouts.ask(questions)
    assert [reply.text for reply in fleet.rollouts.ask(questions[::-1])] == [reply.text for reply in replies[::-1]]
    assert all(0 < reply.num_tokens <= 40 and reply.finish_reason in ("stop", "length") for reply in replies)
    sizes = [group.model_image_size_px for group in sample(fleet, examples)]
    assert [reply.model_image_size_px for reply in replies] == sizes


def test_a_weight_that_is_not_a_number_is_met_at_once_and_never_saved(
    fleet: Fleet, examples: list[Example], tmp_path: Path
) -> None:
    update(fleet, sample(fleet, examples))
    (healthy,) = fleet.cluster.gather([fleet.ranks[0].run(set_weight, float("nan"))])
    fleet.sync_weights(40)
    with pytest.raises(NotFiniteError, match=r"token 0 is nan \(the sampler, answer 0 to pair "):
        fleet.rollouts.answer(examples)
    with pytest.raises(NotFiniteError, match=r"^Not finite: model\.language_model\.norm\.weight \(1 of 64 values\)$"):
        fleet.learner.save(tmp_path)
    assert fleet.learner.describe_weights().startswith("Not finite: model.language_model.norm.weight")
    # Finite, and too large to compute with: what an update at a rate of 1e6 leaves.
    fleet.cluster.gather([fleet.ranks[0].run(set_weight, 3e38)])
    with pytest.raises(NotFiniteError, match=r"is (nan|-?inf) \(the learner, pair .*, before a checkpoint\)"):
        fleet.learner.save(tmp_path)
    assert fleet.learner.describe_weights() == (
        "All weights are finite; the largest value is 3e+38, in model.language_model.norm.weight"
    )
    assert list(tmp_path.iterdir()) == []
    fleet.cluster.gather([fleet.ranks[0].run(set_weight, healthy)])
    fleet.sync_weights(41)
    assert sample(fleet, examples)[0].policy_version == 41
    fleet.learner.save(tmp_path)
    fleet.learner.load(tmp_path)


def test_a_killed_engine_is_named_with_its_own_last_words(
    fleet: Fleet, examples: list[Example], capfd: pytest.CaptureFixture[str]
) -> None:
    """The last test of this file: the fleet is of no use after it."""
    for actor, method in ((fleet.workers[0], "facts"), (fleet.ranks[0], "model_card")):
        (pid,) = fleet.cluster.gather([actor.run(own_pid)])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ClusterError) as caught:
            for _ in range(50):
                fleet.cluster.gather([actor.call(method)])
                time.sleep(0.1)
        message = str(caught.value)
        assert message.startswith(f"{actor.name} died: it was killed (SIGKILL, exit code 137)"), message
        assert "its last words: " in message and f"log: {actor.log_path}. Run the same command again" in message
    time.sleep(1)
    assert "raylet" not in "".join(capfd.readouterr())
