"""What TensorBoard shows beside the scalars: pairs with boxes, answers, histograms, the first page, hyper-parameters.

Everything here is a `Summary.Value` for `dig_rl.tracking.Tracker`, which cuts it where it cuts the scalars.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import custom_scalars, histogram, hparams, text

from dig_rl.boxes import px_to_unit
from dig_rl.config import Config
from dig_rl.evaluation.answers import StoredAnswer
from dig_rl.reporting.panels import draw_panel
from dig_rl.reporting.pictures import MatchRule, judge_boxes, spread_over
from dig_rl.types import Example

_log = logging.getLogger(__name__)

_MAX_TEXT = 2000
_MAX_COUNT_ERROR = 8
"""Surplus or lack of boxes from which a histogram no longer tells answers apart."""
_SIZE_BINS = np.linspace(0.0, 1.0, 41)

_COMPARED = ("heldout/f1", "heldout/mean_iou", "validation/f1", "reward/total")
"""Metrics that the page of hyper-parameters sets runs side by side by."""

_FIRST_PAGE: dict[str, dict[str, tuple[str, ...]]] = {
    "1 Does it learn?": {
        "reward": (r"reward/total$",),
        "reward terms": (r"reward/(?!total$|group_std$|failed_frac$)[^/]+$",),
        "F1: held-out, validation, sampled answers": (r"heldout/f1$", r"validation/f1$", r"answers/f1$"),
        "held-out and validation mean IoU": (r"heldout/mean_iou$", r"validation/mean_iou$"),
    },
    "2 How many changes?": {
        "F1 by number of changes": (r"validation_by_count/f1_.*$", r"heldout_by_count/f1_.*$"),
        "right number of boxes": (r"heldout/count_accuracy$", r"validation/count_accuracy$"),
        "right number of boxes, by number of changes": (
            r"validation_by_count/count_accuracy_.*$",
            r"heldout_by_count/count_accuracy_.*$",
        ),
        "boxes an answer": (r"answers/boxes$",),
    },
    "3 Stages": {
        "reward by stage": (r"by_stage/reward_.*$",),
        "F1 of sampled answers by stage": (r"by_stage/f1_.*$",),
    },
    "4 Is the update sound?": {
        "KL to the reference": (r"learner/kl$",),
        "entropy": (r"learner/entropy$",),
        "sampler and learner disagree": (r"rollout/mismatch_kl$",),
        "groups without signal": (r"groups/.*$",),
    },
    "5 Does it game the reward?": {
        "signs (docs/metrics.md, Alarms)": (r"answers/.*(_frac|_excess|_minus_f1)$", r"control/.*$"),
        "length of a completion": (r"rollout/completion_tokens$", r"answers/thinking_characters$"),
    },
    "6 Where does the time go?": {"seconds by phase": (r"timing/.*_s$",), "memory": (r"memory/.*$",)},
}
"""Category, chart, regular expressions of tags; TensorBoard matches them from the beginning of a tag."""


def first_summaries(config: Config) -> list[Summary.Value]:
    """Layout of the custom scalars page and hyper-parameters, for the head of a run's events."""
    layout = {
        category: {chart: ["Multiline", list(tags)] for chart, tags in charts.items()}
        for category, charts in _FIRST_PAGE.items()
    }
    chosen, defaults = _hyper_parameters(config), _hyper_parameters(Config())
    experiment, session_start, _ = hparams(chosen, dict.fromkeys(_COMPARED, 0.0))
    _put_first(experiment.value[0], {name for name, value in chosen.items() if defaults.get(name) != value})
    return [*custom_scalars(layout).value, *experiment.value, *session_start.value]


