"""Answers of a policy to held-out pairs, written to a file, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dig_rl.actors.fleet import PolicyFacts, Rollouts
from dig_rl.boxes import unit_to_px
from dig_rl.config import Config
from dig_rl.evaluation.answers import StoredAnswer, write_answers
from dig_rl.evaluation.detection import detection_metrics, pair_f1
from dig_rl.parsing import parse_answer
from dig_rl.types import Completion, Example, SampledGroup


def evaluate_greedily(
    rollouts: Rollouts, policy: PolicyFacts, examples: Sequence[Example], config: Config, predictions_path: Path
) -> tuple[dict[str, float], list[StoredAnswer]]:
    """Answer every pair once with the most likely tokens, and write the answers.

    Args:
        rollouts: workers that hold the weights to be evaluated.
        policy: its coordinate convention.
        examples: held-out pairs.
        config: the run.
        predictions_path: JSON lines file to write, one pair a line; boxes in pixels.

    Returns:
        Figures of `dig_rl.evaluation.detection.detection_metrics`, and the answers in the order of the pairs.
    """
    answers = answer_pairs(rollouts, policy, examples, config)
    write_answers(predictions_path, answers)
    rows = zip(answers, examples, strict=True)
    boxes = [answer.boxes_unit(example.image_size_px) for answer, example in rows]
    return detection_metrics(boxes, config.evaluation.match_iou), answers


def figures_by_count(examples: Sequence[Example], answers: Sequence[StoredAnswer], config: Config) -> dict[str, float]:
    """`f1_<count>`, `mean_iou_<count>` and `count_accuracy_<count>`: means over the pairs with so many changes."""
    by_count: dict[int, list[tuple[np.ndarray | None, np.ndarray]]] = {}
    for example, answer in zip(examples, answers, strict=True):
        by_count.setdefault(example.num_differences, []).append(answer.boxes_unit(example.image_size_px))
    found: dict[str, float] = {}
    for count, boxes in sorted(by_count.items()):
        figures = detection_metrics(boxes, config.evaluation.match_iou)
        found |= {f"{name}_{count}": figures[name] for name in ("f1", "mean_iou", "count_accuracy")}
    return found


def answer_pairs(
    rollouts: Rollouts,
    policy: PolicyFacts,
    examples: Sequence[Example],
    config: Config,
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
) -> list[StoredAnswer]:
    """Answer every pair and read the boxes.

    Args:
        rollouts: workers that hold the weights to be evaluated.
        policy: its coordinate convention.
        examples: pairs.
        config: limits of an answer, and the threshold for its F1.
        num_samples: answers a pair; 1 at temperature 0.
        temperature: 0 takes the most likely token each time.

    Returns:
        The answers of the first pair, of the second, and so on.
    """
    groups = rollouts.answer(examples, num_samples=num_samples, temperature=temperature)
    return [
        _stored(group, sample, completion, policy, config)
        for group in groups
        for sample, completion in enumerate(group.completions)
    ]


def _stored(
    group: SampledGroup, sample: int, completion: Completion, policy: PolicyFacts, config: Config
) -> StoredAnswer:
    parsed = parse_answer(
        completion.text,
        config.reward,
        thinking=config.policy.thinking,
        frame=policy.frame,
        model_image_size_px=group.model_image_size_px,
    )
    example = group.example
    predicted_unit = parsed.boxes_unit if parsed.boxes_unit is not None else np.zeros((0, 4))
    mean_logprob = float(np.mean(completion.logprobs_rollout)) if completion.logprobs_rollout else None
    answer = StoredAnswer(
        pair_id=example.pair_id,
        sample=sample,
        image_a=example.image_a_path,
        image_b=example.image_b_path,
        text=completion.text,
        status=parsed.status,
        predicted_boxes_px=unit_to_px(predicted_unit, example.image_size_px).tolist(),
        target_boxes_px=example.target_boxes_px,
        mean_logprob=mean_logprob,
        num_tokens=len(completion.token_ids),
    )
    f1 = pair_f1(*answer.boxes_unit(example.image_size_px), config.evaluation.match_iou)
    return answer.model_copy(update={"f1": f1})
