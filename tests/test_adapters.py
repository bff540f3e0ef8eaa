"""Our rewards in TRL, EasyR1 and verl: the calls that these trainers make, and one real step of TRL."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dig_rl.adapters import check_environment, easyr1, trl, verl
from dig_rl.adapters.answer_scorer import AnswerScorer, ground_truth
from dig_rl.errors import ConfigError, DataError, PluginError
from dig_rl.types import Example
from tests.test_data import folder_with, pair
from tests.test_scoring import CORNERS, ROOT, answer, scores

EXAMPLE = Example("pair-1", "/a.png", "/b.png", (1000, 1000), tuple(CORNERS[:2]), ("color", "add"), "train")
TRUTH = ground_truth(EXAMPLE)
ANSWERS = [answer(*CORNERS[:2]), answer(CORNERS[0]), "[]", "no list"]
TOTALS = [score.total for score in scores(ANSWERS, CORNERS[:2])]  # 1, 0.625, 0, 0
TERMS = {"format", "f1", "iou"}
PAPER_FILE = "launch/configs/rewards/paper.toml"
OPTIONS: dict[str, Any] = {"frame": "norm1000", "thinking": False, "root": str(ROOT)}


def loaded_by_path(module: ModuleType, name: str) -> ModuleType:
    """As EasyR1 and verl load a reward file."""
    spec = importlib.util.spec_from_file_location(name, str(module.__file__))
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_trl_callable_gets_columns_and_returns_a_float_a_completion() -> None:
    function = trl.reward_function("", **OPTIONS)
    logged: dict[str, float] = {}
    paid = function(
        prompts=["which?"] * 4,
        completions=ANSWERS,
        completion_ids=[[1, 2]] * 4,
        ground_truth=[TRUTH] * 4,
        images=[[]] * 4,
        trainer_state=SimpleNamespace(global_step=7),
        log_metric=logged.__setitem__,
        log_extra=lambda name, values: None,
    )
    assert paid == TOTALS
    assert logged == pytest.approx({"reward/format": 0.5, "reward/f1": (1 + 2 / 3) / 4, "reward/iou": 1.5 / 4})
    assert function.__name__ == "dig_rl"


@pytest.mark.parametrize("content", [ANSWERS[1], [{"type": "text", "text": ANSWERS[1]}]])
def test_trl_conversations_are_read(content: object) -> None:
    function = trl.reward_function("", **OPTIONS)
    completions = [[{"role": "assistant", "content": content}]]
    assert function(completions=completions, completion_ids=[[1]], ground_truth=[TRUTH]) == [TOTALS[1]]


@pytest.mark.parametrize(
    ("completion", "total"),
    [
        ([{"role": "assistant", "content": None}], 0.0),  # beside calls of tools
        (
            [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": ANSWERS[1]}],
            0.625,
        ),
        ({"role": "assistant", "content": ANSWERS[1]}, 0.625),
        (
            [{"type": "text", "text": ANSWERS[1][:9]}, {"type": "image"}, {"type": "text", "text": ANSWERS[1][9:]}],
            0.625,
        ),
        ([{"role": "assistant", "content": [{"type": "text", "text": None}]}], 0.0),
        ([{"role": "assistant", "content": []}], 0.0),
        ([], 0.0),
        (None, 0.0),
    ],
)
def test_every_shape_of_a_completion_is_read(completion: object, total: float) -> None:
    function = trl.reward_function("", **OPTIONS)
    assert function(completions=[completion], ground_truth=[TRUTH]) == [total]


def test_a_completion_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected an answer as text, .* found int 7; hand over what the policy wrote"):
        trl.reward_function("", **OPTIONS)(completions=[7], ground_truth=[TRUTH])


def test_token_ids_may_be_missing_and_arguments_may_stand_in_trls_order() -> None:
    function = trl.reward_function("", **OPTIONS)
    assert function(completions=ANSWERS, ground_truth=[TRUTH] * 4) == TOTALS
    assert function(["which?"] * 4, ANSWERS, ground_truth=[TRUTH] * 4) == TOTALS
    assert function(["which?"] * 4, ANSWERS, [[1]] * 4, [TRUTH] * 4) == TOTALS


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"prompts": ["which?"], "completions": ["[]"], "solution": ["x"]},
            "found prompts, completions, solution; `make",
        ),
        ({}, "expected completions and a column ground_truth, .* found nothing"),
        (
            {"completions": ["[]"], "ground_truth": []},
            "found 1 answers, 0 ground truths and 1 lengths; repeat the truth",
        ),
        (
            {"completions": ["[]"], "ground_truth": [TRUTH], "completion_ids": []},
            "found 1 answers, 1 ground truths and 0 lengths",
        ),
    ],
)
def test_missing_columns_are_one_message(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        trl.reward_function("", **OPTIONS)(**given)


def test_a_truth_may_come_parsed() -> None:
    parsed = json.loads(TRUTH)
    assert trl.reward_function("", **OPTIONS)(completions=ANSWERS, ground_truth=[parsed] * 4) == TOTALS
    boxes = np.array(parsed["target_boxes_px"])
    inputs = [{"response": text, "ground_truth": parsed | {"target_boxes_px": boxes}} for text in ANSWERS]
    assert [score["overall"] for score in easyr1.compute_score(inputs, **OPTIONS)] == TOTALS
    assert [verl.compute_score("dig", text, parsed, **OPTIONS)["score"] for text in ANSWERS] == TOTALS  # type: ignore[arg-type]


def test_rows_without_an_answer_or_a_truth_are_one_message() -> None:
    for row, told in (
        ({"response": "[]", "answer": "x"}, "found the keys response, answer"),
        ("[]", "found str"),
    ):
        with pytest.raises(DataError, match=f"expected response and ground_truth of every answer, {told}"):
            easyr1.compute_score([row], **OPTIONS)  # type: ignore[list-item]


ELSEWHERE = """
import importlib.abc, importlib.util, json, sys
folder, truth, allowed = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in allowed and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

