"""What a stored scene file adds to a pair's labels: which objects there were, and which of them changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dig_rl.data import PairRecord

MAX_BYTES = 4_000_000
"""A scene of ours takes a few kilobytes."""
_WORDS = ("size", "color", "material", "shape")
"""What names an object, in the order of an English phrase."""


@dataclass(frozen=True)
class StoredScenes:
    """Both scenes of a pair as plain values."""

    scene_a: dict[str, Any]
    scene_b: dict[str, Any]
    changed_ids: frozenset[int]
    """Objects that the edits name."""

    def different_ids(self) -> set[int]:
        """Objects that are not the same in both scenes."""
        before, after = (
            {item["object_id"]: item for item in scene["objects"]} for scene in (self.scene_a, self.scene_b)
        )
        return {item for item in before.keys() | after.keys() if before.get(item) != after.get(item)}

    def facts(self) -> SceneFacts:
        """What remains of interest when the pair has been examined."""
        texts = (json.dumps(scene, sort_keys=True) for scene in (self.scene_a, self.scene_b))
        first, second = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
        before = {item["object_id"]: item for item in self.scene_a["objects"]}
        after = {item["object_id"]: item for item in self.scene_b["objects"]}
        return SceneFacts(
            digests=(first, second),
            reference_objects=tuple((item, object_id in self.changed_ids) for object_id, item in before.items()),
            changes={item: _describe(before.get(item), after.get(item)) for item in self.changed_ids},
        )


@dataclass(frozen=True)
class SceneFacts:
    """What a pair's scenes say, without cameras and lights."""

    digests: tuple[str, str]
    """sha256 of the reference and of the changed scene; equal scenes have equal digests."""
    reference_objects: tuple[tuple[Mapping[str, Any], bool], ...]
    """Each object of the reference scene as stored, and whether it changes."""
    changes: Mapping[int, str]
    """By object id, in words: `small red → blue rubber cube`."""


def read_scenes(path: Path, record: PairRecord) -> StoredScenes | str:
    """Read `scenes/<pair_id>.json` and compare it with the labels.

    Returns:
        The scenes, or one sentence about what is wrong with the file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            return f"is larger than {MAX_BYTES} bytes, not the scenes of one pair"
        values = json.loads(path.read_bytes())
        if values["pair_id"] != record.pair_id:
            return f"belongs to pair {values['pair_id']!r}"
        edits = {(edit["kind"], edit["object_id"]) for edit in values["edits"]}
        scenes = StoredScenes(values["scene_a"], values["scene_b"], frozenset(item for _, item in edits))
        for scene in (scenes.scene_a, scenes.scene_b):
            if not all(isinstance(item["object_id"], int) for item in scene["objects"]):
                return "has an object without an integer object_id"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return f"is not valid JSON ({error})"
    except (KeyError, TypeError, AttributeError) as error:
        return f"does not have the layout of a scene file ({error!r})"
    labelled = {(item.kind, item.object_id) for item in record.differences if item.object_id is not None}
    if (labelled or not record.differences) and labelled != edits:
        return f"lists the edits {sorted(edits)}, the labels say {sorted(labelled)}"
    different = scenes.different_ids()
    if different != scenes.changed_ids:
        return f"has edits of the objects {sorted(scenes.changed_ids)}, its scenes differ in {sorted(different)}"
    return scenes


def _describe(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """`small red → blue rubber cube`; an object that is in one scene only has no arrow."""
    sides = [item for item in (before, after) if item is not None]
    words = [list(dict.fromkeys(str(item[key]) for item in sides if key in item)) for key in _WORDS]
    return " ".join(" → ".join(values) for values in words if values)
