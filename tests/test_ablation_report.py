"""What several seeds show, by hand-computed intervals, and the page that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dig_rl.ablations.ledger import Entry, append_entries
from dig_rl.ablations.results import Claim, SeedMean, compare, of_arm, seed_mean
from dig_rl.reporting.ablation_arms import ARMS, CLAIMS, LOOSE_LEDGER
from dig_rl.reporting.ablation_plots import draw_axis
from dig_rl.reporting.ablation_report import ablation_markdown
from launch import ablations

START = {"f1": 0.3, "mean_iou": 0.4, "count_accuracy": 0.5, "parse_rate": 0.9}


def entry(arm: str, seed: int, f1: float, **changes: Any) -> Entry:
    axis = next(axis for axis, arms in ARMS.items() if arm in [one.name for one in arms])
    values = START | {"f1": f1, "axis": axis, "arm": arm, "seed": seed, "steps": 75, "seconds": 1800.0}
    values |= {"training_seconds": 1500.0, "completions": 38400, "before": START, "fingerprint": f"{arm}-{seed}"}
    return Entry.model_validate(values | changes)


def entries(**f1_by_arm: list[float]) -> list[Entry]:
    return [entry(arm, seed, f1) for arm, values in f1_by_arm.items() for seed, f1 in enumerate(values)]


def test_interval_by_hand() -> None:
    # Mean 0.4, s = 0.1 (ddof 1), t of 0.975 with 2 degrees of freedom = 4.302653: 4.302653 * 0.1 / sqrt(3) = 0.248414.
    found = SeedMean((0.3, 0.4, 0.5), (0, 1, 2))
    assert found.mean == pytest.approx(0.4)
    assert found.interval == pytest.approx((0.151586, 0.648414), abs=1e-6)
    # Two seeds: t of 0.975 with 1 degree of freedom = 12.706205, s / sqrt(2) = half the distance = 0.05.
    assert SeedMean((0.3, 0.4), (0, 1)).interval == pytest.approx((0.35 - 0.635310, 0.35 + 0.635310), abs=1e-6)
    assert SeedMean((0.3,), (0,)).interval is None


def test_figures_of_an_arm_by_seed() -> None:
    found = [entry("all", 2, 0.5), entry("staged", 0, 0.9), entry("all", 0, 0.4)]
    arm = of_arm(found, "all")
    assert seed_mean(arm, "f1") == SeedMean((0.4, 0.5), (0, 2))
    assert seed_mean(arm, "gain").values == pytest.approx((0.1, 0.2))
    assert seed_mean(arm, "before.mean_iou").values == (0.4, 0.4)


@pytest.mark.parametrize(
    ("lower", "higher", "differences", "verdict"),
    [
        # s = 0.01, half an interval = 4.302653 * 0.01 / sqrt(3) = 0.024841
        ([0.30, 0.30, 0.30], [0.32, 0.33, 0.34], (0.02, 0.03, 0.04), "reproduced"),  # 0.03 - 0.0248 > 0
        ([0.30, 0.30, 0.30], [0.31, 0.32, 0.33], (0.01, 0.02, 0.03), "not shown"),  # 0.02 - 0.0248 < 0
        ([0.32, 0.33, 0.34], [0.30, 0.30, 0.30], (-0.02, -0.03, -0.04), "reversed"),
        # Paired: the seeds lie far apart, but alike in both arms.
        ([0.1, 0.3, 0.5], [0.12, 0.33, 0.54], (0.02, 0.03, 0.04), "reproduced"),
        ([0.1, 0.3], [0.5], (0.4,), "not shown"),  # one seed has both
        ([0.1], [], None, "not shown"),
    ],
)
def test_verdicts_by_hand(
    lower: list[float], higher: list[float], differences: tuple[float, ...] | None, verdict: str
) -> None:
    found = compare(entries(format=lower, format_iou=higher), Claim("format", "format_iou"))
    assert found.verdict == verdict
    if differences is None:
        assert found.difference is None
    else:
        assert found.difference is not None and found.difference.values == pytest.approx(differences)


def test_claims_are_the_papers_orderings() -> None:
    assert CLAIMS["reward"] == (("format", "format_iou"), ("format_iou", "format_f1"), ("format_f1", "all"))
    assert set(CLAIMS["curriculum"]) == {
        ("single_only", "single_dual"),
        ("single_dual", "staged"),
        ("mixed_only", "staged"),
    }


FOUND = entries(
    format=[0.30, 0.30, 0.30],
    format_iou=[0.32, 0.33, 0.34],
    all=[0.40, 0.42, 0.44],
    shuffled_labels=[0.29, 0.30, 0.31],
    blank_image_b=[0.10, 0.16, 0.10],
    sft_more=[0.41, 0.45, 0.46],
)


def test_page_says_what_the_runs_show() -> None:
    page = ablation_markdown(FOUND)
    assert "75 steps, 38,400 scored answers." in page
    assert "add up to 9.0 hours" in page  # 18 runs of half an hour
    assert "| *start* | the policy before training | – | 0.300 | – | 0.400 | 0.500 | 0.900 | – | – |" in page
    # 0.42 +- 4.302653 * 0.02 / sqrt(3)
    all_row = "| `all` | format 0.1, F1 0.45, IoU 0.45 | 3 | 0.420 [0.370, 0.470] | +0.120 [+0.070, +0.170] |"
    assert all_row + " 0.400 [0.400, 0.400] | 0.500 | 0.900 | 0.400, 0.420, 0.440 | 30 |" in page
    assert "| `format_f1` | format 0.1, F1 0.9 | 0 | – | – | – | – | – | not run yet | – |" in page
    assert "| `format` < `format_iou` | +0.020, +0.030, +0.040 | +0.030 [+0.005, +0.055] | **reproduced** |" in page
    assert "| `format_f1` < `all` | no seed has both | – | **not shown** |" in page
    assert "By mean F1, from the lowest: `format` 0.300, `format_iou` 0.330, `all` 0.420." in page
    assert "## Which curriculum\n\nNo run is finished yet." in page
    assert "`shuffled_labels` gains 0.000 [-0.025, +0.025]; at most 0.02 on average is as it should be." in page
    assert "- `all` minus `sft_more`: -0.020 [-0.045, +0.005] (by seed: -0.010, -0.030, -0.020); a difference" in page
    assert "between GRPO and `sft_more` is **not shown**." in page and "`all` minus `sft_exact`" not in page
    assert "| `all-2` | 0.300 | 0.440 | 75 | 38,400 | 30.0 | 25.0 | `all-2` |" in page


def test_a_reason_is_told_once_it_was_tested() -> None:
    assert "tested" not in ablation_markdown(FOUND)
    matched = entries(format_iou_matched=[0.40, 0.41, 0.42], format_f1=[0.30, 0.30, 0.30])
    page = ablation_markdown([*FOUND, *matched])
    assert "tested: the IoU term here counts" in page and "tested: the boxes of this start" not in page
    assert (
        "| `format_iou_matched` < `format_f1` | -0.100, -0.110, -0.120 | -0.110 [-0.135, -0.085] | **reversed**" in page
    )
    assert "| `format_f1` < `all_matched` | no seed has both | – | **not shown** |" in page


def test_a_reason_that_needs_another_start_is_told_from_runs_of_its_own() -> None:
    # 0.75 - 0.65: s = 0.01, half an interval = 4.302653 * 0.01 / sqrt(3) = 0.024841
    loose = entries(format_iou_matched=[0.65, 0.65, 0.65], format_f1=[0.74, 0.75, 0.76])
    page = ablation_markdown(FOUND, loose)
    told = page[page.index("tested: the boxes of this start fit already") : page.index("## Which curriculum")]
    assert "| `format_f1` | format 0.1, F1 0.9 | 3 | 0.750 [0.725, 0.775] |" in told
    assert "| `format_iou` |" not in told and "| `format_iou_matched` | as `format_iou`" in told
    assert "| `format_iou_matched` < `format_f1` | +0.090, +0.100, +0.110 | +0.100 [+0.075, +0.125] | **as exp" in told
    assert "| `format_f1` < `all_matched` | no seed has both" in told
    assert "| `format_f1` | format 0.1, F1 0.9 | 0 |" in page[: page.index(told)]  # nothing of it counts elsewhere
    assert "9.0 hours" in page and "(ablations-loose.json):\n\n| run |" in page


def test_the_papers_reason_for_its_curriculum_is_told_for_both_starts() -> None:
    page = ablation_markdown(
        entries(mixed_only_sparse=[0.6, 0.6], staged_sparse=[0.7, 0.71]),
        entries(mixed_only=[0.8, 0.81], staged=[0.8, 0.8], mixed_only_sparse=[0.5, 0.51], staged_sparse=[0.4, 0.41]),
    )
    told = page[page.index("### Is it because rewards are sparse?") : page.index("## Controls")]
    shipped, loose = told.split("A reason, tested: ")[1:]  # no run of many_first is there
    assert "| `mixed_only_sparse` < `staged_sparse` | +0.100, +0.110 |" in shipped
    assert "| `mixed_only` < `staged` | 0.000, -0.010 |" in loose
    assert (
        "| `mixed_only_sparse` < `staged_sparse` | -0.100, -0.100 | -0.100 [-0.100, -0.100] | **reversed** |" in loose
    )
    assert "| `staged_sparse` | as `staged`" in loose and "| `single_only` |" not in loose


def test_runs_from_the_loose_start_are_written_into_the_page_of_all(tmp_path: Path, monkeypatch: Any) -> None:
    append_entries(tmp_path / "ablations.json", FOUND)
    append_entries(tmp_path / LOOSE_LEDGER, entries(format_f1=[0.74, 0.75], all_matched=[0.8, 0.81]))
    for ledger in ("ablations.json", LOOSE_LEDGER):
        monkeypatch.setattr("sys.argv", ["x", "--report-only", "--ledger", str(tmp_path / ledger)])
        ablations.main()
        page = (tmp_path / "ablations.md").read_text()
        assert "`all_matched` | as `all`" in page and "+0.060, +0.060" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        LOOSE_LEDGER,
        "ablations.json",
        "ablations.md",
        "images",
    ]


def test_controls_that_gain_are_told() -> None:
    page = ablation_markdown(entries(shuffled_labels=[0.35, 0.36], sft_exact=[0.5, 0.5, 0.5], all=[0.4, 0.41, 0.4]))
    assert "at most 0.02 on average is **more than it should**" in page
    assert "`sft_exact` gains **more** than GRPO" in page


def test_the_same_run_under_two_names_counts_its_time_once() -> None:
    both = [entry("all", 0, 0.4), entry("staged", 0, 0.4, fingerprint="all-0")]
    assert "add up to 0.5 hours" in ablation_markdown(both)


def test_page_without_runs_says_so() -> None:
    page = ablation_markdown([])
    assert (
        page.count("No run is finished yet.") == 3 and "Budget of each run of GRPO:\n  no run is finished yet." in page
    )


@pytest.mark.parametrize("axis", list(ARMS))
@pytest.mark.parametrize("found", [FOUND, FOUND[:1], entries(staged=[0.4], shuffled_labels=[0.3])])
def test_pictures_are_drawn_of_any_part_of_the_runs(axis: Any, found: list[Entry], tmp_path: Path) -> None:
    if any(item.axis == axis for item in found):
        draw_axis(found, axis, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as image:
            assert image.width > 1000 and len(image.convert("L").getcolors(256) or []) > 10


def test_report_alone_needs_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / "ablations.json"
    append_entries(ledger, FOUND)
    monkeypatch.setattr("sys.argv", ["x", "--report-only", "--recipe", "nowhere", "--ledger", str(ledger)])
    ablations.main()
    page = (tmp_path / "ablations.md").read_text()
    for name in ("reward", "control"):
        assert f"(images/ablations-{name}.png)" in page
        assert (tmp_path / f"images/ablations-{name}.png").is_file()
