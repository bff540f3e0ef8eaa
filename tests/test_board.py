"""What TensorBoard shows beside the scalars, read back from the event files by TensorBoard's own reader."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from dig_rl.board import evaluation_summaries, first_summaries, stage_summaries
from dig_rl.config import Config, load_config
from dig_rl.evaluate import figures_by_count
from dig_rl.evaluation.answers import StoredAnswer
from dig_rl.metrics import METRICS, undocumented
from dig_rl.reporting.panels import draw_panel
from dig_rl.reporting.pictures import MatchRule, judge_boxes
from dig_rl.tracking import Tracker
from dig_rl.types import Example

SIZE_PX = (96, 64)
BOX = (8.0, 8.0, 24.0, 24.0)
OTHER = (60.0, 30.0, 90.0, 60.0)


def make_pairs(folder: Path, count: int) -> list[Example]:
    """Grey pairs with one change, every second one with two."""
    Image.new("RGB", SIZE_PX, (128, 128, 128)).save(folder / "grey.png")
    image = str(folder / "grey.png")
    return [
        Example(f"v-{n:02d}", image, image, SIZE_PX, (BOX, OTHER)[: 1 + n % 2], ("color",) * (1 + n % 2), "validation")
        for n in range(count)
    ]


def answer(example: Example, *boxes: tuple[float, float, float, float], text: str = "[[1, 2, 3, 4]]") -> StoredAnswer:
    return StoredAnswer(
        pair_id=example.pair_id,
        text=text,
        status="ok" if boxes else "malformed",
        predicted_boxes_px=boxes,
        target_boxes_px=example.target_boxes_px,
        f1=0.5,
    )


def read(run_dir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "histograms": 0}
    )
    return accumulator.Reload()


def layout_of(accumulator: EventAccumulator) -> layout_pb2.Layout:
    (event,) = accumulator.Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def test_an_evaluation_shows_the_same_pairs_each_time_with_pictures_text_and_histograms(tmp_path: Path) -> None:
    examples = make_pairs(tmp_path, 22)
    config = load_config([], ["evaluation.num_panels=4"])
    with Tracker(tmp_path, restored_step=None) as tracker:
        for step in (0, 5):
            answers = [answer(example, BOX, text=f"after step {step}\n```<b>") for example in examples]
            tracker.log(step, {}, summaries=evaluation_summaries("validation", examples, answers, config))
    events = read(tmp_path)
    tags = events.Tags()
    assert sorted(tags["images"]) == [f"validation_pairs/v-{n:02d}" for n in (0, 7, 14, 21)]
    assert [event.step for event in events.Images("validation_pairs/v-07")] == [0, 5]
    picture = events.Images("validation_pairs/v-07")[0].encoded_image_string
    assert Image.open(io.BytesIO(picture)).size[0] > 700 and len(picture) < 100_000
    words = [
        event.tensor_proto.string_val[0].decode() for event in events.Tensors("validation_answers/pairs/text_summary")
    ]
    assert "    after step 5\n    ```<b>" in words[1] and words[1].count("after step 5") == 4
    assert "**v-07**: F1 0.50, 2 true, 1 answered, ok" in words[0]
    surplus = events.Histograms("validation_histograms/count_error")[0].histogram_value
    assert (surplus.num, surplus.sum, surplus.min, surplus.max) == (22, -11, -1, 0)
    true_sizes = events.Histograms("validation_histograms/true_box_size")[0].histogram_value
    # 16 x 16 and 30 x 30 of 96 x 64 pixels
    assert (true_sizes.num, true_sizes.min, true_sizes.max) == (
        33,
        *map(pytest.approx, np.sqrt([256 / 6144, 900 / 6144])),
    )


def test_answers_without_boxes_or_images_are_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = make_pairs(tmp_path, 2)
    answers = [answer(example, text="") for example in examples]
    (tmp_path / "grey.png").unlink()
    values = evaluation_summaries("heldout", examples, answers, Config())
    assert [value.tag for value in values] == [
        "heldout_histograms/count_error",
        "heldout_histograms/true_box_size",
        "heldout_answers/pairs/text_summary",
    ]
    assert "no picture of pair v-00" in caplog.text
    assert evaluation_summaries("heldout", [], [], Config()) == []
    no_panels = load_config([], ["evaluation.num_panels=0"])
    assert not any("pairs" in v.tag for v in evaluation_summaries("heldout", examples, answers, no_panels))


def test_continuing_cuts_pictures_where_it_cuts_curves_and_keeps_one_head(tmp_path: Path) -> None:
    examples, config = make_pairs(tmp_path, 2), Config()
    answers = [answer(example, BOX) for example in examples]
    head = first_summaries(config)
    with Tracker(tmp_path, restored_step=None, head=head) as tracker:
        for step in (0, 2, 4, 6):
            summaries = evaluation_summaries("validation", examples, answers, config)
            tracker.log(step, {"validation/f1": 0.5}, summaries=summaries)
    for _ in range(2):
        with Tracker(tmp_path, restored_step=4, head=head):
            pass
    events = read(tmp_path)
    assert [event.step for event in events.Images("validation_pairs/v-00")] == [0, 2, 4]
    assert [event.step for event in events.Tensors("validation_answers/pairs/text_summary")] == [0, 2, 4]
    assert [event.step for event in events.Histograms("validation_histograms/count_error")] == [0, 2, 4]
    assert [event.step for event in events.Scalars("validation/f1")] == [0, 2, 4]
    assert len(layout_of(events).category) == 6


def test_every_chart_of_the_first_page_finds_a_metric(tmp_path: Path) -> None:
    with Tracker(tmp_path, restored_step=None, head=first_summaries(Config())):
        pass
    words = {"<term>": "f1", "<figure>_<count>": "f1_2", "<reason>": "no_signal", "<process>": "learner"}
    names = []
    for metric in METRICS:
        name = metric.name
        for placeholder, word in words.items():
            name = name.replace(placeholder, word)
        names += [name.replace("<figure>", figure) for figure in ("f1", "mean_iou", "count_accuracy")]
    names += [f"{split}_by_count/count_accuracy_2" for split in ("heldout", "validation")]
    names += ["by_stage/reward_single", "by_stage/f1_single"]
    charts = [chart for category in layout_of(read(tmp_path)).category for chart in category.chart]
    assert [chart.title for chart in charts][:2] == ["reward", "reward terms"]
    for chart in charts:
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, name) for name in names), (chart.title, pattern)
    terms = next(chart for chart in charts if chart.title == "reward terms").multiline.tag[0]
    assert not re.match(terms, "reward/total") and re.match(terms, "reward/f1")


def test_hyper_parameters_are_the_leaves_of_the_config(tmp_path: Path) -> None:
    config = load_config([], ["learner.lr=0.25", "rollout.vllm={seed=3}"])
    with Tracker(tmp_path, restored_step=None, head=first_summaries(config)):
        pass
    content = read(tmp_path).SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert found["learner.lr"].number_value == 0.25
    assert found["rollout.vllm.seed"].number_value == 3
    assert found["reward.terms.f1.use"].string_value == "rewards/box_f1.py:box_f1"


def test_a_stage_has_curves_of_its_own() -> None:
    values = stage_summaries("dual", {"reward/total": 0.5, "learner/kl": 1.0})
    assert [(value.tag, value.simple_value) for value in values] == [("by_stage/reward_dual", 0.5)]


def test_figures_by_count_are_means_over_the_pairs_of_that_count(tmp_path: Path) -> None:
    examples = make_pairs(tmp_path, 4)  # 1, 2, 1, 2 changes
    answers = [
        answer(examples[0], BOX),
        answer(examples[1], BOX),  # one of two: F1 2/3, IoU 1/2
        answer(examples[2]),
        answer(examples[3], BOX, OTHER),
    ]
    found = figures_by_count(examples, answers, Config())
    assert found == {
        "f1_1": 0.5,
        "mean_iou_1": 0.5,
        "count_accuracy_1": 0.5,
        "f1_2": pytest.approx(5 / 6),
        "mean_iou_2": 0.75,
        "count_accuracy_2": 0.5,
    }
    assert undocumented(f"{split}_by_count/{name}" for split in ("heldout", "validation") for name in found) == []


def test_verdicts_differ_without_colour(tmp_path: Path) -> None:
    """Each verdict alone, drawn on grey: what is left in shades of grey along the edge differs from all others."""
    example = make_pairs(tmp_path, 1)[0]
    rule = MatchRule(0.5, 5.0, 2.0)
    image = Path(example.image_a_path)
    found, matched = judge_boxes([BOX], [BOX], SIZE_PX, rule)
    missed, spurious = judge_boxes([OTHER], [BOX], SIZE_PX, rule)
    drawn = {box.verdict: box.box_px for box in (found, matched, missed, spurious)}
    assert drawn == {"found": BOX, "matched": BOX, "missed": BOX, "spurious": OTHER}
    spurious_here = type(spurious)(BOX, "spurious")
    edges = []
    for box in (found, matched, missed, spurious_here):
        panel = Image.open(io.BytesIO(draw_panel(image, image, [box], "t"))).convert("L")
        dark = np.asarray(panel)[:250, :360] != 128
        edges.append(int(dark.sum()))
    assert min(abs(a - b) for i, a in enumerate(edges) for b in edges[:i]) > 20, edges
