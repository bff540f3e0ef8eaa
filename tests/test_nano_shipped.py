"""What ships in `nano/`: intact, small enough, and held-out pairs of which training has seen nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from safetensors import safe_open

from dig_rl.data import load_examples, read_records
from tests.tiny import ROOT

POLICY, DATA = ROOT / "nano/policy", ROOT / "nano/data"
MIB = 1 << 20


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_policy_is_the_one_of_its_card_and_small() -> None:
    lines = (ROOT / "nano/policy.sha256").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert listed == {str(path.relative_to(ROOT / "nano")): sha256(path) for path in POLICY.iterdir()}
    assert "policy/model.safetensors" in listed
    assert size(POLICY) <= 15 * MIB
    with safe_open(POLICY / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - not a mapping
    assert 1e6 < sum(map(_product, shapes)) < 5e6


def _product(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def test_pictures_are_those_of_the_manifest_and_small() -> None:
    manifest = json.loads((DATA / "manifest.json").read_text())
    found = {
        str(path.relative_to(DATA)): sha256(path)
        for folder in ("images", "scenes")
        for path in (DATA / folder).iterdir()
    }
    assert found.items() <= manifest["sha256"].items()
    assert size(DATA / "images") <= 15 * MIB
    assert manifest["recipe"]["renderer"] == "blender"


@pytest.mark.parametrize(("split", "fewest"), [("train", 300), ("validation", 100), ("test", 200)])
def test_splits_are_large_enough_and_hold_every_kind_and_number(split: str, fewest: int) -> None:
    examples = load_examples(DATA, split)
    assert len(examples) >= fewest
    assert {example.num_differences for example in examples} == {1, 2, 3, 4}
    kinds = Counter(kind for example in examples for kind in example.kinds)
    assert set(kinds) == {"color", "shape", "size", "material", "add", "remove"}
    assert max(kinds.values()) <= 1.2 * min(kinds.values())
    assert all(width >= 96 and height >= 64 for width, height in (example.image_size_px for example in examples))


def test_no_scene_is_in_two_splits_and_every_scene_has_three_objects() -> None:
    places: dict[str, set[tuple[float, float]]] = {"train": set(), "validation": set(), "test": set()}
    for _, record in read_records(DATA):
        scene = json.loads((DATA / f"scenes/{record.pair_id}.json").read_text())
        objects = [scene[name]["objects"] for name in ("scene_a", "scene_b")]
        assert max(map(len, objects)) >= 3
        places[record.split] |= {(item["x_m"], item["y_m"]) for items in objects for item in items}
    # Places come from a continuum: an object stands where another does only if it is the same one, changed or not.
    assert all(len(of_split) > 300 for of_split in places.values())
    for one, other in combinations(places.values(), 2):
        assert one.isdisjoint(other)
