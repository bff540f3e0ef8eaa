"""What all adapters share: the truth of a pair as one JSON text, and a scorer for answers that come with it.

Other trainers carry one column of text from their data set to the reward function. `ground_truth` fills that column;
`AnswerScorer` reads it back and scores with the same parser, matching and plugins as our own runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from dig_rl.config import RewardConfig, RewardTermConfig, load_config
from dig_rl.errors import ConfigError, DataError
from dig_rl.parsing import CoordinateFrame
from dig_rl.scoring import Scorer
from dig_rl.types import Completion, Example, SampledGroup, Score

_REPOSITORY = Path(__file__).resolve().parents[2]


class Truth(NamedTuple):
    """One pair as the reward needs it."""

    example: Example
    model_image_size_px: tuple[int, int]


class AnswerScorer:
    """Scores answers one by one, each with its pair's truth."""

    def __init__(
        self, reward: str, *, frame: CoordinateFrame, thinking: bool, root: str | Path = ".", prompt: str = ""
    ) -> None:
        """Load the reward.

        Args:
            reward: one plugin, `path/to/file.py:function`, or a config, `path/to/config.toml`, of which the table
                `reward` counts; "" takes the shipped defaults.
            frame: coordinate convention of the policy's family, `norm1000` or `absolute_px`.
            thinking: the policy must close its thinking with `</think>` before it answers.
            root: folder that `reward` and the plugins it names are relative to; usually the repository, which the
                shipped defaults are also found in without it.
            prompt: what the policy is asked, shown to plugins.

        Raises:
            ConfigError: the config is missing or wrong, or there is no such frame.
            PluginError: a plugin cannot be loaded.
        """
        if frame not in get_args(CoordinateFrame):  # it may come from another trainer's untyped config
            raise ConfigError(f'frame is {" or ".join(get_args(CoordinateFrame))}, found "{frame}"')
        if not reward and not (Path(root) / "rewards").is_dir():
            root = _REPOSITORY
        self._scorer = Scorer(
            _reward_config(reward, Path(root)), root=Path(root), thinking=thinking, frame=frame, prompt=prompt
        )

    def score(
        self, answers: Sequence[Any], truths: Sequence[Any], num_tokens: Sequence[int] | None = None, step: int = 0
    ) -> list[Score]:
        """Score answers.

        These trainers do not say why a completion ended, so plugins see `finish_reason` "stop".

        Args:
            answers: what the policy wrote, thinking included; see `text_of`.
            truths: `ground_truth` of each answer's pair, or the object that it is the JSON of.
            num_tokens: length of each answer; 0 where the trainer does not say.
            step: training step.

        Raises:
            DataError: an answer is no text, a truth is not what `ground_truth` writes, or there is not one of each.
            PluginError: a plugin raises, or returns anything but a number in [0, 1].
        """
        lengths = [0] * len(answers) if num_tokens is None else num_tokens
        if not len(answers) == len(truths) == len(lengths):
            raise DataError(
                f"expected one ground truth and one length for each answer, found {len(answers)} answers, "
                f"{len(truths)} ground truths and {len(lengths)} lengths; repeat the truth for every answer to its pair"
            )
        return [
            self._score_one(text_of(answer), _read_truth(truth), length, step)
            for answer, truth, length in zip(answers, truths, lengths, strict=True)
        ]

    def _score_one(self, text: str, truth: Truth, length: int, step: int) -> Score:
        completion = Completion((0,) * length, (0.0,) * length, text, "stop", 0)
        group = SampledGroup(truth.example, (), (completion,), 0, truth.model_image_size_px, 0)
        return self._scorer.score(group, step=step, stage="")[0]


def ground_truth(example: Example, model_image_size_px: tuple[int, int] | None = None) -> str:
    """The truth of a pair as JSON, for the column that the other trainer hands to its reward function.

    Args:
        example: the pair.
        model_image_size_px: (width, height) of its images after the policy's resize rule; needed where the policy
            answers in absolute pixels.
    """
    width, height = model_image_size_px or example.image_size_px
    return json.dumps(
        {
            "pair_id": example.pair_id,
            "image_size_px": list(example.image_size_px),
            "model_image_size_px": [width, height],
            "target_boxes_px": [list(box) for box in example.target_boxes_px],
            "kinds": list(example.kinds),
        }
    )


def text_of(answer: Any) -> str:
    """What was written: text, a message, a conversation whose last message counts, or the parts of a message.

    A message without content (None, as beside calls of tools) says nothing; a part without text adds nothing.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(answer, str):
        return answer
    if answer is None:
        return ""
    if isinstance(answer, Mapping):
        return text_of(answer["content"] if "content" in answer else answer.get("text"))
    if isinstance(answer, (list, tuple)):
        is_conversation = answer and isinstance(answer[-1], Mapping) and "content" in answer[-1]
        return text_of(answer[-1]) if is_conversation else "".join(map(text_of, answer))
    raise DataError(
        f"expected an answer as text, as messages with content, or as parts with text, found {type(answer).__name__} "
        f"{answer!r:.80}; hand over what the policy wrote, decoded"
    )


def columns_of(rows: Sequence[Any], names: Sequence[str]) -> list[list[Any]]:
    """Values of all rows by name.

    Raises:
        DataError: a row lacks one.
    """
    for row in rows:
        if not isinstance(row, Mapping) or any(name not in row for name in names):
            found = f"the keys {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
            raise DataError(f"expected {' and '.join(names)} of every answer, found {found}; see docs/rewards.md")
    return [[row[name] for row in rows] for name in names]


def _read_truth(truth: Any) -> Truth:
    return _parse_truth(truth) if isinstance(truth, str) else _truth_of(truth, truth)


@functools.lru_cache(maxsize=4096)
def _parse_truth(text: str) -> Truth:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    return _truth_of(values, text)


def _truth_of(values: Any, source: Any) -> Truth:
    try:
        width, height = map(int, values["image_size_px"])
        model_width, model_height = map(int, values["model_image_size_px"])
        boxes = []
        for box in values["target_boxes_px"]:
            x_min, y_min, x_max, y_max = map(float, box)
            boxes.append((x_min, y_min, x_max, y_max))
        kinds = tuple(map(str, values["kinds"]))
        pair_id = str(values["pair_id"])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise DataError(
            "expected the JSON that dig_rl.adapters.answer_scorer.ground_truth writes as ground truth, found "
            f"{source!r:.200} ({type(error).__name__}: {error}); fill that column of the data set with it"
        ) from None
    example = Example(pair_id, "", "", (width, height), tuple(boxes), kinds, "train")
    return Truth(example, (model_width, model_height))


def _reward_config(reward: str, root: Path) -> RewardConfig:
    if ".py:" in reward:
        name = reward.rpartition(":")[2]
        return RewardConfig(terms={name: RewardTermConfig(use=reward, weight=1.0)})
    return load_config([root / reward] if reward else []).reward
