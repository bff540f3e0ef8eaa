"""RefCOCO: the three published layouts on tiny folders, hostile files, and the command that measures a copy."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dig_rl.actors.fleet import PolicyFacts
from dig_rl.config import Config, load_config
from dig_rl.errors import ConfigError, DataError, PolicyError
from dig_rl.evaluation.grounding import grounding_figures
from dig_rl.exchange.refcoco import find_splits
from dig_rl.types import Question, Reply
from launch.evaluate_refcoco import ask, choose_splits, main, markdown_table
from tests.tiny import CONFIG, ENVIRONMENT, ROOT

PICTURE = "COCO_train2014_000000000001.jpg"
SIZE = (80, 40)
# What every layout below says, in its own way.
TRUTH = [("the left dog", (8.0, 4.0, 40.0, 24.0)), ("dog", (8.0, 4.0, 40.0, 24.0)), ("café", (0.0, 0.0, 80.0, 40.0))]


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (9, 9, 9)).save(buffer, format="JPEG")
    return buffer.getvalue()


def refer_refs() -> list[dict[str, Any]]:
    def sentence(number: int, text: str) -> dict[str, Any]:
        return {"tokens": text.split(), "raw": text.upper(), "sent_id": number, "sent": text}

    shared = {"image_id": 1, "category_id": 18, "file_name": "COCO_train2014_000000000001_7.jpg"}
    return [
        {"sent_ids": [3], "ann_id": 7, "ref_id": 1, "split": "train", "sentences": [sentence(3, "no")], **shared},
        {
            "sent_ids": [4, 5],
            "ann_id": 7,
            "ref_id": 2,
            "split": "val",
            "sentences": [sentence(4, "the left dog"), sentence(5, "dog")],
            **shared,
        },
        {"sent_ids": [6], "ann_id": 8, "ref_id": 3, "split": "val", "sentences": [sentence(6, "café")], **shared},
    ]


def make_refer(root: Path, refs: Any = None, protocol: int = 0) -> Path:
    (root / "refcoco").mkdir(parents=True)
    (root / "images/mscoco/images/train2014").mkdir(parents=True)
    (root / "images/mscoco/images/train2014" / PICTURE).write_bytes(picture_bytes())
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refer_refs() if refs is None else refs, protocol))
    instances = {
        "images": [{"id": 1, "file_name": PICTURE, "width": 80, "height": 40}],
        "annotations": [
            {"id": 7, "image_id": 1, "bbox": [8.0, 4.0, 32.0, 20.0]},
            {"id": 8, "image_id": 1, "bbox": [0, 0, 80, 40]},
        ],
    }
    (root / "refcoco/instances.json").write_text(json.dumps(instances))
    return root


def make_parquet(root: Path, **changed: Any) -> Path:
    (root / "RefCOCO/data").mkdir(parents=True)
    image = {"bytes": picture_bytes(), "path": PICTURE}
    rows = [
        {"question_id": "7", "image": image, "answer": ["the left dog", "dog"], "bbox": [8.0, 4.0, 32.0, 20.0]},
        {"question_id": "8", "image": image, "answer": ["café"], "bbox": [0.0, 0.0, 80.0, 40.0]},
    ]
    rows[0] |= changed
    for part, row in enumerate(rows):
        table = pa.Table.from_pylist([row])
        pq.write_table(table, root / f"RefCOCO/data/val-0000{part}-of-00002.parquet")
    return root


def make_lines(root: Path, **changed: Any) -> Path:
    (root / "train2014").mkdir(parents=True)
    (root / "train2014" / PICTURE).write_bytes(picture_bytes())
    rows = [
        {"image": f"data/coco/train2014/{PICTURE}", "sent": text, "bbox": list(box), "height": 40, "width": 80}
        for text, box in TRUTH
    ]
    rows[0] |= changed
    (root / "refcoco_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.mark.parametrize(("make", "layout"), [(make_refer, "refer"), (make_parquet, "parquet"), (make_lines, "jsonl")])
def test_all_layouts_say_the_same(tmp_path: Path, make: Any, layout: str) -> None:
    found = find_splits(make(tmp_path / "copy"))
    assert list(found) == ["refcoco_val"] or layout == "refer"
    assert found["refcoco_val"].layout == layout
    expressions = found["refcoco_val"].read(tmp_path / "pictures")
    assert [(one.text, one.target_box_px) for one in expressions] == TRUTH
    assert {one.image_size_px for one in expressions} == {SIZE}
    assert len({one.image_path for one in expressions}) == 1
    assert len({one.expression_id for one in expressions}) == 3
    with Image.open(expressions[0].image_path) as image:
        assert image.size == SIZE


def test_a_pickle_of_python_2_is_read_with_its_accents(tmp_path: Path) -> None:
    """It carries text as bytes, which become characters of Latin-1 one by one."""
    refs = refer_refs()
    refs[2]["sentences"][0]["sent"] = "café".encode().decode("latin1")
    found = find_splits(make_refer(tmp_path, refs, protocol=2))["refcoco_val"].read(tmp_path)
    assert found[2].text == "café"


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_code_in_the_pickle_is_not_run(tmp_path: Path) -> None:
    refs = [*refer_refs(), Hostile(f"touch {tmp_path / 'run'}")]
    with pytest.raises(DataError, match=r"posix\.system.*nothing of it was run"):
        find_splits(make_refer(tmp_path, refs))["refcoco_val"].read(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("refs", "told"),
    [
        ({"a": 1}, "expected a list of references, found dict"),
        ([3], "reference 0: expected an entry with split, found 3"),
        ([{"split": "val"}], "reference 0: expected an entry with image_id"),
        ([refer_refs()[1] | {"image_id": 99}], "image_id 99 is not in"),
        ([refer_refs()[1] | {"ann_id": [1]}], r"ann_id \[1\] is not in"),
        ([refer_refs()[1] | {"sentences": "dog"}], "expected a list of sentences"),
        ([refer_refs()[1] | {"sentences": [{"sent": " ", "sent_id": 1}]}], "expected an expression without special"),
        ([], "expected expressions of this split, found none"),
    ],
)
def test_a_broken_refer_copy_says_where(tmp_path: Path, refs: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as refused:
        find_splits(make_refer(tmp_path, refs))["refcoco_val"].read(tmp_path)
    assert "refs(unc).p" in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image": "../../etc/passwd"}, "picture '../../etc/passwd' is not in"),
        ({"image": 7}, "picture 7 is not in"),
        ({"image": "a\0b"}, "is not in"),
        ({"sent": "<|image_pad|> dog"}, "without special tokens"),
        ({"sent": "x" * 2000}, "without special tokens"),
        ({"bbox": [8, 4, 8, 24]}, "expected 0 <= x_min < x_max <= 80"),
        ({"bbox": [8, 4, float("nan"), 24]}, "expected 4 finite numbers"),
        ({"bbox": [0, 0, 800, 400]}, "expected 0 <= x_min"),
        ({"width": 81}, r"is 80x40, the line says \(81, 40\)"),
    ],
)
def test_a_hostile_line_is_refused_with_its_number(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as refused:
        find_splits(make_lines(tmp_path, **changed))["refcoco_val"].read(tmp_path)
    assert "refcoco_val.jsonl, line 1" in str(refused.value)


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "secret.png")
    root = make_lines(tmp_path / "copy", image="../secret.png")
    with pytest.raises(DataError, match=r"expected a path within .*found '\.\./secret\.png'"):
        find_splits(root)["refcoco_val"].read(tmp_path)


def test_damaged_parquet_and_pictures_are_named(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "a", image={"bytes": b"no picture", "path": "x"})
    with pytest.raises(DataError, match="question_id '7': its picture is damaged"):
        find_splits(root)["refcoco_val"].read(tmp_path / "pictures")
    (root / "RefCOCO/data/val-00000-of-00002.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"val-00000-of-00002\.parquet is not a parquet file, or damaged"):
        find_splits(root)["refcoco_val"].read(tmp_path / "pictures")
    with pytest.raises(DataError, match=r"holds no split of RefCOCO.*refs\(unc\)\.p"):
        find_splits(tmp_path / "pictures")


class ScriptedRollouts:
    """Answers every question with the truth of what it was asked, except about the café."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def ask(self, questions: list[Question]) -> list[Reply]:
        self.asked += questions
        texts = ["none" if "café" in one.text else '[{"bbox_2d": [100, 100, 500, 600]}]' for one in questions]
        return [Reply(text, (96, 64), 9, "stop") for text in texts]


