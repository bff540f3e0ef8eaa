"""The report tells what happened, whatever state the run is in, and needs nothing but its own file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dig_rl.config import Config
from dig_rl.errors import DigRlError
from dig_rl.reporting import plots
from dig_rl.reporting.pictures import MAX_PAIRS, MatchRule, galleries_of_pairs, judge_boxes
from dig_rl.reporting.report import before_after_table, write_report
from dig_rl.run_folder import RunFolder
from dig_rl.summary import Status, Summary
from dig_rl.tracking import Tracker
from launch.report import main
from tests.browser import Browser

RULE = MatchRule(match_iou=0.5, cost_l1=5.0, cost_giou=2.0)
FIGURES = {"f1": 0.25, "mean_iou": 0.2, "precision": 0.3, "recall": 0.4, "count_accuracy": 0.5, "parse_rate": 1.0}


def make_run(runs_dir: Path, *, steps: int, status: Status = "finished", pairs: int = 0) -> Path:
    """A run folder as training leaves it, with `pairs` held-out pairs answered before and after."""
    with RunFolder.open(runs_dir, "demo", Config()) as run:
        summary = Summary(
            run.path,
            rollout_engine="vllm 0.32.0",
            learner_engine="deepspeed 0.19.8",
            ray="2.60.0",
            device="cpu",
            model={"parameters": 1234567, "architecture": "Qwen3VLForConditionalGeneration"},
        )
        summary.set_heldout("before", {**FIGURES, "pairs": 8})
        with Tracker(run.path, restored_step=None) as tracker:
            tracker.log(0, {"heldout/f1": 0.25})
            for step in range(1, steps + 1):
                metrics = {"reward/total": step / steps, "reward/f1": 0.5, "learner/kl": 0.1, "timing/learn_s": 2.0}
                tracker.log(step, metrics, stage="single" if step <= steps / 2 else "dual")
        if status == "finished":
            summary.set_heldout("after", {**FIGURES, "f1": 0.5, "pairs": 8})
        summary.write(status)
        if pairs:
            write_predictions(run.heldout, pairs)
    return run.path


def write_predictions(folder: Path, pairs: int, text: str = "[[1, 2, 3, 4]]") -> None:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for side in "ab":
        Image.fromarray(noise).save(folder / f"{side}.png")
    for moment, box in (("before", [30.0, 30.0, 40.0, 40.0]), ("after", [8.0, 8.0, 16.0, 16.0])):
        records = [
            {
                "pair_id": f"test-{number:03d}",
                "image_a": str(folder / "a.png"),
                "image_b": str(folder / "b.png"),
                "text": text,
                "status": "ok",
                "predicted_boxes_px": [box],
                "target_boxes_px": [[8.0, 8.0, 16.0, 16.0]],
                "f1": 1.0 if moment == "after" else 0.0,
            }
            for number in range(pairs)
        ]
        (folder / f"predictions_{moment}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


class _Page(HTMLParser):
    """Open elements, and every address that the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.unclosed: list[str] = []
        self.classes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link", "br"):
            self.unclosed.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.classes += [f"{tag}.{value}" for key, value in attrs if key == "class"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.unclosed = self.unclosed[:-1]

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag


def page_of(run_dir: Path) -> str:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text(encoding="utf-8")


def test_a_finished_run_is_told_in_full_in_one_file_under_5_mb(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path, steps=20, pairs=12))
    page = _Page(text)
    assert page.unclosed == []
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert len(text) < 5_000_000
    for part in ("1,234,567 parameters", "vllm 0.32.0", "deepspeed 0.19.8", "0.250", "+0.250", "0.45 × f1", "seed 0"):
        assert part in text
    # Every pair went from 0 to 1, so four of them are best, four most improved, and none is worst.
    assert page.classes.count("div.card pair") == MAX_PAIRS + 4 + 4
    assert "Most improved pairs" in text and "Worst pairs" not in text
    assert 'class="notice"' not in text


def test_pictures_of_noise_do_not_make_a_page_over_5_mb(tmp_path: Path) -> None:
    """Noise is what pictures can cost at most; other pairs in each gallery, all as large as they get."""
    run_dir = make_run(tmp_path, steps=200, pairs=20)
    rng = np.random.default_rng(1)
    for moment in ("before", "after"):
        path = run_dir / "heldout" / f"predictions_{moment}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records):
            for side in "ab":
                picture = run_dir / "heldout" / f"{number}{side}.png"
                if moment == "before":
                    Image.fromarray(rng.integers(0, 255, (360, 480, 3), dtype=np.uint8)).save(picture)
                record[f"image_{side}"] = str(picture)
            record["f1"] = float(rng.random())
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert 1_000_000 < len(page_of(run_dir)) < 5_000_000


