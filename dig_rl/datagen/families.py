"""Families of pictures for supervised training: one layout drawn in several states, any two of which make a pair.

V pictures give up to V * (V - 1) / 2 pairs instead of V / 2, and every pair keeps the rules of the recipe. Pairs of a
family share objects and places, so a family belongs to one split alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dig_rl.datagen.edits import ATTRIBUTE_OPTIONS, Edit
from dig_rl.datagen.labels import IdPicture, box_of_mask, label_differences, rejection_by_color, rejection_by_ids
from dig_rl.datagen.recipe import DataRecipe, EditKind
from dig_rl.datagen.renderer import Renderer
from dig_rl.datagen.sampling import sample_object, stage
from dig_rl.datagen.scene import Scene, SceneObject

VARIED = ("color", "shape", "size", "material", "presence", "presence")
"""What varies about an object, each as likely; presence makes additions and removals, two of the six kinds."""
MAX_STATES = {"color": 3, "shape": 3, "size": 2, "material": 2, "presence": 2}
"""Looks of one object within a family."""
FIRST_STATE_SHARE = 0.55
"""How often an object is in its first state; the first state of one that may be absent is to be there."""


class FamilyRecipe(BaseModel):
    """Everything that decides what a folder of families holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pictures: DataRecipe
    """Seed, picture size, renderer, arena and rules; its numbers of pairs, and kinds of change, are not used."""
    num_families: int = Field(ge=1)
    num_pictures: int = Field(8, ge=2)
    """V, pictures of one family."""
    num_objects: tuple[int, int] = (4, 7)
    """Fewest and most objects of a layout; some of them are absent from some of its pictures."""
    max_differences: int = Field(4, ge=1)
    """Pictures that differ in more objects make no pair."""


@dataclass(frozen=True)
class FamilyPair:
    """Two pictures of a family with their labels; the swapped pair has the same boxes."""

    pictures: tuple[int, int]
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...]
    """One a change, enclosing what either picture shows of the object."""


@dataclass(frozen=True)
class Family:
    """The pictures of one layout and the pairs among them that keep the rules."""

    images: np.ndarray
    """`[V, H, W, 3]` uint8 sRGB."""
    states: np.ndarray
    """`[V, S]` int8: in which state each picture shows each object of the layout; equal in both means unchanged."""
    objects_xyxy_px: np.ndarray
    """`[V, S, 4]` float32: what each picture shows of each object, NaN where it shows nothing of it."""
    pairs: tuple[FamilyPair, ...]
    places_m: tuple[tuple[float, float], ...]
    """Where the objects of the layout stand; two layouts have none in common."""


@dataclass(frozen=True)
class _Slot:
    """One object of a layout: what varies about it, and its states; None is its absence."""

    varied: str
    states: tuple[SceneObject | None, ...]


@dataclass(frozen=True)
class _Variant:
    """A layout in one state."""

    state: tuple[int, ...]
    """Index of each slot's state."""
    scene: Scene
    look: IdPicture
    image: np.ndarray


def make_family(index: int, recipe: FamilyRecipe, renderer: Renderer) -> Family:
    """Draw a layout in several states and label every pair of pictures that keeps the recipe's rules.

    Args:
        index: which of the recipe's families; decides everything together with the recipe.
        recipe: bounds and rules.
        renderer: draws; all pictures of a family have one noise.

    Raises:
        RenderError: the renderer failed.
    """
    rng = np.random.default_rng([recipe.pictures.seed, index])
    slots = _sample_layout(rng, recipe)
    states = _sample_states(rng, slots, recipe.num_pictures)
    noise = int(rng.integers(2**31))
    variants = _draw(slots, states, recipe.pictures, renderer, noise)
    pairs = []
    for first, second in combinations(range(len(variants)), 2):
        edits = _edits_between(slots, variants[first].state, variants[second].state)
        if len(edits) <= recipe.max_differences:
            pair = _label_pair((variants[first], variants[second]), edits, recipe.pictures)
            if pair is not None:
                pairs.append(FamilyPair((first, second), pair))
    places = [next(item for item in slot.states if item is not None) for slot in slots]
    return Family(
        images=np.stack([variant.image for variant in variants]),
        states=np.array([variant.state for variant in variants], dtype=np.int8).reshape(len(variants), -1),
        objects_xyxy_px=_objects_xyxy_px(slots, variants),
        pairs=tuple(pairs),
        places_m=tuple((item.x_m, item.y_m) for item in places),
    )