def test_a_split_is_asked_in_qwens_words_and_counted(tmp_path: Path) -> None:
    expressions = find_splits(make_lines(tmp_path))["refcoco_val"].read(tmp_path)
    rollouts: Any = ScriptedRollouts()
    judged = ask(rollouts, PolicyFacts("", "norm1000", ""), expressions, Config())
    assert rollouts.asked[0].text == (
        'Locate every object that matches the description "the left dog" in the image. '
        "Report bbox coordinates in JSON format."
    )
    assert [one.iou for one in judged] == [1.0, 1.0, 0.0]
    table = markdown_table({"refcoco_val": grounding_figures(judged) | {"standard": False}})
    assert "| refcoco_val | 66.7 | - | 66.7 % | 3 (the published split has 10834: not comparable) |" in table


def test_a_question_has_one_picture_and_must_fit(random_policy: Path) -> None:
    # Imported here: the other tests of this file need no transformers.
    from dig_rl.policy.load import load_frontend

    config = load_config([], [f'policy.path="{random_policy}"'])
    frontend = load_frontend(config.policy, "union")
    prompt = frontend.question_prompt(Question("Where?", "a.jpg", SIZE), config)
    assert prompt.count("<|image_pad|>") == 1
    assert "Where?" in prompt
    with pytest.raises(PolicyError, match=r"expected one <\|image_pad\|> in the prompt"):
        frontend.question_prompt(Question("<|image_pad|>", "a.jpg", SIZE), config)
    # What fits exactly fits: text without its marker, and the tokens of the picture.
    width, height = frontend.model_image_size_px(SIZE)
    num_image = width * height // frontend.image_factor_px**2
    length = len(frontend.processor.tokenizer(prompt, add_special_tokens=False).input_ids) - 1 + num_image
    limits = ["rollout.max_completion_tokens=20", f"rollout.max_model_len={20 + length}"]
    frontend.question_prompt(Question("Where?", "a.jpg", SIZE), load_config([], limits))
    limits[1] = f"rollout.max_model_len={19 + length}"
    with pytest.raises(ConfigError, match=rf"about a\.jpg takes {length} tokens, but .* leaves {length - 1}"):
        frontend.question_prompt(Question("Where?", "a.jpg", SIZE), load_config([], limits))