def _put_first(experiment: Summary.Value, names: Set[str]) -> None:
    """Mark hyper-parameters as differing, with which TensorBoard begins its long table."""
    data = HParamsPluginData.FromString(experiment.metadata.plugin_data.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in names
    experiment.metadata.plugin_data.content = data.SerializeToString()


def stage_summaries(stage: str, figures: Mapping[str, float]) -> list[Summary.Value]:
    """Reward and F1 of a training step under the name of its stage, so that each stage is a curve of its own."""
    names = {"reward": "reward/total", "f1": "answers/f1"}
    return [
        Summary.Value(tag=f"by_stage/{short}_{stage}", simple_value=figures[name])
        for short, name in names.items()
        if name in figures
    ]


def evaluation_summaries(
    split: str, examples: Sequence[Example], answers: Sequence[StoredAnswer], config: Config
) -> list[Summary.Value]:
    """One greedy evaluation for people to look at.

    Args:
        split: first word of the tags, `heldout` or `validation`.
        examples: P pairs.
        answers: their answers, one a pair, in the same order.
        config: `evaluation.num_panels` bounds the pictures; the threshold decides which boxes are right.

    Returns:
        `<split>_pairs/<pair id>` images, `<split>_answers/...` text, `<split>_histograms/...`. The pairs that are shown
        are spread evenly over the split, so they are the same at every evaluation.
    """
    shown = spread_over(len(examples), config.evaluation.num_panels)
    rows = [(examples[index], answers[index]) for index in shown]
    rule = MatchRule(config.evaluation.match_iou, *_DEFAULT_COSTS)
    values = [*_panels(split, rows, rule), *_histograms(split, examples, answers)]
    if rows:
        values += text(f"{split}_answers/pairs", "\n\n".join(_in_words(*row) for row in rows)).value
    return values


_DEFAULT_COSTS = (Config().reward.cost_l1, Config().reward.cost_giou)
"""Held-out figures are computed with these, whatever the reward of the run."""


def _panels(split: str, rows: Sequence[tuple[Example, StoredAnswer]], rule: MatchRule) -> Iterator[Summary.Value]:
    for example, answer in rows:
        drawn = judge_boxes(answer.predicted_boxes_px, answer.target_boxes_px, example.image_size_px, rule)
        title = f"{example.pair_id}: {_counts(answer)}"
        try:
            picture = draw_panel(Path(example.image_a_path), Path(example.image_b_path), drawn, title)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            # The figures do not need the images any more, so training goes on.
            _log.warning("TensorBoard shows no picture of pair %s: %s", example.pair_id, error)
            continue
        yield Summary.Value(tag=f"{split}_pairs/{example.pair_id}", image=Summary.Image(encoded_image_string=picture))


def _histograms(split: str, examples: Sequence[Example], answers: Sequence[StoredAnswer]) -> Iterator[Summary.Value]:
    """Boxes too many (N - M), and sizes of predicted and true boxes: square root of their share of the image."""
    surplus = [len(answer.predicted_boxes_px) - len(answer.target_boxes_px) for answer in answers]
    clipped = np.clip(surplus, -_MAX_COUNT_ERROR, _MAX_COUNT_ERROR)
    bins = np.arange(-_MAX_COUNT_ERROR - 0.5, _MAX_COUNT_ERROR + 1)
    sizes = {
        "predicted_box_size": [_sizes(a.predicted_boxes_px, e) for e, a in zip(examples, answers, strict=True)],
        "true_box_size": [_sizes(a.target_boxes_px, e) for e, a in zip(examples, answers, strict=True)],
    }
    columns = {"count_error": (clipped, bins)}
    columns |= {name: (np.concatenate([np.zeros(0), *parts]), _SIZE_BINS) for name, parts in sizes.items()}
    for name, (values, edges) in columns.items():
        if len(values):
            yield from histogram(f"{split}_histograms/{name}", values, edges).value


def _sizes(boxes_px: Sequence[Sequence[float]], example: Example) -> np.ndarray:
    unit = px_to_unit(np.array(boxes_px, dtype=np.float64).reshape(-1, 4), example.image_size_px)
    return np.sqrt(np.clip((unit[:, 2:] - unit[:, :2]).prod(axis=1), 0.0, 1.0))


def _counts(answer: StoredAnswer) -> str:
    f1 = "" if answer.f1 is None else f"F1 {answer.f1:.2f}, "
    return f"{f1}{len(answer.target_boxes_px)} true, {len(answer.predicted_boxes_px)} answered, {answer.status}"


def _in_words(example: Example, answer: StoredAnswer) -> str:
    """Markdown; an indented block, because nothing that a policy writes can end it."""
    lines = answer.text[:_MAX_TEXT].splitlines() or ["(nothing)"]
    return f"**{example.pair_id}**: {_counts(answer)}\n\n" + "\n".join(f"    {line}" for line in lines)


def _hyper_parameters(config: Config) -> dict[str, Any]:
    return dict(_leaves(json.loads(config.model_dump_json())))


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