@pytest.mark.long
def test_the_page_opens_in_a_browser_from_disk_without_a_network(tmp_path: Path, browser: Browser) -> None:
    path = write_report(make_run(tmp_path, steps=40, pairs=12))
    for width in (1280, 420):
        page = browser.page(width, 900, offline=True)
        page.open(path.as_uri())
        page.wait_for_text("Most improved pairs", "1,234,567 parameters")
        page.wait_for("document.readyState === 'complete' && document.images.length === pictures().length")
        assert page.requests() == [path.as_uri()] and page.errors() == []
        # Every curve and pair takes up room, and nothing sticks out to the right.
        drawn = "[...document.querySelectorAll('.card svg[role=img], .card img')]"
        assert min(page.evaluate(f"{drawn}.map(one => one.getBoundingClientRect().width)")) > 100
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shot = page.photograph(tmp_path / f"report-{width}.png", whole=True)
        with Image.open(shot) as picture:
            assert picture.size[0] == width and picture.size[1] > 2000
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 500


def test_predicted_boxes_change_from_spurious_to_matched(tmp_path: Path) -> None:
    classes = _Page(page_of(make_run(tmp_path, steps=2, pairs=1))).classes
    drawn = [name for name in classes if name.startswith("rect.") and name != "rect.halo"][4:]  # after the legend
    # The pair is in three galleries: taken evenly, best, most improved.
    assert drawn == (["rect.missed", "rect.spurious"] * 2 + ["rect.found", "rect.matched"] * 2) * 3


def test_a_run_without_steps_or_evaluation_says_so(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "demo", Config()) as run:
        pass
    text = page_of(run.path)
    assert "No training step has been recorded" in text
    assert "There is no summary.json yet" in text
    assert "predictions_before.jsonl is not there" in text
    assert _Page(text).unclosed == []


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    assert "There is no summary.json yet" in page_of(tmp_path)


@pytest.mark.parametrize(
    ("status", "notice"),
    [("failed", "ended with an error"), ("interrupted", "RUN= continues it"), ("running", "was still going")],
)
def test_an_unfinished_run_shows_its_status_and_what_is_missing(tmp_path: Path, status: Status, notice: str) -> None:
    text = page_of(make_run(tmp_path, steps=3, status=status))
    assert f'<span class="pill {status}">{status}</span>' in text
    assert notice in text and "have not been answered after training" in text
    assert "<td>0.250</td><td>-</td><td>-</td>" in text


def test_missing_images_are_named(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps=0, pairs=2)
    (run_dir / "heldout" / "b.png").unlink()
    text = page_of(run_dir)
    assert text.count("the images cannot be shown") == 3 * 2 and "b.png" in text  # in three galleries


@pytest.mark.parametrize("contents", ["{", '{"pair_id": "x"}\n', "[]\n", '{"a": 1}\n'])
def test_damaged_predictions_are_named_and_do_not_stop_the_report(tmp_path: Path, contents: str) -> None:
    run_dir = make_run(tmp_path, steps=0, pairs=2)
    (run_dir / "heldout" / "predictions_after.jsonl").write_text(contents)
    assert "predictions_after.jsonl is damaged" in page_of(run_dir)


def test_what_the_policy_wrote_cannot_break_the_page(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps=0)
    write_predictions(run_dir / "heldout", 1, text="</pre><script>alert(1)</script>" * 1000)
    text = page_of(run_dir)
    assert "<script" not in text
    assert _Page(text).unclosed == []


def test_values_that_are_null_are_left_out_of_the_curves(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps=2)
    with Tracker(run_dir, restored_step=2) as tracker:
        tracker.log(3, {"reward/total": float("nan"), "learner/kl": float("inf")}, stage="dual")
    assert "Reward and its parts" in page_of(run_dir)