def test_a_copy_is_measured_and_the_answers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text('{"model_type": "qwen3_vl"}')
    facts = PolicyFacts("", "norm1000", "")
    monkeypatch.setattr("launch.evaluate_refcoco.Cluster", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("launch.evaluate_refcoco.launch_rollouts", lambda *_: (ScriptedRollouts(), facts))
    options = [
        "--checkpoint",
        str(policy),
        "--from",
        str(make_parquet(tmp_path / "copy")),
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", ["make eval-refcoco", *options, "--limit", "2"])
    main()
    found = json.loads((tmp_path / "out/refcoco.json").read_text())["splits"]["refcoco_val"]
    assert (found["acc_50"], found["expressions"], found["standard"]) == (0.5, 2, False)
    lines = (tmp_path / "out/predictions_refcoco_val.jsonl").read_text().splitlines()
    # Those with the lowest hashes, in the order of the file: not simply the first two.
    assert [json.loads(line)["text"] for line in lines] == ["dog", "café"]
    assert "| refcoco_val | 50.0 | - | 50.0 % | 2 (the published split" in capsys.readouterr().out


@pytest.mark.slow
def test_the_real_engine_is_measured(tmp_path: Path, random_policy: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "launch.evaluate_refcoco",
        "--checkpoint",
        str(random_policy),
        "--config",
        str(CONFIG),
    ]
    command += ["--from", str(make_lines(tmp_path / "copy")), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/refcoco.json").read_text())["splits"]["refcoco_val"]
    assert found["expressions"] == 3 and 0 <= found["acc_50"] <= 1
    assert len((tmp_path / "out/predictions_refcoco_val.jsonl").read_text().splitlines()) == 3


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    found = find_splits(make_lines(tmp_path))
    assert [split.name for split in choose_splits(found, [])] == ["refcoco_val"]
    with pytest.raises(ConfigError, match="SPLIT=refcoco_test is none of the eight splits; this copy has refcoco_val"):
        choose_splits(found, ["refcoco_test"])
    with pytest.raises(ConfigError, match="SPLIT=refcocog_val is not in this copy"):
        choose_splits(found, ["refcocog_val"])