def load(name):
    spec = importlib.util.spec_from_file_location("custom_" + name, f"{folder}/dig_rl/adapters/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

sys.path = [entry for entry in sys.path if entry not in ("", folder)]
sys.meta_path.insert(0, Bare())
sys.modules["pydantic"] = None
try:
    load("easyr1")
except ImportError as error:
    print(error)
del sys.modules["pydantic"]
options = {"frame": "norm1000", "thinking": False}
answer = "[[100, 100, 200, 200]]"
print(load("verl").compute_score("dig", answer, truth, **options)["score"])
print(load("easyr1").compute_score({"response": answer, "ground_truth": truth}, **options)["overall"])
from dig_rl.adapters.trl import reward_function
paid = reward_function("launch/configs/rewards/paper.toml", root=folder, **options)
print(paid([""], [answer], ground_truth=[truth])[0])
"""


def test_another_trainers_environment_needs_little(tmp_path: Path) -> None:
    """In any folder, from nothing but numpy, scipy and pydantic; where that is missing, one message says so."""
    allowed = ["dig_rl", "rewards", "numpy", "scipy", "pydantic", "pydantic_core"]
    allowed += ["annotated_types", "typing_extensions", "typing_inspection"]  # of pydantic
    truth = ground_truth(replace(EXAMPLE, target_boxes_px=((100.0, 100.0, 200.0, 200.0),), kinds=("add",)))
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT), truth, json.dumps(allowed)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, *paid = done.stdout.strip().split("\n")
    assert paid == ["1.0", "1.0", "1.0"]
    assert message.startswith("the rewards of dig_rl need numpy, scipy, pydantic>=2 and nothing else; this environment")
    assert message.endswith(f"lacks pydantic>=2: {sys.executable} -m pip install 'pydantic>=2'")


def test_an_older_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    with pytest.raises(ImportError, match=r"need Python 3\.11 or later, found .*run the trainer with such a Python"):
        check_environment()


def test_plugin_sees_length_step_and_pair(tmp_path: Path) -> None:
    checks = "(item.num_tokens, item.step, item.pair_id, item.metadata['kinds']) == (3, 7, 'pair-1', ('color', 'add'))"
    (tmp_path / "own.py").write_text(f"def own(item):\n    return {checks}\n", encoding="utf-8")
    function = trl.reward_function("own.py:own", frame="norm1000", thinking=False, root=tmp_path)
    state = SimpleNamespace(global_step=7)
    arguments = {"completions": ANSWERS[:1], "completion_ids": [[1, 2, 3]], "ground_truth": [TRUTH]}
    assert function(**arguments, trainer_state=state) == [1.0]
    assert function.__name__ == "own"


def test_one_plugin_or_a_config_is_named_alike() -> None:
    def paid(reward: str) -> float:
        return AnswerScorer(reward, **OPTIONS).score(ANSWERS[1:2], [TRUTH])[0].total

    assert paid("rewards/box_f1.py:box_f1") == pytest.approx(2 / 3)
    assert paid("rewards/box_iou.py:box_iou") == 0.5
    assert paid(PAPER_FILE) == pytest.approx(0.1 + 0.45 * 2 / 3 + 0.45)
    assert paid("") == TOTALS[1]


def test_easyr1_batch_and_sequential_functions() -> None:
    module = loaded_by_path(easyr1, "custom_reward_fn")
    function = partial(module.compute_score, **OPTIONS)
    inputs = [{"response": text, "response_length": 5, "ground_truth": TRUTH} for text in ANSWERS]
    batch = function(inputs)
    assert [score["overall"] for score in batch] == TOTALS
    assert [function(item) for item in inputs] == batch
    assert all(score.keys() == {"overall", *TERMS} for score in batch)
    assert all(type(value) is float for score in batch for value in score.values())
    assert module.REWARD_TYPE == "batch"


def test_verl_naive_manager_call() -> None:
    module = loaded_by_path(verl, "custom_module")
    for text, total in zip(ANSWERS, TOTALS, strict=True):
        score = module.compute_score(
            data_source="dig", solution_str=text, ground_truth=TRUTH, extra_info={"num_turns": None}, **OPTIONS
        )
        assert score["score"] == total
        assert score.keys() == {"score", *TERMS}
    published = ["data_source", "solution_str", "ground_truth", "extra_info"]
    parameters = inspect.signature(module.compute_score).parameters
    assert list(parameters)[:4] == published and parameters["extra_info"].default is None


def test_verl_batch_manager_call() -> None:
    columns = np.array([TRUTH] * 4, dtype=object), np.array(["dig"] * 4, dtype=object)
    batch = verl.compute_score_batch(
        data_sources=columns[1],  # type: ignore[arg-type]
        solution_strs=ANSWERS,
        ground_truths=columns[0],  # type: ignore[arg-type]
        extra_infos=[None] * 4,
        **OPTIONS,
    )
    assert [score["score"] for score in batch] == TOTALS


def test_absolute_pixels_are_those_of_the_resized_image() -> None:
    truth = ground_truth(EXAMPLE, model_image_size_px=(500, 250))
    written = "[[0, 0, 100, 50], [400, 0, 500, 50]]"
    options = {**OPTIONS, "frame": "absolute_px"}
    assert AnswerScorer("", **options).score([written], [truth])[0].total == pytest.approx(1.0)


def test_thinking_must_be_closed() -> None:
    scorer = AnswerScorer("", **{**OPTIONS, "thinking": True})
    paid = scorer.score([ANSWERS[0], f"hm</think>{ANSWERS[0]}"], [TRUTH] * 2)
    assert [(score.status, score.total) for score in paid] == [("unfinished_thinking", 0.0), ("ok", 1.0)]


@pytest.mark.parametrize(
    "truth",
    [
        "",
        "[]",
        "{}",
        '{"pair_id": 1}',
        json.dumps(json.loads(TRUTH) | {"kinds": 3}),
        None,
        [],
        {"pair_id": 1},
        7,
        "[" * 9999,
    ],
)
def test_a_truth_that_is_not_ours_is_refused(truth: Any) -> None:
    with pytest.raises(DataError, match=r"answer_scorer\.ground_truth"):
        AnswerScorer("", **OPTIONS).score(ANSWERS[:1], [truth])


def test_mistakes_in_the_other_trainers_config_are_named() -> None:
    with pytest.raises(ConfigError, match='frame is norm1000 or absolute_px, found "pixels"'):
        AnswerScorer("", **{**OPTIONS, "frame": "pixels"})
    with pytest.raises(ConfigError, match=r"no config file at .*gone\.toml"):
        AnswerScorer("gone.toml", **OPTIONS)
    with pytest.raises(PluginError, match="offers box_f1"):
        AnswerScorer("rewards/box_f1.py:f1", **OPTIONS)


@pytest.mark.slow
def test_one_real_step_of_trl_with_two_images(random_policy: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    from dig_rl.config import PolicyConfig
    from dig_rl.exchange.parquet import export_parquet
    from dig_rl.policy.load import load_frontend, load_model

    policy = PolicyConfig(path=str(random_policy))
    frontend = load_frontend(policy, "union")
    folder_with(tmp_path / "data", *(pair(f"p{number}") for number in (1, 2)))
    export_parquet("trl", tmp_path / "data", tmp_path / "parquet", frame=frontend.frame)
    exported = load_dataset(
        "parquet", data_files=str(tmp_path / "parquet/train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    seen: list[int] = []
    format_term = "rewards/answer_format.py:answer_format"
    total = trl.reward_function("", **OPTIONS)

    def counted(**columns: Any) -> list[float]:
        seen.append(len(columns["completions"]))
        return total(**columns)

    trainer = GRPOTrainer(
        model=load_model(policy).train(),
        reward_funcs=[counted, trl.reward_function(format_term, **OPTIONS)],
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            use_vllm=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=0,
        ),
        train_dataset=exported,
        processing_class=frontend.processor,
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert seen == [4]
    (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert 0.0 <= logged["rewards/answer_format/mean"] <= 1.0
    assert np.isfinite(logged["loss"])
    assert 0.0 <= logged["reward/f1"] <= 1.0
