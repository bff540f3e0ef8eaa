"""Line feeds alone end a line of JSON Lines, whatever else an answer, a name or an editor put into the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dig_rl.config import Config
from dig_rl.durable import json_lines
from dig_rl.evaluation.answers import StoredAnswer, read_answers, write_answers
from dig_rl.exchange.refcoco import find_splits
from dig_rl.metrics import read_metrics
from dig_rl.recording import read_recording, recording_path, write_recording
from dig_rl.reporting.pictures import MatchRule, galleries_of_pairs
from dig_rl.types import Completion, Example, RolloutGroup, SampledGroup

SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\n", "\r\n"]
"""All that `str.splitlines` splits at."""
BOX = (8.0, 8.0, 24.0, 24.0)


def text(separator: str) -> str:
    return f"a {separator}line{separator} [[250, 250, 750, 750]]"


def as_an_editor_leaves_it(path: Path) -> None:
    """With a byte order mark, carriage returns and a blank last line."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")


def unescaped(path: Path) -> None:
    """JSON may hold every separator but the control characters as it is; other writers leave them so."""
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_lines_end_at_line_feeds_without_mark_and_blank_end() -> None:
    every = "".join(separator for separator in SEPARATORS if "\n" not in separator)
    assert json_lines(f"\ufeff{every}1\r\n\n2\n\n \r\n".encode()) == [f"{every}1\r".encode(), b"", b"2"]
    assert json_lines(b'{"whole": 1}\n{"torn": ') == [b'{"whole": 1}', b'{"torn": ']
    assert json_lines(b"") == json_lines(b"\xef\xbb\xbf\n") == []


@pytest.mark.parametrize("change", [None, unescaped, as_an_editor_leaves_it])
def test_stored_answers_are_read_and_shown_whatever_they_hold(tmp_path: Path, change) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(picture)
    written = [
        StoredAnswer(
            pair_id=f"pair{separator}{index}",
            image_a=str(picture),
            image_b=str(picture),
            text=text(separator),
            status="ok",
            predicted_boxes_px=(BOX,),
            target_boxes_px=(BOX,),
            f1=1.0,
        )
        for index, separator in enumerate(SEPARATORS[:8])
    ]
    path = tmp_path / "predictions_after.jsonl"
    write_answers(path, written)
    if change:
        change(path)
    assert read_answers(path) == written
    galleries, problems = galleries_of_pairs(tmp_path, MatchRule(0.5, 5.0, 2.0))
    assert problems == ["predictions_before.jsonl is not there: no held-out pictures from that moment."]
    assert {one.pair_id: one.answers[0].text for one in galleries[0].pictures} == {
        answer.pair_id: answer.text for answer in written
    }


@pytest.mark.parametrize("change", [None, unescaped, as_an_editor_leaves_it])
def test_recorded_rollouts_are_read_whatever_they_hold(tmp_path: Path, change) -> None:
    example = Example("pair\x85-9", "a.png", "b.png", (32, 32), (BOX,), ("color",), "train", (0.5,))
    completions = tuple(Completion((1,), (-0.1,), text(separator), "stop", 0) for separator in SEPARATORS)
    group = RolloutGroup(SampledGroup(example, (1,), completions, 0, (32, 32), 0), (None,) * len(completions), "dual")
    write_recording(tmp_path, 4, [group], "norm1000", text("\u2028"), Config(), 9)
    if change:
        packed, plain = recording_path(tmp_path, 4), tmp_path / "plain"
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
        change(plain)
        packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_recording(tmp_path, 4).groups == (group,)


def test_metrics_are_read_as_an_editor_leaves_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "stage": "one\u2028two"}, {"step": 2, "stage": "\x85"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    as_an_editor_leaves_it(path)
    assert read_metrics(tmp_path) == rows
    with path.open("ab") as file:
        file.write(b'{"step": 3, "torn')
    path.write_bytes(path.read_bytes().replace(b"\r\n\r\n", b"\r\n"))
    assert read_metrics(tmp_path) == rows


def test_published_expressions_are_read_whatever_they_hold(tmp_path: Path) -> None:
    (tmp_path / "train2014").mkdir()
    Image.fromarray(np.zeros((40, 80, 3), dtype=np.uint8)).save(tmp_path / "train2014/one.jpg")
    sentences = [f"the left{separator}dog" for separator in SEPARATORS]
    rows = [
        {"image": "data/coco/train2014/one.jpg", "sent": sent, "bbox": list(BOX), "height": 40, "width": 80}
        for sent in sentences
    ]
    path = tmp_path / "refcoco_val.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    as_an_editor_leaves_it(path)
    assert [one.text for one in find_splits(tmp_path)["refcoco_val"].read(tmp_path)] == sentences
