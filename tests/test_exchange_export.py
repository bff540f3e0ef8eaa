"""Our data folder in COCO, TRL and EasyR1: opened by the tools themselves, or as they open it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dig_rl.adapters import easyr1, trl, verl
from dig_rl.boxes import px_to_unit
from dig_rl.config import PolicyConfig
from dig_rl.data import load_examples
from dig_rl.errors import ConfigError, DataError
from dig_rl.exchange.coco import CATEGORIES, export_coco
from dig_rl.exchange.importing import LAYOUTS, import_dataset
from dig_rl.prompts import format_answer, instruction
from tests.published_layouts import mig_bench, picture
from tests.test_data import SIZE, difference, folder_with, pair

ROOT = Path(__file__).resolve().parent.parent
OPTIONS: dict[str, Any] = {"frame": "norm1000", "thinking": False, "root": str(ROOT)}
ADDED = difference(kind="add", box=[1.0, 2.0, 5.0, 9.0], box_a=None, box_b=[1.0, 2.0, 5.0, 9.0])
SOMEWHERE = difference(kind="unknown", box=[30.0, 1.0, 40.0, 11.0], box_a=None, box_b=None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two training pairs, of one and of three changes, and a test pair; pictures of noise."""
    folder = tmp_path / "data"
    three = [difference(), ADDED, SOMEWHERE]
    folder_with(folder, pair("p1"), pair("p2", split="test"), pair("p3", num_differences=3, differences=three))
    for seed, path in enumerate(sorted((folder / "images").iterdir())):
        picture(path, SIZE, seed)
    return folder


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Open a parquet file as these trainers do."""
    datasets = pytest.importorskip("datasets", reason="a second's import that only these tests need")

    def load(path: Path) -> Any:
        return datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    yield load


def test_coco_files_hold_a_picture_and_its_boxes_each(tmp_path: Path, data: Path) -> None:
    assert export_coco(data, tmp_path / "coco") == {"train": 2, "test": 1}
    coco = COCO(tmp_path / "coco/annotations/instances_train.json")
    assert [(image["id"], image["pair_id"], image["side"]) for image in coco.dataset["images"]] == [
        (1, "p1", "a"),
        (2, "p1", "b"),
        (3, "p3", "a"),
        (4, "p3", "b"),
    ]
    for image in coco.dataset["images"]:
        with Image.open(data / image["file_name"]) as stored:
            assert stored.size == (image["width"], image["height"])
    names = {number: kind for kind, number in CATEGORIES.items()}
    found = [(item["image_id"], names[item["category_id"]], item["bbox"]) for item in coco.dataset["annotations"]]
    assert found == [
        (1, "size", [10, 8, 8, 8]),
        (2, "size", [12, 9, 8, 6]),
        (3, "size", [10, 8, 8, 8]),
        (3, "unknown", [30, 1, 10, 10]),
        (4, "size", [12, 9, 8, 6]),
        (4, "add", [1, 2, 4, 7]),
        (4, "unknown", [30, 1, 10, 10]),
    ]
    added = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["add"])))
    assert [(item["area"], item["difference_id"]) for item in added] == [(28, 1)]


def test_pycocotools_scores_the_exported_boxes_as_perfect(tmp_path: Path, data: Path) -> None:
    export_coco(data, tmp_path / "coco")
    truth = COCO(tmp_path / "coco/annotations/instances_train.json")
    answers = truth.loadRes([{**item, "score": 0.9} for item in truth.dataset["annotations"]])
    evaluation = COCOeval(truth, answers, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize("trainer", ["trl", "easyr1"])
def test_parquet_rows_hold_the_pair_and_a_truth_that_pays(
    tmp_path: Path, data: Path, opened: Any, trainer: Any
) -> None:
    from dig_rl.exchange.parquet import export_parquet

    assert export_parquet(trainer, data, tmp_path / "out") == {"train": 2, "test": 1}
    rows = list(opened(tmp_path / "out/train.parquet"))
    assert len(rows) == 2
    paid = trl.reward_function("", **OPTIONS)
    for row, example in zip(rows, load_examples(data, "train"), strict=True):
        for image, path in zip(row["images"], (example.image_a_path, example.image_b_path), strict=True):
            with Image.open(path) as stored:
                assert np.array_equal(np.asarray(image), np.asarray(stored))
        exact = format_answer(px_to_unit(np.array(example.target_boxes_px), SIZE), "norm1000", SIZE)
        if trainer == "trl":
            assert set(row) == {"prompt", "images", "ground_truth"}
            assert row["prompt"] == [{"role": "user", "content": instruction("union", "norm1000")}]
            (total,) = paid(completions=[exact], completion_ids=[[1]], ground_truth=[row["ground_truth"]])
        else:
            assert set(row) == {"problem", "images", "answer"}
            assert row["problem"].split("<image>") == ["", "", instruction("union", "norm1000")]
            answer = {"response": exact, "response_length": 1, "ground_truth": row["answer"]}
            total = easyr1.compute_score(answer, **OPTIONS)["overall"]
        assert total > 0.97  # thousandths of a picture of 64 pixels


@pytest.mark.parametrize("trainer", ["trl", "easyr1"])
def test_pairs_without_changes_are_exported_where_they_are_wanted(tmp_path: Path, trainer: Any) -> None:
    import pyarrow.parquet as pq

    from dig_rl.exchange.parquet import export_parquet

    data = folder_with(tmp_path / "data", pair("p1"), pair("p2", num_differences=0, differences=[]))
    with pytest.raises(DataError, match=r"pair p2: no difference at all; ALLOW_NO_CHANGE=1 takes such pairs"):
        export_parquet(trainer, data, tmp_path / "out")
    assert export_parquet(trainer, data, tmp_path / "out", allow_no_change=True) == {"train": 2}
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    prompt, truth = ("prompt", "ground_truth") if trainer == "trl" else ("problem", "answer")
    assert rows[0][prompt] == rows[1][prompt]
    answers = ["[]", "[[1, 2, 3, 4]]", "none"]
    for row, expected in zip(rows, ([0.0, 0.1, 0.0], [1.0, 0.0, 0.0]), strict=True):
        truths = [row[truth]] * 3
        paid = trl.reward_function("", **OPTIONS)(completions=answers, ground_truth=truths)
        inputs = [{"response": text, "response_length": 1, "ground_truth": row[truth]} for text in answers]
        assert paid == [score["overall"] for score in easyr1.compute_score(inputs, **OPTIONS)]
        assert paid == [
            score["score"] for score in verl.compute_score_batch([""] * 3, answers, truths, [{}] * 3, **OPTIONS)
        ]
        assert paid == pytest.approx(expected)


@pytest.mark.parametrize("target", ["data-check", "data-export", "train", "warmup", "doctor", "curriculum-preview"])
def test_one_switch_takes_pairs_without_changes_everywhere(target: str) -> None:
    done = subprocess.run(["make", "-n", target, "ALLOW_NO_CHANGE=1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [
        line for line in done.stdout.replace("\\\n", "").split("\n") if "-m launch." in line and "setup" not in line
    ]
    assert "--allow-no-change" in line or "--set data.allow_no_change=true" in line
    assert target not in ("data-check", "data-export") or "--set" not in line


def test_easyr1_finds_the_picture_bytes_where_it_looks(tmp_path: Path, data: Path) -> None:
    """Read without decoding, a picture is a dict whose `bytes` EasyR1's `process_image` opens."""
    import pyarrow.parquet as pq

    from dig_rl.exchange.parquet import export_parquet

    export_parquet("easyr1", data, tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out/test.parquet").to_pylist()
    with Image.open(io.BytesIO(row["images"][1]["bytes"])) as image:
        assert image.size == SIZE
    assert [image["path"] for image in row["images"]] == ["p2_a.png", "p2_b.png"]


def test_prompt_and_truth_follow_the_policys_coordinates(tmp_path: Path, data: Path, opened: Any) -> None:
    from dig_rl.exchange.parquet import export_parquet

    def resized(_size: tuple[int, int]) -> tuple[int, int]:
        return 128, 96

    export_parquet("trl", data, tmp_path / "out", box_target="b", frame="absolute_px", model_image_size_px=resized)
    row = opened(tmp_path / "out/test.parquet")[0]
    assert row["prompt"][0]["content"] == instruction("b", "absolute_px")
    truth = json.loads(row["ground_truth"])
    assert truth["model_image_size_px"] == [128, 96] and truth["target_boxes_px"] == [[12, 9, 20, 15]]
    with pytest.raises(ConfigError, match=r"resize rule; name a config with policy\.path"):
        export_parquet("trl", data, tmp_path / "other", frame="absolute_px")


@pytest.mark.parametrize("target", ["coco", "trl"])
def test_exports_overwrite_nothing_and_leave_nothing_half_done(tmp_path: Path, data: Path, target: str) -> None:
    from dig_rl.exchange.parquet import export_parquet

    def export(out: Path) -> Any:
        return export_coco(data, out) if target == "coco" else export_parquet("trl", data, out)

    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out exists and nothing is overwritten"):
        export(tmp_path / "out")
    (data / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 1"):
        export(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_datasets_reads_an_imported_folder_as_two_image_columns(tmp_path: Path) -> None:
    """Also where a column is null in every row."""
    datasets = pytest.importorskip("datasets", reason="a second's import that only these tests need")
    import_dataset(LAYOUTS["mig-bench"], mig_bench(tmp_path / "in"), tmp_path / "out")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    first = loaded["train"][0]
    assert first["image_a"].size == first["image_b"].size == SIZE
    assert first["pair_id"] == "mig-bench-diff-7996_1_source" and first["differences"][0]["box_a"] is None


@pytest.mark.slow
def test_trl_and_easyr1_ask_the_policy_what_we_ask_it(
    tmp_path: Path, data: Path, opened: Any, random_policy: Path
) -> None:
    """Token for token, pictures included."""
    from trl.data_utils import prepare_multimodal_messages

    from dig_rl.exchange.parquet import export_parquet
    from dig_rl.policy.load import load_frontend

    frontend = load_frontend(PolicyConfig(path=str(random_policy)), "union")
    ours = frontend.encode(load_examples(data, "test")[0])
    for trainer in ("trl", "easyr1"):
        export_parquet(trainer, data, tmp_path / trainer)
        row = opened(tmp_path / trainer / "test.parquet")[0]
        if trainer == "trl":
            messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
        else:  # `RLHFDataset._build_messages` of EasyR1
            content: list[dict[str, Any]] = []
            for number, text in enumerate(row["problem"].split("<image>")):
                content += [{"type": "image", "image": row["images"][number - 1]}] if number else []
                content += [{"type": "text", "text": text}] if text else []
            messages = [{"role": "user", "content": content}]
        theirs = frontend.processor.apply_chat_template(
            [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert theirs["input_ids"].tolist() == ours["input_ids"].tolist()
        assert np.array_equal(theirs["pixel_values"].numpy(), ours["pixel_values"].numpy())


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"launch.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_commands_import_export_and_explain_themselves(tmp_path: Path) -> None:
    wrong = tmp_path / "in"
    mig_bench(wrong, [{"task": "diff"}])
    options = ["--format", "mig-bench", "--from", wrong, "--out", tmp_path / "data"]
    refused = run("data_import", *options)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "entry 3: expected two images, found None; SKIP_BAD=1 leaves such entries out" in refused.stderr
    made = run("data_import", *options, "--skip-bad")
    assert made.returncode == 0, made.stderr
    assert "left out 1 in all, by reason: {'bad_labels': 1}" in made.stdout
    assert "data: 2 pairs {'test': 2}" in made.stdout and "licence: apache-2.0 on its page" in made.stdout
    exported = run("data_export", "--format", "coco", "--data", tmp_path / "data", "--out", tmp_path / "coco")
    assert exported.returncode == 0 and "instances_test.json" in exported.stdout
    told = run("data_import")
    assert told.returncode == 0 and "never overwritten" in told.stdout and "unpack images.zip" in told.stdout
