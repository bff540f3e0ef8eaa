"""Pictures whose tag asks for a turn: every reader and export shows what it shows of equal pixels without a tag."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.ablations.derived import blank_second_images
from dig_rl.data import load_examples
from dig_rl.errors import DataError
from dig_rl.evaluation.answers import StoredAnswer
from dig_rl.exchange.coco import export_coco
from dig_rl.exchange.pictures import read_picture
from dig_rl.exchange.refcoco import find_splits
from dig_rl.image_files import stored_size
from dig_rl.inspection.check import check_folder, figures_of
from dig_rl.inspection.sheet import contact_sheet
from dig_rl.reporting.heldout import _judged
from dig_rl.reporting.panels import draw_panel
from dig_rl.reporting.pictures import embed_image
from dig_rl.types import Example, Look
from launch import data_check, data_export
from tests.data_folders import BOX, SIZE, line_of, pictures, write_folder

SUFFIXES = {3: "jpg", 5: "webp", 6: "jpg", 8: "png"}
"""Tags tried here, and the suffix of the folder's pictures; tests/test_picture_kinds.py has all tags of all formats."""


def folder_of(folder: Path, tag: int, suffix: str = "jpg") -> Path:
    """A data folder of two pairs whose pictures carry a tag, 1 being no turn; boxes are in stored pixels."""
    names = [{f"image_{side}_file_name": f"images/p{index}_{side}.{suffix}" for side in "ab"} for index in range(2)]
    lines = [line_of("p0", **names[0]), line_of("p1", split="test", **names[1])]
    write_folder(folder, lines)
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = tag
    for index, line in enumerate(lines):
        for side, pixels in zip("ab", pictures(index), strict=True):
            Image.fromarray(pixels).save(folder / line[f"image_{side}_file_name"], exif=exif, quality=95)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder without a turn, by the suffix of its pictures; tests must not change it."""
    base = tmp_path_factory.mktemp("plain")
    return {suffix: folder_of(base / suffix / "data", 1, suffix) for suffix in ("png", "jpg", "webp")}


@pytest.fixture(params=SUFFIXES)
def twins(request: pytest.FixtureRequest, tmp_path: Path, plain: dict[str, Path]) -> tuple[Path, Path]:
    """Equal pixels with a tag and without one."""
    suffix = SUFFIXES[request.param]
    return folder_of(tmp_path / "data", request.param, suffix), plain[suffix]


def examples(folder: Path) -> list[Example]:
    return [*load_examples(folder, "train"), *load_examples(folder, "test")]


def paths(folder: Path) -> list[Path]:
    return [Path(path) for one in examples(folder) for path in (one.image_a_path, one.image_b_path)]


def change_in_box(images: Any, box: Any = BOX) -> float:
    """Mean change of the pixels in a box; over 100 where box and picture lie alike, under 100 where they do not."""
    x_min, y_min, x_max, y_max = map(round, box)
    a, b = (np.asarray(image.convert("RGB")).astype(int)[y_min:y_max, x_min:x_max] for image in images)
    return float(np.abs(a - b).mean())


def test_what_is_shown_and_told_is_that_of_the_stored_pixels(twins: tuple[Path, Path]) -> None:
    tagged, plain = twins
    for path, twin in zip(paths(tagged), paths(plain), strict=True):
        assert embed_image(path) == embed_image(twin)
    checked, expected = check_folder(tagged), check_folder(plain)
    assert checked.errors == () and (checked.num_tagged, expected.num_tagged) == (4, 0)
    figures, known = figures_of(checked), figures_of(expected)
    assert figures.pop("pictures_with_a_turning_tag") == 4 and known.pop("pictures_with_a_turning_tag") == 0
    assert figures == known and figures["explained"]["mean"] > 0.9
    without_files = [replace(one, pairs=()) for one in (checked, expected)]
    assert asdict(without_files[0]) | {"folder": 0} == asdict(without_files[1]) | {"folder": 0}


def test_the_pictures_of_board_and_contact_sheet(tmp_path: Path, plain: dict[str, Path]) -> None:
    tagged = folder_of(tmp_path / "data", 6)
    panels = [draw_panel(*paths(folder)[:2], [], "title") for folder in (tagged, plain["jpg"])]
    assert panels[0] == panels[1]
    assert contact_sheet(check_folder(tagged), figures_of(check_folder(tagged)), 2).count(
        embed_image(paths(tagged)[0])[1]
    )


def test_sampler_and_learner_open_the_stored_pixels(twins: tuple[Path, Path]) -> None:
    from dig_rl.policy.load import load_image, load_images

    for one, twin in zip(*map(examples, twins), strict=True):
        assert one.image_size_px == SIZE
        for look in (Look(), Look(swap=True, mirror=True), Look(channels=(1, 2, 0))):
            shown, expected = (load_images(replace(example, look=look)) for example in (one, twin))
            assert all(map(np.array_equal, shown, expected))
            assert not any(image.getexif() or image.info for image in shown)  # or vLLM turns them
        image = load_image(one.image_a_path, "here")
        assert np.array_equal(image, load_image(twin.image_a_path, "here")) and not image.getexif()


def test_the_control_s_folder_and_stored_answers(twins: tuple[Path, Path], tmp_path: Path) -> None:
    gray = blank_second_images(twins[0], tmp_path / "gray")
    assert check_folder(gray).num_tagged == 2  # the other two are even grays
    answer = StoredAnswer(
        pair_id="p0",
        image_a=str(paths(twins[0])[0]),
        status="empty",
        predicted_boxes_px=(),
        target_boxes_px=(tuple(map(float, BOX)),),
    )
    assert _judged(answer).truth.example.image_size_px == SIZE


@pytest.mark.parametrize("trainer", ["trl", "easyr1"])
def test_parquet_files_open_as_stored(tmp_path: Path, trainer: Any, plain: dict[str, Path]) -> None:
    datasets = pytest.importorskip("datasets")
    from dig_rl.exchange.parquet import export_parquet

    for tag, suffix in SUFFIXES.items():
        folder = folder_of(tmp_path / f"data-{tag}", tag, suffix)
        export_parquet(trainer, folder, tmp_path / f"out-{tag}")
        rows = datasets.Dataset.from_parquet(str(tmp_path / f"out-{tag}/test.parquet"), cache_dir=str(tmp_path / "c"))
        images = rows[0]["images"]
        assert change_in_box(images) > 100
        for image, twin in zip(images, paths(plain[suffix])[2:], strict=True):
            assert np.array_equal(image.convert("RGB"), Image.open(twin).convert("RGB"))
    raw = rows.cast_column("images", datasets.List(datasets.Image(decode=False)))[0]["images"]
    assert [image["path"] for image in raw] == ["p1_a.png.png", "p1_b.png.png"]
    export_parquet(trainer, plain["jpg"], tmp_path / "plain")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "plain/test.parquet"), cache_dir=str(tmp_path / "c"))
    raw = rows.cast_column("images", datasets.List(datasets.Image(decode=False)))[0]["images"]
    assert [image["bytes"] for image in raw] == [path.read_bytes() for path in paths(plain["jpg"])[2:]]


def test_a_damaged_tag_does_not_stop_who_opens_an_export(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from dig_rl.exchange.parquet import export_parquet

    folder = write_folder(tmp_path / "data", [line_of("p0")])
    Image.fromarray(pictures(0)[0]).save(folder / "images/p0_a.png", exif=b"rubbish")
    export_parquet("trl", folder, tmp_path / "out")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "out/train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(rows[0]["images"][0], pictures(0)[0])


def test_coco_files_lie_beside_copies_that_nobody_turns(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", 6)
    Image.fromarray(pictures(0)[0]).save(folder / "images/p0_a.jpg")  # one without a tag goes along
    export_coco(folder, tmp_path / "out")
    for split in ("train", "test"):
        known = json.loads((tmp_path / f"out/annotations/instances_{split}.json").read_text())
        assert "relative to this folder" in known["info"]["description"]
        opened = [Image.open(tmp_path / "out" / entry["file_name"]) for entry in known["images"]]
        assert all(image.size == SIZE and not image.getexif() for image in opened)
        x, y, width, height = known["annotations"][0]["bbox"]
        assert change_in_box(opened, (x, y, x + width, y + height)) > 100
    names = sorted(path.name for path in (tmp_path / "out/images").iterdir())
    assert names == ["000000.jpg", "000001.png", "000002.png", "000003.png"]
    assert (tmp_path / "out/images/000000.jpg").read_bytes() == (folder / "images/p0_a.jpg").read_bytes()


def test_coco_says_which_picture_it_cannot_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [line_of("p0")])
    (folder / "images/p0_b.png").unlink()
    with pytest.raises(DataError, match=r"pair p0: image .*p0_b.png cannot be read"):
        export_coco(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_warm_up_s_pictures(tmp_path: Path, plain: dict[str, Path]) -> None:
    from datasets import Dataset, Image, List

    from dig_rl.warmup import _picture

    folder = folder_of(tmp_path / "data", 3)
    files = [*paths(folder), *paths(plain["jpg"])]
    rows = Dataset.from_list([{"images": [_picture(str(path))]} for path in files]).cast_column("images", List(Image()))
    images = [row["images"][0] for row in rows]
    assert all(map(np.array_equal, images[:4], images[4:]))


def test_refcoco_s_boxes_are_in_stored_pixels(tmp_path: Path) -> None:
    picture = folder_of(tmp_path / "data", 6) / "images/p0_b.jpg"
    line = {"image": "p0_b.jpg", "width": SIZE[0], "height": SIZE[1], "bbox": list(BOX), "sent": "white square"}
    shutil.copy(picture, tmp_path / "p0_b.jpg")
    (tmp_path / "refcoco_val.jsonl").write_text(json.dumps(line) + "\n")
    (expression,) = find_splits(tmp_path)["refcoco_val"].read(tmp_path)
    assert expression.image_size_px == SIZE
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "p0_b.jpg", format="PNG")
    with pytest.raises(DataError, match="line 1: the picture has 16 bits a channel"):
        find_splits(tmp_path)["refcoco_val"].read(tmp_path)


def test_the_check_counts_tags_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["data_check", "--data", str(folder_of(tmp_path / "data", 8))])
    data_check.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "turning tags" in line]
    assert "4 of 4 pictures have one; boxes are taken in stored pixels" in line
    assert "datasets.load_dataset" in line and "exiftool -Orientation=" in line


def test_the_export_says_where_its_pictures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plain: dict[str, Path]
) -> None:
    for data, expected in ((folder_of(tmp_path / "data", 8), tmp_path / "out"), (plain["jpg"], plain["jpg"])):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        options = ["--format", "coco", "--data", str(data), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["data_export", *options])
        data_export.main()
        assert f"pictures in {expected}\n" in capsys.readouterr().out


def test_a_size_after_the_turn_is_explained(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", 6)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    turned = [line | {"width": SIZE[1], "height": SIZE[0]} for line in lines]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in turned))
    with pytest.raises(
        DataError, match=r"p0: image images/p0_a.jpg is 64x48, the line says 48x64, which is what its tur"
    ):
        load_examples(folder, "train")


@pytest.mark.parametrize(("size", "ratio"), [((1, 300), "300"), ((300, 1), "300"), ((2, 401), "200.5")])
def test_a_picture_too_long_for_any_policy_names_its_pair(tmp_path: Path, size: tuple[int, int], ratio: str) -> None:
    box = [0.0, 0.0, 1.0, 1.0]
    difference = line_of("p0")["differences"][0] | {"box": box, "box_a": box, "box_b": box}
    folder = write_folder(tmp_path, [line_of("p0", width=size[0], height=size[1], differences=[difference])])
    for side in "ab":
        Image.new("RGB", size).save(folder / f"images/p0_{side}.png")
    expected = f"image images/p0_a.png is {size[0]}x{size[1]}, one side {ratio} times the other; expected at most 200"
    with pytest.raises(DataError, match=f"line 1, pair p0: {expected}"):
        load_examples(folder, "train")
    for read in (stored_size, lambda path: read_picture(path, "entry 3")):  # RefCOCO's and an import's
        with pytest.raises(DataError, match="expected at most 200 times"):
            read(folder / "images/p0_a.png")
    errors = [str(finding) for finding in check_folder(folder).errors if "expected at most 200" in finding.problem]
    assert len(errors) == 2 and expected in errors[0] and "p0_b.png" in errors[1]
