"""Weights by name and checksum: what is tied, what a folder holds, and what an export must be before it is in place."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from dig_rl.checkpoint import CheckpointStore
from dig_rl.config import LoraConfig, load_config
from dig_rl.errors import CheckpointError, PolicyError
from dig_rl.policy import save as save_module
from dig_rl.policy.load import load_frontend, load_model, load_structure
from dig_rl.policy.records import WeightRecord, differences, record_of, records_of
from dig_rl.policy.save import save_policy
from dig_rl.policy.trainable import merged_parameters, prepare_for_training
from dig_rl.policy.weight_files import check_names, written_records
from launch.export import export
from tests.qwen2_5 import build_tiny_qwen2_5

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def folders(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied policy of either family; the files of Qwen2.5-VL name parameters otherwise than the model does."""
    return {
        "qwen3": random_policy,
        "qwen2_5": build_tiny_qwen2_5(random_policy, tmp_path_factory.mktemp("qwen2_5") / "policy"),
    }


def load(folder: Path) -> PreTrainedModel:
    return load_model(load_config([], [f'policy.path="{folder}"']).policy)


def save(model: PreTrainedModel, weights: dict[str, torch.Tensor], like: Path, folder: Path) -> None:
    frontend = load_frontend(load_config([], [f'policy.path="{like}"']).policy, "union")
    save_policy(model, frontend, dict(weights), folder)


def rewritten(policy: Path, folder: Path, flags: dict[str, bool | None], head: float | None) -> Path:
    """A copy with these tie flags (None: no flag), and an output head of so many times the embedding."""
    shutil.copytree(policy, folder)
    config = json.loads((folder / "config.json").read_text())
    for place, part in (("top", config), ("text", config["text_config"])):
        part.pop("tie_word_embeddings", None)
        if flags[place] is not None:
            part["tie_word_embeddings"] = flags[place]
    (folder / "config.json").write_text(json.dumps(config))
    if head is not None:
        weights = load_file(folder / "model.safetensors")
        embedding = next(weight for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
        save_file(weights | {HEAD: embedding * head}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("family", "top", "text", "head", "is_tied"),
    [
        ("qwen3", True, None, None, True),
        ("qwen3", True, False, None, True),
        ("qwen3", True, True, 1.0, True),  # both are in the file and the same
        ("qwen3", True, True, 2.0, False),  # the flags are wrong
        ("qwen3", None, True, 2.0, False),
        ("qwen3", None, None, 2.0, False),
        ("qwen2_5", True, None, None, True),
        ("qwen2_5", None, True, None, True),  # this family takes the flag from there
        ("qwen2_5", None, True, 2.0, False),
    ],
)
def test_tied_is_what_shares_a_weight_wherever_the_flag_stands(
    folders: dict[str, Path],
    tmp_path: Path,
    family: str,
    top: bool | None,
    text: bool | None,
    head: float | None,
    is_tied: bool,
) -> None:
    folder = rewritten(folders[family], tmp_path / "policy", {"top": top, "text": text}, head)
    model = load(folder)
    weights = {name: parts[0].detach().clone() for name, parts, _ in merged_parameters(model)}
    assert EMBEDDING in weights and (HEAD in weights) != is_tied
    assert weights.keys() == dict(model.named_parameters()).keys()
    weights = {name: weight * 1.5 for name, weight in weights.items()}  # as after learning
    save(model, weights, folder, tmp_path / "out")
    again = load(tmp_path / "out")
    assert records_of((name, parts[0]) for name, parts, _ in merged_parameters(again)) == records_of(weights.items())
    model.load_state_dict(weights, strict=False)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


@pytest.mark.parametrize("top", [None, False])
def test_a_tie_flag_in_text_config_alone_needs_an_output_head(
    random_policy: Path, tmp_path: Path, top: bool | None
) -> None:
    folder = rewritten(random_policy, tmp_path / "policy", {"top": top, "text": True}, None)
    with pytest.raises(
        PolicyError, match=r"no lm_head\.weight, .* in text_config alone, .*; write .*beside text_config"
    ):
        load_frontend(load_config([], [f'policy.path="{folder}"']).policy, "union")


def test_a_weight_is_known_by_type_shape_and_bytes() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0]])
    assert record_of(weight) == record_of(torch.tensor([[-0.0, 1.0, 2.0]])) == record_of(weight.t().clone().t())
    others = [weight.bfloat16(), weight.t(), weight + torch.tensor([0.0, 0.0, 1e-6]), torch.zeros(())]
    assert len({record_of(weight), *map(record_of, others)}) == 5
    assert record_of(others[0])[:2] == ("bfloat16", (1, 3))


def test_differences_name_what_is_missing_unexpected_reshaped_and_changed() -> None:
    def record(values: str, *shape: int) -> WeightRecord:
        return WeightRecord("float32", shape, values)

    expected = {name: record("1", 2) for name in "abcdefg"}
    assert differences(expected, dict(expected)) is None
    found = {"f": record("1", 3), "g": record("2", 2), "h": record("1", 2)}
    assert differences(expected, found) == (
        "of 7 weights, 5 missing: a, b, c and 2 more; 1 not expected: h; 1 of another shape or type: f (float32 [3] "
        "for float32 [2]); 1 with other values: g"
    )


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_files_are_read_under_the_names_of_parameters(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family])
    found = written_records(
        folders[family], load_structure(load_config([], [f'policy.path="{folders[family]}"']).policy)
    )
    assert differences(records_of(model.named_parameters()), found) is None


