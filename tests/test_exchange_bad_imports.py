"""Imports of unusable entries and wrong folders: each is named, no code runs, and nothing half-done is left."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.errors import DataError
from dig_rl.exchange.importing import LAYOUTS, ImportSummary, import_dataset
from tests.published_layouts import (
    CLEVR_BOXES,
    OBJECTS,
    SIZE,
    clevr_change,
    coco_inpainted,
    kubric_change,
    mig_bench,
    mig_entry,
    outline,
    picture,
    virat_std,
)
from tests.test_exchange_import import imported
from tests.test_exchange_pickles import Calls


def spoil_virat(boxes: Any, index: Any = "7") -> Callable[[Path], Path]:
    return lambda root: virat_std(root, {index: boxes})


def spoil_picture(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        virat_std(root, {"7": [[1, 2, 9, 12]]})
        change(root / "7_2.png")
        return root

    return make


def huge(path: Path) -> None:
    """A PNG of a few bytes whose header promises four billion pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def large(path: Path) -> None:
    Image.new("L", (9_000, 8_000)).save(path)


def spoil_mig(*entry: Any) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root.parent / "secret.png").parent.mkdir(parents=True, exist_ok=True)
        picture(root.parent / "secret.png")
        return mig_bench(root, [mig_entry(*entry)])

    return make


