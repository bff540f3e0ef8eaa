"""A sample of a split has the split's own shares, whatever the order of the file."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_rl.config import load_config
from dig_rl.controls import same_answer_frac
from dig_rl.evaluation.answers import StoredAnswer, load_true_pairs, write_answers
from dig_rl.evaluation.subset import largest_remainder, lowest_hashes, representative_pairs
from dig_rl.train import read_inputs
from dig_rl.types import Example
from launch import compare
from tests.data_folders import line_of, write_folder
from tests.tiny import ROOT


def split_of(counts: dict[int, int]) -> list[Example]:
    """So many pairs by number of changes, in the order of that number, as `make data` writes them."""
    box = (0.0, 0.0, 8.0, 8.0)
    return [
        Example(f"pair-{changes}-{index:03d}", "", "", (32, 32), (box,) * changes, ("add",) * changes, "test")
        for changes, pairs in counts.items()
        for index in range(pairs)
    ]


def counts_of(examples: list[Example]) -> dict[int, int]:
    return dict(Counter(example.num_differences for example in examples))


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ({1: 50, 2: 50, 3: 50, 4: 50}, 40, {1: 10, 2: 10, 3: 10, 4: 10}),
        ({1: 50, 2: 50, 3: 50, 4: 50}, 3, {1: 1, 2: 1, 3: 1}),  # one fewer than there are numbers of changes
        ({1: 50, 2: 50, 3: 50, 4: 50}, 1, {1: 1}),
        ({0: 50, 4: 50}, 1, {4: 1}),  # no change, no F1
        ({0: 20, 1: 60, 2: 20}, 10, {0: 2, 1: 6, 2: 2}),
        ({1: 7, 2: 2, 3: 1}, 4, {1: 3, 2: 1}),  # quotas 2.8, 0.8, 0.4
        ({1: 1, 2: 1, 3: 98}, 50, {1: 1, 3: 49}),  # quotas 0.5, 0.5, 49.0
        ({1: 1, 2: 1, 3: 98}, 99, {1: 1, 2: 1, 3: 97}),
        ({2: 5}, 2, {2: 2}),
    ],
)
def test_the_sample_has_the_shares_of_the_split(counts: dict[int, int], most: int, expected: dict[int, int]) -> None:
    split = split_of(counts)
    chosen = representative_pairs(split, most)
    assert counts_of(chosen) == expected
    assert [split.index(example) for example in chosen] == sorted(split.index(example) for example in chosen)


@pytest.mark.parametrize("most", [None, 6, 7, 1000])
def test_as_many_as_there_are_is_all_of_them_in_order(most: int | None) -> None:
    split = split_of({2: 3, 0: 1, 1: 2})
    assert representative_pairs(split, most) == split


def test_the_sample_depends_on_the_split_alone_and_grows_by_adding() -> None:
    split = split_of({1: 30, 2: 30, 3: 30})
    shuffled = random.Random(0).sample(split, len(split))
    few, many = ({example.pair_id for example in representative_pairs(split, most)} for most in (12, 60))
    assert {example.pair_id for example in representative_pairs(shuffled, 12)} == few < many
    spread = sorted(int(pair_id[-3:]) for pair_id in few)
    assert spread[-1] > 15 and spread != list(range(spread[0], spread[0] + 12))  # not the first ones


@settings(max_examples=40)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.data())
def test_parts_add_up_and_stay_within_one_of_their_quota(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    parts = largest_remainder(sizes, total)
    assert sum(parts) == total
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size and abs(part * sum(sizes) - size * total) < sum(sizes)


def test_ids_of_any_text_are_ranked() -> None:
    ids = ["a\x85b", "\ud800", "é", "", "z"]
    assert len(lowest_hashes(ids, 3)) == 3 and lowest_hashes(ids, 5) == lowest_hashes(ids, None) == [0, 1, 2, 3, 4]
    assert {ids[index] for index in lowest_hashes(ids, 2)} == {
        ids[::-1][index] for index in lowest_hashes(ids[::-1], 2)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs each of 1, 2 and 3 changes, one after the other, in every split."""
    changes = [1 + index // 4 for index in range(12)]
    splits = ["train", "validation", "test"]
    lines: list[Any] = []
    for number, count in [(3 * index + place, count) for index, count in enumerate(changes) for place in range(3)]:
        line = line_of(f"p{number}", split=splits[number % 3], num_differences=count)
        lines.append(line | {"differences": line["differences"] * count})
    return write_folder(tmp_path / "data", lines)


def test_training_and_evaluation_ask_about_the_same_sample(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "stages.toml").write_text('[[stages]]\nname = "all"\ndifferences = [1, 3]\nsteps = 1\n')
    overrides = [
        f'data.path="{folder}"',
        f'curriculum="{tmp_path / "stages.toml"}"',
        "evaluation={every_steps=1, max_pairs=6}",
    ]
    ids = {}
    for seed in (1, 2):
        config = load_config([ROOT / "launch/configs/tiny.toml"], [*overrides, f"seed={seed}"])
        inputs = read_inputs(config, ROOT)
        assert counts_of(inputs.heldout) == counts_of(inputs.validation) == {1: 2, 2: 2, 3: 2}
        ids[seed] = [example.pair_id for example in (*inputs.heldout, *inputs.validation)]
    assert ids[1] == ids[2]
    truths = load_true_pairs(folder, "test", "union", 6)
    assert [truth.example for truth in truths] == inputs.heldout
    assert len(load_true_pairs(folder, "test", "union")) == 12


def test_a_comparison_is_told_with_its_number_of_pairs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        answers = [
            StoredAnswer(
                pair_id=truth.example.pair_id,
                status="empty",
                predicted_boxes_px=(),
                target_boxes_px=truth.example.target_boxes_px,
            )
            for truth in load_true_pairs(folder, "test", "union", 5)
        ]
        write_answers(tmp_path / f"{name}.jsonl", answers)
    options = ["--a", str(tmp_path / "a.jsonl"), "--b", str(tmp_path / "b.jsonl"), "--data", str(folder)]
    monkeypatch.setattr("sys.argv", ["", *options, "--out", str(tmp_path), "--set", "evaluation.max_pairs=5"])
    compare.main()
    assert "5 pairs\n" in capsys.readouterr().out
    assert "split test, 5 pairs" in (tmp_path / "comparison.md").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["pairs"] == 5


def test_the_blank_image_control_asks_about_pairs_of_every_kind(tmp_path: Path) -> None:
    asked: list[list[Example]] = []

    class Rollouts:
        def answer(self, examples: list[Example]) -> list[Any]:
            asked.append(examples)
            return [SimpleNamespace(completions=[SimpleNamespace(text="[]")])] * len(examples)

    split = split_of({1: 40, 2: 40, 0: 9})
    assert same_answer_frac(Rollouts(), split, tmp_path) == 1.0  # type: ignore[arg-type]
    assert counts_of(asked[0]) == {1: 8, 2: 8}