def _sample_layout(rng: np.random.Generator, recipe: FamilyRecipe) -> list[_Slot]:
    fewest, most = recipe.num_objects
    slots: list[_Slot] = []
    placed: list[SceneObject] = []
    for object_id in range(1, int(rng.integers(fewest, most + 1)) + 1):
        varied = VARIED[int(rng.integers(len(VARIED)))]
        # What changes its size needs the room of its larger self.
        size = "large" if varied == "size" else None
        item = sample_object(rng, recipe.pictures, object_id, placed, size=size)
        if item is not None:  # else the arena is full, and the layout has one object fewer
            placed.append(item)
            slots.append(_Slot(varied, _states_of(rng, item, varied)))
    return slots


def _states_of(rng: np.random.Generator, item: SceneObject, varied: str) -> tuple[SceneObject | None, ...]:
    if varied == "presence":
        return (item, None)
    others = [option for option in ATTRIBUTE_OPTIONS[varied] if option != getattr(item, varied)]
    options = [getattr(item, varied), *(others[index] for index in rng.permutation(len(others)))]
    kept = options[: MAX_STATES[varied]]
    return tuple(replace(item, **{varied: kept[index]}) for index in rng.permutation(len(kept)))


def _sample_states(rng: np.random.Generator, slots: Sequence[_Slot], count: int) -> list[tuple[int, ...]]:
    """`count` distinct states of the layout, or as many as were found."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(10 * count):
        state = tuple(
            0 if rng.random() < FIRST_STATE_SHARE else int(rng.integers(1, len(slot.states))) for slot in slots
        )
        found[state] = None
        if len(found) == count:
            break
    return list(found)


def _draw(
    slots: Sequence[_Slot], states: Sequence[tuple[int, ...]], recipe: DataRecipe, renderer: Renderer, noise: int
) -> list[_Variant]:
    looks = {item for slot in slots for item in slot.states if item is not None}
    alone = {
        item: int(np.count_nonzero(renderer.render_ids(stage(recipe, (item,)), only=item.object_id))) for item in looks
    }
    variants = []
    for state in states:
        shown = (slot.states[index] for slot, index in zip(slots, state, strict=True))
        objects = tuple(item for item in shown if item is not None)
        scene = stage(recipe, objects)
        look = IdPicture(renderer.render_ids(scene), {item.object_id: alone[item] for item in objects})
        variants.append(_Variant(state, scene, look, renderer.render_beauty(scene, noise)))
    return variants


def _objects_xyxy_px(slots: Sequence[_Slot], variants: Sequence[_Variant]) -> np.ndarray:
    boxes = np.full((len(variants), len(slots), 4), np.nan, dtype=np.float32)
    for row, variant in enumerate(variants):
        for column, (slot, state) in enumerate(zip(slots, variant.state, strict=True)):
            item = slot.states[state]
            if item is not None and (box := box_of_mask(variant.look.ids == item.object_id)):
                boxes[row, column] = box
    return boxes


def _edits_between(slots: Sequence[_Slot], first: Sequence[int], second: Sequence[int]) -> list[Edit]:
    edits = []
    for slot, one, other in zip(slots, first, second, strict=True):
        if one != other:
            before, after = slot.states[one], slot.states[other]
            present = before or after
            assert present is not None  # an object has one state of absence
            kind: EditKind = "add" if before is None else "remove" if after is None else slot.varied  # type: ignore[assignment]
            edits.append(Edit(kind, present.object_id))
    return edits


def _label_pair(
    variants: tuple[_Variant, _Variant], edits: Sequence[Edit], recipe: DataRecipe
) -> tuple[tuple[float, float, float, float], ...] | None:
    """Boxes of the changes, or None where the pair breaks a rule."""
    changed = {edit.object_id for edit in edits}
    look_a, look_b = (
        replace(look, alone_px={item: pixels for item, pixels in look.alone_px.items() if item in changed})
        for look in (variant.look for variant in variants)
    )
    ids_a, ids_b = ({item.object_id for item in variant.scene.objects} for variant in variants)
    if rejection_by_ids(edits, (ids_a, ids_b), look_a, look_b, recipe.rules):
        return None
    if rejection_by_color(edits, (variants[0].image, variants[1].image), look_a, look_b, recipe.rules):
        return None
    return tuple(item.box for item in label_differences(edits, look_a, look_b, "union"))