def test_a_missing_run_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DigRlError, match=r"no run folder at .*nope"):
        write_report(tmp_path / "nope")
    assert main(["--run", "nope", "--runs-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no run folder at")


def test_the_command_prints_the_table_and_where_the_report_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, steps=0)
    assert main(["--run", "demo", "--runs-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "held-out, 8 pairs" in out and str(tmp_path / "demo" / "report.html") in out


def test_the_table_lines_up_and_shows_the_change() -> None:
    summary = {"heldout": {"before": {"f1": 0.25, "pairs": 8}, "after": {"f1": 0.125, "recall": 1.0, "pairs": 8}}}
    lines = before_after_table(summary).splitlines()
    assert lines[0].split() == ["held-out,", "8", "pairs", "before", "after", "change"]
    assert lines[1].split() == ["F1", "0.250", "0.125", "-0.125"]
    assert lines[4].split() == ["recall", "-", "1.000", "-"]
    assert len({len(line) for line in lines}) == 1


def test_the_table_of_an_unmeasured_run_has_no_figures() -> None:
    lines = before_after_table({"heldout": {}}).splitlines()
    assert lines[0].startswith("held-out, no pairs") and lines[1].split() == ["F1", "-", "-", "-"]


def test_boxes_are_judged_by_the_assignment_and_the_threshold() -> None:
    targets = [[0, 0, 10, 10], [50, 50, 60, 60]]
    # The first covers its target by 1/2 exactly, the second misses the other one, the third is left over.
    predicted = [[0, 0, 10, 5], [58, 58, 68, 68], [90, 0, 99, 9]]
    verdicts = [box.verdict for box in judge_boxes(predicted, targets, (100, 100), RULE)]
    assert verdicts == ["found", "missed", "matched", "spurious", "spurious"]
    assert judge_boxes([], [], (100, 100), RULE) == ()
    assert [box.verdict for box in judge_boxes([], targets, (100, 100), RULE)] == ["missed", "missed"]


def test_pairs_are_spread_over_the_file_and_not_chosen_by_result(tmp_path: Path) -> None:
    write_predictions(tmp_path / "heldout", 22)
    galleries, problems = galleries_of_pairs(tmp_path / "heldout", RULE)
    pictures = galleries[0].pictures
    assert [int(picture.pair_id[-3:]) for picture in pictures] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert problems == []


def test_large_images_are_shrunk_before_they_are_embedded(tmp_path: Path) -> None:
    write_predictions(tmp_path / "heldout", 1)
    Image.effect_noise((2000, 1500), 100).save(tmp_path / "heldout" / "a.png")
    galleries, _ = galleries_of_pairs(tmp_path / "heldout", RULE)
    (picture,) = galleries[0].pictures
    assert picture.size_px == (2000, 1500)
    assert picture.image_a.startswith("data:image/jpeg") and len(picture.image_a) < 100_000


def test_galleries_are_the_best_the_worst_and_the_most_improved(tmp_path: Path) -> None:
    write_predictions(tmp_path / "heldout", 6)
    scores = {"before": [0.5, 0.0, 1.0, 0.5, None, 0.0], "after": [0.75, 1.0, 1.0, 0.25, 0.5, 0.0]}
    for moment, f1s in scores.items():
        path = tmp_path / "heldout" / f"predictions_{moment}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r | {"f1": f1}) + "\n" for r, f1 in zip(records, f1s, strict=True)))
    galleries, problems = galleries_of_pairs(tmp_path / "heldout", RULE)
    chosen = {gallery.title: [int(p.pair_id[-3:]) for p in gallery.pictures] for gallery in galleries[1:]}
    assert chosen == {"Best pairs": [1, 2, 0, 4], "Worst pairs": [5, 3, 4, 0], "Most improved pairs": [1, 4, 0]}
    assert problems == []


def test_intervals_and_the_paired_difference_stand_in_the_table(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path, steps=2, pairs=12))
    # All twelve pairs went from 0 to 1: no resample of them says anything else.
    for part in ("<small>0.000 to 0.000</small>", "<small>1.000 to 1.000</small>", "<small>+1.000 to +1.000</small>"):
        assert part in text
    assert "<small>better</small>" in text and "95% bootstrap" in text


def test_a_change_between_other_pairs_is_not_taken_for_the_policys(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps=2, pairs=12)
    notice = "The pairs answered before and after training are not the same"
    assert notice not in page_of(run_dir)
    answers = run_dir / "heldout/predictions_after.jsonl"
    answers.write_text(answers.read_text().replace("test-003", "test-300"))
    assert notice in page_of(run_dir)


def test_validation_has_curves(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps=4)
    assert "F1 by number of changes" not in page_of(run_dir)
    with Tracker(run_dir, restored_step=4) as tracker:
        tracker.log(4, {"validation/f1": 0.5, "validation_by_count/f1_1": 0.75, "validation_by_count/f1_2": 0.25})
    text = page_of(run_dir)
    assert "Greedy answers" in text and "F1 by number of changes" in text


def steps(count: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "stage": "s" if step <= count / 2 else "t", "x": float(step)} for step in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 39, 40, 5000])
def test_curves_of_any_length_stay_small(count: int) -> None:
    svg = plots.curves(steps(count), ["x"], unit="u")
    assert svg is not None and len(svg) < 150_000
    assert re.search(r"<!-- t -->", svg)  # matplotlib notes each text it draws: the name of the second stage


def test_nothing_to_draw_gives_no_curve() -> None:
    assert plots.curves([], ["x"], unit="u") is None
    assert plots.curves([{"step": 1, "stage": None, "x": 1.0}], ["x"], unit="u") is None
    assert plots.phase_areas(steps(3), ["learn"]) is None


def test_the_same_run_gives_the_same_curve() -> None:
    assert plots.curves(steps(50), ["x"], unit="u") == plots.curves(steps(50), ["x"], unit="u")
