"""Recorded rollouts: they come back as they were, are paid again alike, and give the loss that plain PyTorch gives."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dig_rl.algo.batch import training_group
from dig_rl.algo.packing import pack
from dig_rl.config import Config, RewardConfig, RewardTermConfig, load_config
from dig_rl.errors import ConfigError, DataError
from dig_rl.looks import with_look
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.recording import Recording, cut_recordings, read_recording, recording_path, write_recording
from dig_rl.replay import loss_figures, score_again, score_changes
from dig_rl.types import Completion, Example, Look, RolloutGroup, SampledGroup, Score
from launch.replay import choose_weights
from tests.groups import make_pair
from tests.loss_reference import Batch, loss
from tests.plain_updates import PlainLoop

ROOT = Path(__file__).resolve().parent.parent
TARGET = (8.0, 8.0, 24.0, 24.0)
EXACT, HALF, WRONG, NONE = "[[250, 250, 750, 750]]", "[[250, 250, 750, 500]]", "[[0, 0, 100, 100]]", "no list"


def group_of(texts: list[str], example: Example, prompt: tuple[int, ...] = (1, 2)) -> RolloutGroup:
    """A group of answers that nobody has scored."""
    rng = np.random.default_rng(len(texts))
    completions = tuple(
        Completion(tuple(rng.integers(20, 60, 5).tolist()), tuple((-rng.random(5) - 0.1).tolist()), text, "stop", seed)
        for seed, text in enumerate(texts)
    )
    sampled = SampledGroup(example, prompt, completions, 0, (32, 32), 0)
    return RolloutGroup(sampled, (None,) * len(texts), "dual")


def recording_of(groups: list[RolloutGroup], config: Config) -> Recording:
    rollout = config.rollout
    return Recording(
        4, "dual", "norm1000", "Find it.", rollout.temperature, rollout.max_completion_tokens, tuple(groups)
    )


def scored(groups: list[RolloutGroup], config: Config) -> Recording:
    recording = recording_of(groups, config)
    return replace(recording, groups=tuple(score_again(recording, config, ROOT)))


def flat_pair() -> Example:
    return Example("pair-9", "a.png", "b.png", (32, 32), (TARGET,), ("color",), "train", (0.5,))


@pytest.fixture
def recording() -> Recording:
    return scored([group_of([EXACT, HALF, WRONG, NONE], flat_pair()), group_of([EXACT, WRONG], flat_pair())], Config())


def save(folder: Path, recording: Recording, step: int = 4, keep_last: int = 9) -> None:
    write_recording(folder, step, recording.groups, recording.frame, recording.prompt, Config(), keep_last)


def test_rollouts_come_back_as_they_were(tmp_path: Path, recording: Recording) -> None:
    masked = replace(recording.groups[0], scores=(None, *recording.groups[0].scores[1:]))
    odd = replace(
        masked.sampled.completions[1], logprobs_rollout=(-float("inf"), -1e-300, -0.1, -0.2, -0.3), text="é\n"
    )
    looked_at = with_look(masked.sampled.example, Look(swap=True, mirror=True, channels=(2, 0, 1)))
    completions = (odd, *masked.sampled.completions[1:])
    masked = replace(masked, sampled=replace(masked.sampled, example=looked_at, completions=completions))
    whole = replace(recording, groups=(masked, recording.groups[1]))
    save(tmp_path, whole)
    assert read_recording(tmp_path, 4) == whole


def test_the_same_rollouts_give_the_same_file(tmp_path: Path, recording: Recording) -> None:
    save(tmp_path / "a", recording)
    save(tmp_path / "b", recording)
    assert recording_path(tmp_path / "a", 4).read_bytes() == recording_path(tmp_path / "b", 4).read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["step-4.jsonl.gz"]


def test_only_the_newest_steps_stay_and_a_continued_run_cuts_what_it_makes_again(
    tmp_path: Path, recording: Recording
) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, recording, step, keep_last=3)
    kept = lambda: sorted(path.name for path in tmp_path.iterdir())  # noqa: E731
    assert kept() == ["step-10.jsonl.gz", "step-11.jsonl.gz", "step-9.jsonl.gz"]
    cut_recordings(tmp_path, 9)
    assert kept() == ["step-9.jsonl.gz"]
    cut_recordings(tmp_path / "none", 0)
    with pytest.raises(DataError, match=r"no rollouts of step 10 in .*; recorded steps: 9\. rollout\.record_last"):
        read_recording(tmp_path, 10)


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no gzip", id="no gzip"),
        # Named, for gzip writes the time into its bytes: two test processes would disagree about the tests' names.
        pytest.param(gzip.compress(b""), id="no line"),
        pytest.param(gzip.compress(b"[1]\n"), id="a list"),
        pytest.param(gzip.compress(b'{"format": 2, "step": 4, "num_groups": 0}\n'), id="another format"),
        pytest.param(gzip.compress(b"[" * 100_000), id="deep brackets"),
        "torn",
        "a line short",
        "a score short",
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, recording: Recording, contents: bytes | str) -> None:
    save(tmp_path, recording)
    path = recording_path(tmp_path, 4)
    lines = gzip.decompress(path.read_bytes()).splitlines()
    if contents == "torn":
        contents = path.read_bytes()[:-20]
    elif contents == "a line short":
        contents = gzip.compress(b"\n".join(lines[:-1]))
    elif contents == "a score short":
        row = json.loads(lines[2])
        contents = gzip.compress(b"\n".join([*lines[:2], json.dumps(row | {"scores": row["scores"][1:]}).encode()]))
    path.write_bytes(contents)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"step-4\.jsonl\.gz: expected rollouts as format 1"):
        read_recording(tmp_path, 4)


def test_the_same_reward_pays_the_same_and_another_is_told(recording: Recording) -> None:
    assert score_changes(recording.groups, score_again(recording, Config(), ROOT)) == []
    f1 = RewardTermConfig(use="rewards/box_f1.py:box_f1", weight=0.45, kwargs={"match_iou": 0.75})
    stricter = Config(reward=RewardConfig(terms=Config().reward.terms | {"f1": f1}))
    changes = score_changes(recording.groups, score_again(recording, stricter, ROOT))
    # Half of the box has IoU 0.5: found before (ties count), not found now. Everything else stays.
    assert [(one.pair_id, one.sample, one.text) for one in changes] == [("pair-9", 1, HALF)]
    before, after = changes[0].before, changes[0].after
    assert before is not None
    assert (before.terms["f1"], after.terms["f1"]) == (1.0, 0.0)
    assert before.total - after.total == pytest.approx(0.45)


def test_a_masked_completion_that_is_paid_now_is_a_change(recording: Recording) -> None:
    first: Score | None
    first, *rest = recording.groups[1].scores
    old = [recording.groups[0], replace(recording.groups[1], scores=(None, *rest))]
    assert [(one.sample, one.before, one.after) for one in score_changes(old, recording.groups)] == [(0, None, first)]


def test_loss_and_gradient_equal_plain_pytorch(tmp_path: Path, random_policy: Path) -> None:
    settings = [f'policy.path="{random_policy}"', "learner.kl_coef=0.1", "rollout.temperature=0.9"]
    config = load_config([], [*settings, "learner.max_grad_norm=1e9"])
    frontend = load_frontend(config.policy, "union")
    groups = []
    for seed, texts in enumerate([[EXACT, WRONG, NONE], [HALF, WRONG], [WRONG, WRONG]]):  # the last has no signal
        pair = replace(make_pair(tmp_path, (64, 48), seed), target_boxes_px=((16.0, 12.0, 48.0, 36.0),))
        prompt = tuple(frontend.encode(pair)["input_ids"][0].tolist())
        groups.append(group_of(texts, pair, prompt))
    recording = scored(groups, config)
    found = loss_figures(recording, recording.groups, config, reference_path=str(random_policy))

    kept = [training_group(group, config) for group in recording.groups[:2]]
    plain = PlainLoop(config, lr=0.0, eps=1e-8, weight_decay=0.0)
    plain.run([kept], 1)
    assert found["learner/grad_norm"] == pytest.approx(plain.norms[0], rel=1e-4)
    scorer = PolicyScorer(load_model(config.policy), frontend, config)
    new: list[list[float]] = []
    for group in kept:
        packed = pack([group])
        with torch.no_grad():
            values = scorer(packed, scorer.encode(packed)).logprobs_N
        new += [row.tolist() for row in values.split([len(row) for row in group.completion_token_ids])]
    rollout = [row for group in kept for row in group.logprobs_rollout]
    batch = Batch(new, new, rollout, new, [advantage for group in kept for advantage in group.advantages])
    assert found["learner/loss"] == pytest.approx(loss(batch, config.learner, 4096), rel=1e-4)
    assert found["learner/kl"] == 0.0
    assert found["learner/ratio_max"] == 1.0
    parts = [found[f"replay/grad_norm_{part}"] for part in ("vision", "projector", "text")]
    assert sum(part**2 for part in parts) == pytest.approx(found["learner/grad_norm"] ** 2)
    with pytest.raises(ConfigError, match="step 4: no group has signal"):
        loss_figures(recording, recording.groups[2:], config)


def test_the_weights_that_sampled_are_taken_for_the_first_step(recording: Recording, tmp_path: Path) -> None:
    assert choose_weights(tmp_path, recording, Config(), None) == (Config().policy.path, ", which sampled them")


@pytest.mark.parametrize(
    ("learned_at", "kept", "found"), [([], 5, True), ([5], 5, False), ([5], 4, True), ([], 6, False)]
)
def test_a_later_checkpoint_has_the_weights_that_sampled_if_nothing_was_learned_in_between(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned_at: list[int], kept: int, found: bool
) -> None:
    """Sampled for step 6 by the weights of step 4; the only checkpoint is that of step `kept`."""
    sampled = replace(recording.groups[0].sampled, policy_version=4)
    late = replace(recording, step=6, groups=(replace(recording.groups[0], sampled=sampled),))
    lines = [{"step": step, "stage": "all"} | ({"learner/loss": 0.5} if step in learned_at else {}) for step in (4, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / f"checkpoints/step-{kept}").mkdir(parents=True)
    monkeypatch.setattr("launch.replay.find_policy", lambda name: SimpleNamespace(path=name))
    path, note = choose_weights(tmp_path, late, Config(), None)
    assert (Path(path).name == f"step-{kept}") == found
    assert ("there is no checkpoint of step 4" in note) != found


@pytest.mark.slow
def test_make_replay_lists_what_another_reward_pays(tmp_path: Path, recording: Recording) -> None:
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.json").write_text(Config().model_dump_json())
    save(run / "rollouts", recording)
    base = [sys.executable, "-m", "launch.replay", "--run", "first", "--runs-dir", str(tmp_path), "--no-loss"]

    def replay(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, *options], cwd=ROOT, capture_output=True, text=True)

    done = replay("--step", "4", "--set", "reward.terms.f1.kwargs={match_iou=0.75}")
    assert done.returncode == 0, done.stderr
    assert "step 4, stage dual: 2 groups, 6 completions\n1 completions are paid otherwise" in done.stdout
    assert "pair pair-9, sample 1: 0.775" in done.stdout  # 0.1 + 0.45 + 0.45 * 0.5
    [change] = json.loads((run / "replay/step-4.json").read_text())["changes"]
    assert (change["before"]["terms"]["f1"], change["after"]["terms"]["f1"]) == (1.0, 0.0)
    done = replay("--step", "5")
    assert done.returncode == 1 and "error: no rollouts of step 5" in done.stderr
