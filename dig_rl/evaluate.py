"""Greedy answers on held-out pairs: figures for the summary, and every answer for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dig_rl.actors.fleet import PolicyFacts, Rollouts
from dig_rl.boxes import px_to_unit, unit_to_px
from dig_rl.config import Config
from dig_rl.durable import write_durably
from dig_rl.evaluation.detection import detection_metrics, pair_f1
from dig_rl.parsing import parse_answer
from dig_rl.types import Example, SampledGroup


def evaluate_greedily(
    rollouts: Rollouts, policy: PolicyFacts, examples: Sequence[Example], config: Config, predictions_path: Path
) -> dict[str, float]:
    """Answer every pair once with the most likely tokens, write the answers, return the figures.

    Args:
        rollouts: workers that hold the weights to be evaluated.
        policy: its coordinate convention.
        examples: held-out pairs.
        config: the run.
        predictions_path: JSON lines file to write, one pair a line; boxes in pixels.

    Returns:
        Figures of `dig_rl.evaluation.detection.detection_metrics`.
    """
    answers, records = [], []
    for group in rollouts.answer(examples):
        parsed = parse_answer(
            group.completions[0].text,
            config.reward,
            thinking=config.policy.thinking,
            frame=policy.frame,
            model_image_size_px=group.model_image_size_px,
        )
        size = group.example.image_size_px
        target_unit = px_to_unit(np.array(group.example.target_boxes_px).reshape(-1, 4), size)
        answers.append((parsed.boxes_unit, target_unit))
        records.append(_record(group, parsed.status, parsed.boxes_unit, target_unit, config.evaluation.match_iou))
    predictions_path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(predictions_path, "".join(json.dumps(record) + "\n" for record in records))
    return detection_metrics(answers, config.evaluation.match_iou)


def _record(
    group: SampledGroup, status: str, boxes_unit: np.ndarray | None, target_unit: np.ndarray, match_iou: float
) -> dict[str, Any]:
    example = group.example
    predicted_unit = boxes_unit if boxes_unit is not None else np.zeros((0, 4))
    return {
        "pair_id": example.pair_id,
        "image_a": example.image_a_path,
        "image_b": example.image_b_path,
        "text": group.completions[0].text,
        "status": status,
        "predicted_boxes_px": unit_to_px(predicted_unit, example.image_size_px).round(2).tolist(),
        "target_boxes_px": [list(box) for box in example.target_boxes_px],
        "f1": pair_f1(predicted_unit, target_unit, match_iou),
    }