def spoil_coco(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        change(coco_inpainted(root) / "train")
        return root

    return make


def annotate(*annotations: Any) -> Callable[[Path], Any]:
    return lambda root: np.save(root / "metadata" / "9.npy", np.array([*annotations, OBJECTS[0]], dtype=object))


def spoil_clevr(label: Any) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        boxes = clevr_change(root) / "change_captions_with_bbox.json"
        boxes.write_text(json.dumps({**CLEVR_BOXES, "0": label}))
        return root

    return make


def spoil_kubric(root: Path) -> Path:
    Image.new("RGB", SIZE).save(kubric_change(root) / "mask_12_00001.png")
    return root


NAN = float("nan")
STATIC = ["static_diff/7996_1_source.png", "static_diff/7996_1_target.png"]
BAD_ENTRIES: list[tuple[str, Callable[[Path], Path], str, str]] = [
    ("virat-std", spoil_virat([[1, NAN, 9, 12]]), r"annotations.npy, entry '7': expected 4 finite", "bad_box"),
    ("virat-std", spoil_virat([[1, 2, float("inf"), 12]]), "entry '7': expected 4 finite", "bad_box"),
    ("virat-std", spoil_virat([[1, 2, 9]]), "entry '7': expected 4 finite", "bad_box"),
    ("virat-std", spoil_virat([["1", "2", "9", "12"]]), "entry '7': expected 4 finite", "bad_box"),
    ("virat-std", spoil_virat([[1, 2, 66, 12]]), "entry '7': box .*x_max <= 64 and", "bad_box"),
    ("virat-std", spoil_virat([[-5, 2, 60, 12]]), "entry '7': box .*expected 0 <= x_min", "bad_box"),
    ("virat-std", spoil_virat([[9, 2, 9, 12]]), "entry '7': box .*x_min < x_max", "bad_box"),
    ("virat-std", spoil_virat([[64, 0, 65, 12]]), "entry '7': box .*x_min < x_max", "bad_box"),
    ("virat-std", spoil_virat([]), "entry '7': expected at least one change", "no_difference"),
    ("virat-std", spoil_virat(3), "entry '7': expected a list", "bad_labels"),
    ("virat-std", spoil_virat([[1, 2, 9, 12]] * 1001), "at most 1000 boxes", "bad_labels"),
    ("virat-std", spoil_virat([[1, 2, 9, 12]], "../secret"), "expected a path within .*secret", "unsafe_path"),
    ("virat-std", spoil_virat([[1, 2, 9, 12]], "/etc/7"), "expected a path within", "unsafe_path"),
    ("virat-std", spoil_virat([[1, 2, 9, 12]], "a b"), "image a b.png does not exist", "missing_image"),
    ("virat-std", spoil_picture(Path.unlink), "entry '7': image 7_2.png does not exist", "missing_image"),
    ("virat-std", spoil_picture(lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")), "PNG, JPEG", "bad_image"),
    ("virat-std", spoil_picture(lambda path: path.write_bytes(path.read_bytes()[:-40])), "damaged", "bad_image"),
    ("virat-std", spoil_picture(lambda path: path.write_bytes(b"")), "cannot open it", "bad_image"),
    ("virat-std", spoil_picture(huge), "more than 64,000,000 pixels", "bad_image"),
    ("virat-std", spoil_picture(large), "9000x8000, more than 64,000,000 pixels", "bad_image"),
    (
        "virat-std",
        spoil_picture(lambda path: Image.fromarray(np.zeros((32, 64), np.uint16)).save(path)),
        "16 bits a channel",
        "bad_image",
    ),
    (
        "virat-std",
        spoil_picture(lambda path: picture(path, (32, 64))),
        "entry '7': the two pictures differ in size, 64x32 and 32x64",
        "sizes_differ",
    ),
    ("mig-bench", spoil_mig("diff", ["../secret.png"] * 2, [0, 0, 1, 1]), "entry 3: expected a path", "unsafe_path"),
    ("mig-bench", spoil_mig("diff", ["\0.png"] * 2, [0, 0, 1, 1]), "entry 3: expected a path", "unsafe_path"),
    ("mig-bench", spoil_mig("diff", STATIC[:1], [0, 0, 1, 1]), "entry 3: expected two images", "bad_labels"),
    ("mig-bench", spoil_mig("diff", STATIC[::-1], None), "entry 3: expected 4 finite numbers, found None", "bad_box"),
    ("mig-bench", spoil_mig("diff", STATIC[::-1], [0, 0, 1, 1.5]), "entry 3: box .*y_max <= 32", "bad_box"),
    ("mig-bench", spoil_mig("diff", STATIC, [0, 0, 1, 1]), "entry 3: pair mig.* is there twice", "duplicate"),
    ("clevr-change", spoil_clevr(None), "entry 0: expected bbox_before and bbox_after", "missing_labels"),
    ("clevr-change", spoil_clevr({"bbox_before": [1, 2]}), "entry 0: expected 4 finite numbers", "bad_box"),
    ("clevr-change", spoil_clevr({"bbox_after": None}), "entry 0: expected at least one change", "no_difference"),
    ("kubric-change", spoil_kubric, "pair 12: mask mask_12_00001.png: expected one channel", "bad_image"),
    ("coco-inpainted", spoil_coco(annotate(3, 4)), r"9.npy, inpainted/9_mask6.png: .*polygons", "bad_labels"),
    ("coco-inpainted", spoil_coco(annotate({"segmentation": {"counts": "x"}}, 3)), "expected polygons", "bad_labels"),
    ("coco-inpainted", spoil_coco(annotate(outline(1, 1, NAN, 2), OBJECTS[0])), "expected 2 finite", "bad_box"),
    ("coco-inpainted", spoil_coco(annotate()), "mask 6 names more objects than the 1", "bad_labels"),
    ("coco-inpainted", spoil_coco(lambda root: (root / "metadata/9.npy").unlink()), "not exist", "missing_labels"),
]


@pytest.mark.parametrize(("name", "make", "expected", "reason"), BAD_ENTRIES)
def test_an_unusable_entry_stops_the_import_or_is_counted(
    tmp_path: Path, name: str, make: Callable[[Path], Path], expected: str, reason: str
) -> None:
    root = make(tmp_path / "in")
    with pytest.raises(DataError, match=f"{expected}.*SKIP_BAD=1"):
        import_dataset(LAYOUTS[name], root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    if name == "virat-std":  # its only entry
        with pytest.raises(DataError, match=f"none of its 1 entries is usable {{'{reason}': 1}}.*{expected}"):
            import_dataset(LAYOUTS[name], root, tmp_path / "out", skip_bad=True)
        return
    summary = import_dataset(LAYOUTS[name], root, tmp_path / "out", skip_bad=True)
    assert set(summary.skipped) == {reason} and expected.split(".*")[0].replace("\\", "") in summary.messages[0]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["skipped"] == dict(summary.skipped) and manifest["num_pairs"] == summary.num_pairs > 0


def test_boxes_up_to_a_pixel_outside_are_clipped(tmp_path: Path) -> None:
    pairs = imported("virat-std", virat_std(tmp_path / "in", {"7": [[-0.5, 0, 65, 32.01]]}), tmp_path / "out")
    assert pairs["virat-std-7"].differences[0].box == (0, 0, 64, 32)


BROKEN_LAYOUTS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("coco-inpainted", lambda root: root.mkdir() or root, "expected coco_inpainted/ with train/"),
    (
        "coco-inpainted",
        spoil_coco(lambda root: (root / "data_split.pkl").unlink()),
        "train lacks data_split.pkl; expected",
    ),
    (
        "coco-inpainted",
        spoil_coco(lambda root: (root / "data_split.pkl").write_bytes(b"\x80\x04].")),
        "data_split.pkl: expected a dict",
    ),
    ("kubric-change", lambda root: root.mkdir() or root, "expected kubric_change/ with <index>_0.png"),
    ("virat-std", lambda root: root.mkdir() or root, "lacks annotations.npy"),
    ("mig-bench", lambda root: root.mkdir() or root, "lacks MIG_data.json, images"),
    ("mig-bench", lambda root: (mig_bench(root) / "MIG_data.json").write_text("[]") and root, "none among 0"),
    ("mig-bench", lambda root: (mig_bench(root) / "MIG_data.json").write_text("[" * 9000) and root, "not valid JSON"),
    ("mig-bench", lambda root: (mig_bench(root) / "MIG_data.json").write_text("{}") and root, "a JSON list, found"),
    (
        "clevr-change",
        lambda root: (clevr_change(root) / "change_captions_with_bbox.json").unlink() or root,
        "has no boxes: change_captions.json holds sentences only",
    ),
    ("clevr-change", lambda root: (clevr_change(root) / "splits.json").unlink() or root, "lacks splits.json"),
    (
        "clevr-change",
        lambda root: (clevr_change(root) / "splits.json").write_text('{"train": ["../0"]}') and root,
        "splits.json, train: expected picture numbers",
    ),
]


@pytest.mark.parametrize(("name", "make", "expected"), BROKEN_LAYOUTS)
def test_a_folder_that_is_not_as_published_is_told(
    tmp_path: Path, name: str, make: Callable[[Path], Path], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        import_dataset(LAYOUTS[name], make(tmp_path / "in"), tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["coco-inpainted", "virat-std", "metadata"])
def test_code_in_a_published_pickle_is_not_run(tmp_path: Path, name: str) -> None:
    import pickle

    sentinel = tmp_path / "run"
    hostile = Calls(os.system, f"touch {sentinel}")
    if name == "virat-std":
        root = virat_std(tmp_path / "in")
        np.save(root / "annotations.npy", {"7": hostile})  # type: ignore[arg-type]
    else:
        root = coco_inpainted(tmp_path / "in")
        if name == "metadata":
            annotate(hostile)(root / "train")
        else:
            (root / "train" / "data_split.pkl").write_bytes(pickle.dumps({"train": hostile}))
    with pytest.raises(DataError, match=r"a call of posix\.system"):
        import_dataset(LAYOUTS["coco-inpainted" if name == "metadata" else name], root, tmp_path / "out")
    assert not sentinel.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("mine"), lambda path: path.symlink_to("x")])
def test_nothing_is_overwritten(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    root = virat_std(tmp_path / "in")
    make(tmp_path / "out")
    with pytest.raises(DataError, match="out exists and nothing is overwritten; name a new folder with OUT="):
        import_dataset(LAYOUTS["virat-std"], root, tmp_path / "out")


def test_an_interrupted_import_leaves_nothing_and_a_killed_one_is_begun_anew(tmp_path: Path) -> None:
    root = clevr_change(tmp_path / "in")

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(LAYOUTS["clevr-change"], root, tmp_path / "out", on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    left = tmp_path / ".out.partial"  # as kill -9 leaves it
    (left / "images").mkdir(parents=True)
    (left / ".lock").touch()
    (left / "images" / "half.png").write_bytes(b"half")
    imported("clevr-change", root, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert not (tmp_path / "out/images/half.png").exists() and not (tmp_path / "out/.lock").exists()


def test_two_imports_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    root = virat_std(tmp_path / "in")
    second: list[str] = []

    def meanwhile(done: int, _total: int) -> None:
        if done == 0:
            with pytest.raises(DataError, match="another process is making") as refused:
                import_dataset(LAYOUTS["virat-std"], root, tmp_path / "out")
            second.append(str(refused.value))

    summary = import_dataset(LAYOUTS["virat-std"], root, tmp_path / "out", on_progress=meanwhile)
    assert isinstance(summary, ImportSummary) and summary.num_pairs == 2 and len(second) == 1


def test_a_folder_of_ones_own_beside_the_new_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files that are not ours"):
        import_dataset(LAYOUTS["virat-std"], virat_std(tmp_path / "in"), tmp_path / "out")
    assert (tmp_path / ".out.partial" / "mine.txt").read_text() == "mine"
