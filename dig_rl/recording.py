"""Rollouts of a step on disk, so that rewards and the loss can be tried again on them without an engine.

One gzip file a step, JSON lines: a header, then a group a line. A reader sees a whole file or none.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dig_rl.config import Config
from dig_rl.durable import json_lines, write_durably
from dig_rl.errors import DataError, DigRlError
from dig_rl.parsing import CoordinateFrame
from dig_rl.types import Completion, Example, Look, RolloutGroup, SampledGroup, Score

FORMAT = 1
_FILE = re.compile(r"step-(\d+)\.jsonl\.gz")


@dataclass(frozen=True)
class Recording:
    """The rollouts of one training step."""

    step: int
    """As metrics count: 1 is the first."""
    stage: str
    frame: CoordinateFrame
    prompt: str
    """Text that the policy was asked."""
    temperature: float
    """As the stage had it."""
    max_completion_tokens: int
    """As the stage had it."""
    groups: tuple[RolloutGroup, ...]
    """All that were sampled, those without signal included, in order."""

    @property
    def policy_version(self) -> int:
        """Optimiser steps contained in the weights that sampled the first group."""
        return self.groups[0].sampled.policy_version


def recording_path(folder: Path, step: int) -> Path:
    """File of one step."""
    return folder / f"step-{step}.jsonl.gz"


def write_recording(
    folder: Path,
    step: int,
    groups: Sequence[RolloutGroup],
    frame: CoordinateFrame,
    prompt: str,
    config: Config,
    keep_last: int,
) -> None:
    """Write one step in one piece, and remove the files of steps that are no longer kept.

    Args:
        folder: made if missing.
        step: as metrics count it.
        groups: all groups of the step, at least one.
        frame: coordinate convention of the policy's family.
        prompt: text that the policy was asked.
        config: as it holds in the stage.
        keep_last: newest steps that stay.

    Raises:
        DigRlError: the folder cannot be written.
    """
    header = {
        "format": FORMAT,
        "step": step,
        "stage": groups[0].stage,
        "frame": frame,
        "prompt": prompt,
        "temperature": config.rollout.temperature,
        "max_completion_tokens": config.rollout.max_completion_tokens,
        "num_groups": len(groups),
    }
    lines = "".join(json.dumps(row) + "\n" for row in (header, *map(_to_json, groups)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a time stamp: the same rollouts give the same file.
        write_durably(recording_path(folder, step), gzip.compress(lines.encode(), compresslevel=6, mtime=0))
        for old, path in _files(folder):
            if old <= step - keep_last:
                path.unlink()
    except OSError as error:
        raise DigRlError(f"cannot write rollouts to {folder}: {error.strerror}; make room on its disk") from error


def cut_recordings(folder: Path, last_kept: int) -> None:
    """Remove the files of steps after `last_kept`, which a continued run makes again."""
    for step, path in _files(folder):
        if step > last_kept:
            path.unlink()


def read_recording(folder: Path, step: int) -> Recording:
    """Read one step back, exactly as it was.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    path = recording_path(folder, step)
    if not path.is_file():
        there = ", ".join(str(number) for number, _ in _files(folder)) or "none"
        raise DataError(
            f"no rollouts of step {step} in {folder}; recorded steps: {there}. rollout.record_last = N keeps those of "
            "the N newest steps"
        )
    try:
        header, *rows = map(json.loads, json_lines(gzip.decompress(path.read_bytes())))
        if header["format"] != FORMAT or header["step"] != step or header["num_groups"] != len(rows):
            raise ValueError(f"header {header!r:.200} over {len(rows)} groups")
        return Recording(
            step,
            header["stage"],
            header["frame"],
            header["prompt"],
            float(header["temperature"]),
            int(header["max_completion_tokens"]),
            tuple(_from_json(row, header["stage"]) for row in rows),
        )
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected rollouts as format {FORMAT} has them, found {type(error).__name__}: {error}"
        ) from None


def _files(folder: Path) -> list[tuple[int, Path]]:
    found = [(match, path) for path in folder.glob("step-*.jsonl.gz") if (match := _FILE.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _to_json(group: RolloutGroup) -> dict[str, Any]:
    return {
        "sampled": asdict(group.sampled),
        "scores": [None if score is None else asdict(score) for score in group.scores],
    }


def _from_json(row: dict[str, Any], stage: str) -> RolloutGroup:
    sampled = row["sampled"]
    example = {**sampled["example"], "target_boxes_px": tuple(map(tuple, sampled["example"]["target_boxes_px"]))}
    for key in ("image_size_px", "kinds", "visible_fractions"):
        example[key] = tuple(example[key])
    example["look"] = Look(**{**example["look"], "channels": tuple(example["look"]["channels"])})
    completions = tuple(
        Completion(**{**one, "token_ids": tuple(one["token_ids"]), "logprobs_rollout": tuple(one["logprobs_rollout"])})
        for one in sampled["completions"]
    )
    scores = tuple(
        None if one is None else Score(**{**one, "boxes_unit": tuple(map(tuple, one["boxes_unit"]))})
        for one in row["scores"]
    )
    if len(scores) != len(completions):
        raise ValueError(f"{len(scores)} scores for {len(completions)} completions")
    restored = {
        **sampled,
        "example": Example(**example),
        "completions": completions,
        "prompt_token_ids": tuple(sampled["prompt_token_ids"]),
        "model_image_size_px": tuple(sampled["model_image_size_px"]),
    }
    return RolloutGroup(SampledGroup(**restored), scores, stage)
