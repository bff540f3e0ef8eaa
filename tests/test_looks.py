"""Looks of a pair: what they do to images and labels, and that they are fixed by seed, step and pair."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dig_rl.config import load_config
from dig_rl.errors import ConfigError
from dig_rl.looks import apply_look, with_look, with_looks
from dig_rl.policy.load import load_images
from dig_rl.types import Example, Look

ALL = ("swap", "mirror", "recolor")
LOOKS = [Look(), Look(swap=True), Look(mirror=True), Look(channels=(2, 0, 1)), Look(True, True, (1, 0, 2))]


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """A gray pair; image b has a red square of 3x2 pixels, whose left upper corner is at (4, 5)."""
    a = np.full((10, 20, 3), 128, dtype=np.uint8)
    b = a.copy()
    b[5:7, 4:7] = (255, 0, 0)
    for name, image in (("a", a), ("b", b)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    return Example(
        pair_id="pair", image_a_path=str(tmp_path / "a.png"), image_b_path=str(tmp_path / "b.png"),
        image_size_px=(20, 10), target_boxes_px=((4.0, 5.0, 7.0, 7.0),), kinds=("add",), split="train",
    )  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_boxes_hold_exactly_the_pixels_that_differ_under_every_look(example: Example, look: Look) -> None:
    seen = with_look(example, look)
    a, b = map(np.asarray, load_images(seen))
    rows, columns = np.nonzero((a != b).any(axis=-1))
    assert seen.target_boxes_px == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),)


def test_each_look_by_hand(example: Example) -> None:
    swapped = with_look(example, Look(swap=True))
    assert swapped.kinds == ("remove",) and swapped.target_boxes_px == example.target_boxes_px
    assert (np.asarray(load_images(swapped)[0])[5, 4] == (255, 0, 0)).all()  # what b showed, a shows
    mirrored = with_look(example, Look(mirror=True))
    assert mirrored.kinds == ("add",) and mirrored.target_boxes_px == ((13.0, 5.0, 16.0, 7.0),)
    blue = with_look(example, Look(channels=(1, 2, 0)))
    assert (np.asarray(load_images(blue)[1])[5, 4] == (0, 0, 255)).all()
    assert with_look(example, Look()) == example


def test_a_pair_without_change_keeps_its_empty_list(example: Example) -> None:
    unchanged = replace(example, target_boxes_px=(), kinds=())
    assert with_look(unchanged, Look(mirror=True)).target_boxes_px == ()


def test_mirroring_twice_gives_the_stored_images(example: Example) -> None:
    images = np.stack([*map(np.asarray, load_images(example))])
    for look in (Look(swap=True), Look(mirror=True), Look(channels=(1, 0, 2))):
        assert (apply_look(apply_look(images, look), look) == images).all()


def test_looks_are_fixed_by_seed_step_and_pair_and_by_nothing_else(example: Example) -> None:
    pairs = [replace(example, pair_id=f"pair-{index}") for index in range(50)]
    drawn = with_looks(pairs, ALL, seed=1, step=2)
    assert with_looks(pairs[::-1], ALL, seed=1, step=2) == drawn[::-1]
    assert with_looks(pairs, ALL, seed=1, step=3) != drawn != with_looks(pairs, ALL, seed=2, step=2)


def test_every_look_comes_as_often_as_it_should(example: Example) -> None:
    drawn = [with_looks([example], ALL, seed=0, step=step)[0].look for step in range(2400)]
    assert 0.46 < np.mean([look.swap for look in drawn]) < 0.54
    assert 0.46 < np.mean([look.mirror for look in drawn]) < 0.54
    orders = Counter(look.channels for look in drawn)  # unchanged: 1/2 + 1/12; each of five others: 1/12
    assert len(orders) == 6 and all(130 < orders[order] < 270 for order in orders if order != (0, 1, 2))


def test_only_the_looks_that_are_asked_for(example: Example) -> None:
    assert with_looks([example], (), seed=0, step=0) == [example]
    drawn = [with_looks([example], ("mirror",), seed=0, step=step)[0].look for step in range(40)]
    assert set(drawn) == {Look(), Look(mirror=True)}


def test_swapping_is_refused_where_boxes_belong_to_one_image() -> None:
    with pytest.raises(ConfigError, match="looks with swap need box_target = union, found a"):
        load_config([], ["data.looks=['swap']", "data.box_target=a"])
    load_config([], ["data.looks=['mirror']", "data.box_target=a"])
