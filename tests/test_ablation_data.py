"""Data of the controls: labels dealt to other pairs, and second images without anything."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dig_rl.ablations.derived import blank_second_images, shuffle_labels
from dig_rl.data import PairRecord, load_examples, read_records
from dig_rl.errors import DataError
from tests.data_folders import line_of, write_folder

COUNTS = [1, 1, 1, 1, 1, 2, 2, 3]
"""Changes of the training pairs; the only one with three has nobody to change labels with."""


def difference(place: float) -> dict[str, Any]:
    """A change whose box says which one it is."""
    box = [place, 1.0, place + 4, 9.0]
    return line_of("p0")["differences"][0] | {"box": box, "box_a": box, "box_b": box}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    places = iter(range(99))
    splits = ["train"] * len(COUNTS) + ["validation", "test", "test"]
    lines = [
        line_of(
            f"p{index}",
            num_differences=count,
            differences=[difference(next(places)) for _ in range(count)],
            split=split,
        )
        for index, (count, split) in enumerate(zip([*COUNTS, 1, 1, 2], splits, strict=True))
    ]
    return write_folder(tmp_path / "source", lines)


def records(folder: Path) -> list[PairRecord]:
    return [record for _, record in read_records(folder)]


def boxes(folder: Path, split: str) -> dict[str, Any]:
    return {example.pair_id: example.target_boxes_px for example in load_examples(folder, split)}


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_pairs_have_the_labels_of_others_with_as_many_changes(source: Path, tmp_path: Path, seed: int) -> None:
    out = shuffle_labels(source, tmp_path / "out", split="train", seed=seed)
    before, after = boxes(source, "train"), boxes(out, "train")
    assert before.keys() == after.keys()
    assert [len(after[f"p{index}"]) for index in range(len(COUNTS))] == COUNTS
    kept = [pair_id for pair_id in before if before[pair_id] == after[pair_id]]
    assert kept == ["p7"]  # no other pair has three
    assert Counter(before.values()) == Counter(after.values())  # every label is used once
    for split in ("validation", "test"):
        assert boxes(out, split) == boxes(source, split)


def test_the_deal_follows_from_the_seed(source: Path, tmp_path: Path) -> None:
    folders = [shuffle_labels(source, tmp_path / f"out-{run}", split="train", seed=1) for run in range(2)]
    assert records(folders[0]) == records(folders[1])
    deals = {str(boxes(shuffle_labels(source, tmp_path / f"s{s}", split="train", seed=s), "train")) for s in range(9)}
    assert len(deals) > 5


def test_pairs_of_other_picture_sizes_do_not_change_labels(tmp_path: Path) -> None:
    small = [line_of(f"p{index}", differences=[difference(index)]) for index in range(2)]
    large = [line_of(f"p{index}", differences=[difference(index)], width=96, height=64) for index in (2, 3)]
    source = write_folder(tmp_path / "source", [*small, *large])
    for path in sorted((source / "images").glob("p[23]_*")):
        Image.new("RGB", (96, 64)).save(path)
    after = boxes(shuffle_labels(source, tmp_path / "out", split="train", seed=0), "train")
    assert [after[f"p{index}"][0][0] for index in range(4)] == [1.0, 0.0, 3.0, 2.0]


def test_blank_folders_show_nothing_in_any_second_image(source: Path, tmp_path: Path) -> None:
    out = blank_second_images(source, tmp_path / "out")
    for split in ("train", "validation", "test"):
        assert boxes(out, split) == boxes(source, split)
        for old, new in zip(load_examples(source, split), load_examples(out, split), strict=True):
            with Image.open(new.image_b_path) as image:
                assert image.size == old.image_size_px and len(image.getcolors()) == 1
            assert Path(new.image_a_path).read_bytes() == Path(old.image_a_path).read_bytes()


def test_images_take_no_room_twice_and_the_source_stays(source: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    out = shuffle_labels(source, tmp_path / "out", split="train", seed=0)
    assert (out / "images/p3_b.png").samefile(source / "images/p3_b.png")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_a_folder_is_made_once_and_never_half(source: Path, tmp_path: Path) -> None:
    left_over = tmp_path / "out.partial"
    left_over.mkdir()
    (left_over / "metadata.jsonl").write_text("of a killed command")
    out = shuffle_labels(source, tmp_path / "out", split="train", seed=3)
    assert not left_over.exists()
    written = (out / "metadata.jsonl").stat().st_mtime_ns
    assert shuffle_labels(source, out, split="train", seed=3) == out
    assert (out / "metadata.jsonl").stat().st_mtime_ns == written
    with pytest.raises(DataError, match=r"was made from other pairs .* remove it and run again"):
        shuffle_labels(source, out, split="train", seed=4)
    with (source / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(line_of("p0") | {"pair_id": "new"}) + "\n")
    with pytest.raises(DataError, match="was made from other pairs"):
        shuffle_labels(source, out, split="train", seed=3)


def test_an_image_that_is_not_there_or_lies_outside_is_named(source: Path, tmp_path: Path) -> None:
    (source / "images/p2_b.png").unlink()
    with pytest.raises(DataError, match=r"pair p2: image images/p2_b.png does not exist"):
        shuffle_labels(source, tmp_path / "out", split="train", seed=0)
    assert not (tmp_path / "out").exists()
    write_folder(source, [line_of("p0", image_a_file_name="../secret.png")])
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.png")
    with pytest.raises(DataError, match="lies outside the data folder"):
        blank_second_images(source, tmp_path / "out")