@pytest.mark.parametrize(
    ("lost", "clause"),
    [
        (HEAD, "it would not be the policy: .* 1 not expected"),
        (EMBEDDING, "it would not be the policy: .* 1 missing"),
        ("", "read back, it is not the policy .* with other"),
    ],
)
def test_an_export_that_differs_from_what_was_to_be_written_is_not_put_in_place(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, clause: str
) -> None:
    model = load(random_policy)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    if lost == EMBEDDING:
        del weights[EMBEDDING]
    elif lost == HEAD:
        weights[HEAD] = weights[EMBEDDING].clone()
    else:  # the disk forgets a byte after it was written
        name = next(name for name in weights if name.endswith("q_proj.weight"))

        def forget(file: Path) -> None:
            if file.suffix == ".safetensors":
                written = load_file(file)
                written[name].view(-1)[5] += 1e-3
                save_file(written, file, {"format": "pt"})

        monkeypatch.setattr(save_module, "sync_to_disk", forget)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/before").touch()
    with pytest.raises(PolicyError, match=rf"policy was not written: {clause}.*the same command tries again"):
        save(model, weights, random_policy, tmp_path / "policy")
    assert [path.name for path in tmp_path.rglob("*")] == ["policy", "before"]


def test_no_room_for_the_weights_is_an_error_of_the_disk(random_policy: Path, tmp_path: Path) -> None:
    model = load(random_policy)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes of one file
    try:
        with pytest.raises(OSError, match="File too large"):
            save(model, dict(model.named_parameters()), random_policy, tmp_path / "policy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_a_policy_folder_with_a_weight_too_many_or_too_few_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    policy = load_config([], [f'policy.path="{tmp_path / "policy"}"']).policy
    shutil.copytree(folders[family], policy.path)
    check_names(policy)
    file = Path(policy.path) / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"model.more.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(PolicyError, match=r"1 weights in its files belong to no part of Qwen.*more\.weight; config"):
        load_model(policy)
    with pytest.raises(PolicyError, match=r"as config\.json says: of \d+ weights, 1 not expected: .*more\.weight; con"):
        check_names(policy)
    lost = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(PolicyError, match=r"1 missing: model\.(language_model|visual)\..*down_proj\.weight; config"):
        check_names(policy)


def checkpoint_of(model: PreTrainedModel, run: Path, **changes: torch.Tensor | None) -> Path:
    """What a learner without ZeRO saves of a model, with some weights changed, or left out (None)."""
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    state = {name: weight for name, weight in (state | changes).items() if weight is not None}

    def write(folder: Path) -> None:
        (folder / "learner/learner").mkdir(parents=True)
        torch.save({"module": state}, folder / "learner/learner/mp_rank_00_model_states.pt")

    return CheckpointStore(run, 1).save(1, write, {})


@pytest.mark.parametrize("module", ["model.language_model.embed_tokens", "model.visual.patch_embed.proj"])
def test_a_checkpoint_with_adapters_that_cannot_be_merged_is_refused_with_their_modules(
    random_policy: Path, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions trained them."""
    config = load_config([], [f'policy.path="{random_policy}"', "learner.lora={rank=4, alpha=8}"])
    names = ["model.language_model.layers.0.self_attn.q_proj", module]
    monkeypatch.setattr("dig_rl.policy.trainable.adapted_modules", lambda *_: names)
    checkpoint = checkpoint_of(prepare_for_training(load_model(config.policy), config), tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"has adapters on {module}, which cannot be merged: .*rank 4 .*new RUN"):
        export(checkpoint, config, tmp_path / "out")
    other = config.learner.model_copy(update={"lora": LoraConfig(rank=8)})
    with pytest.raises(CheckpointError, match=r"has adapters on .*q_proj.*, which cannot be merged: .*rank 8 "):
        export(checkpoint, config.model_copy(update={"learner": other}), tmp_path / "out")
    without = load_config([], [f'policy.path="{random_policy}"'])
    with pytest.raises(CheckpointError, match=r"does not fit .*: of 63 weights, \d missing: .*; \d not expected: "):
        export(checkpoint, without, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_is_exported_if_its_weights_are_the_policys_and_no_others(
    random_policy: Path, tmp_path: Path
) -> None:
    config, model = load_config([], [f'policy.path="{random_policy}"']), load(random_policy)
    changed = f"model.{EMBEDDING}"
    export(checkpoint_of(model, tmp_path / "a", **{changed: torch.ones(512, 64)}), config, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").lm_head.weight, torch.ones(512, 64))
    for weight, clause in ((None, "1 missing: "), (torch.ones(2, 64), "1 weights are of another shape, first ")):
        checkpoint = checkpoint_of(model, tmp_path / "b", **{changed: weight})
        with pytest.raises(CheckpointError, match=f"does not fit .*{clause}{EMBEDDING}; restore that policy"):
            export(checkpoint, config, tmp_path / "none")
    checkpoint = checkpoint_of(model, tmp_path / "b", **{"model.model.visual.more": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"1 not expected: model\.visual\.more; restore that policy"):
        export(checkpoint, config, tmp_path / "none")
    checkpoint = checkpoint_of(model, tmp_path / "b", **{changed: "no tensor"})
    with pytest.raises(CheckpointError, match="cannot be put together: AttributeError"):
        export(checkpoint, config, tmp_path / "none")
