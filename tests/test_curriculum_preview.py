"""`make curriculum-preview`: every figure counted by hand, and what it says where the length is open."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from dig_rl.curriculum import Curriculum
from dig_rl.reporting.curriculum_preview import (
    DrawnStage,
    count_table,
    draw_everything,
    kind_table,
    notes,
    plot_preview,
    stage_table,
)
from launch import curriculum_preview
from launch.terminal import end_with_message
from tests.test_curriculum import pairs, stage

RULE = {"metric": "f1", "level": 0.6, "window": 2, "min_steps": 3}


def preview() -> list[DrawnStage]:
    """Two pairs a step: 3 to 6 steps of single, then dual up to step 10 of the run."""
    stages = [
        stage("single", 1, 1, steps=6, promotion=RULE, overrides={"temperature": 0.7}),
        stage("dual", 2, 2, until_step=10, replay=0.25, adaptive={}, kinds=["color"]),
    ]
    return draw_everything(Curriculum(stages, pairs(d1=4, d2=3, d3=2), seed=0, prompts_per_step=2))


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]  # type: ignore[arg-type]


def test_pairs_are_counted_by_stage() -> None:
    # Dual: 4 steps of 2 make 8 pairs, a quarter of them from single; earlier ends of single give it up to 7 steps.
    assert cells(stage_table(preview())) == [
        ["single", "3-6", "4", "12", "3.00", "0"],
        ["dual", "4-7", "3", "6", "2.00", "2"],
    ]


def test_changes_and_kinds_are_shares_of_what_is_drawn() -> None:
    drawn = preview()
    assert cells(count_table(drawn)) == [["single", "100%", "-"], ["dual", "25%", "75%"]]
    assert cells(kind_table(drawn)) == [["single", "100%"], ["dual", "100%"]]
    assert [step.replayed.total() for step in drawn[1].steps] == [0, 1, 0, 1]


def test_notes_say_what_is_open_and_what_is_not_plain_drawing() -> None:
    assert notes(preview()) == [
        "single is open: it ends as soon as f1 is 0.6 or more over 2 steps, after 3 to 6 steps; shown are 6",
        "single runs with temperature 0.7",
        "dual: only kinds color",
        "dual is open: it has 4 to 7 steps, and ends with step 10 of the run; shown are 4",
        "dual: 25% of its pairs are drawn from those of single",
        "dual prefers pairs whose answers disagree: which these are, only the run can tell",
    ]


def test_a_stage_after_one_with_a_fixed_end_has_a_fixed_length() -> None:
    stages = [
        stage("single", 1, 1, steps=6, promotion=RULE),
        stage("dual", 2, 2, until_step=10),
        stage("mixed", 1, 4, until_step=20),
    ]
    drawn = draw_everything(Curriculum(stages, pairs(d1=4, d2=3, d3=2), seed=0, prompts_per_step=2))
    assert [row[:2] for row in cells(stage_table(drawn))] == [["single", "3-6"], ["dual", "4-7"], ["mixed", "10"]]
    assert not any("mixed is open" in note for note in notes(drawn))


def test_a_promoted_stage_with_a_fixed_end_is_longest_after_the_shortest_beginning() -> None:
    stages = [stage("single", 1, 1, steps=6, promotion=RULE), stage("dual", 2, 2, until_step=10, promotion=RULE)]
    drawn = draw_everything(Curriculum(stages, pairs(d1=4, d2=3), seed=0, prompts_per_step=2))
    assert cells(stage_table(drawn))[1][:2] == ["dual", "3-7"]
    assert "after 3 to 7 steps; shown are 4" in notes(drawn)[1]


def test_tables_fit_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = preview()
    Console(width=80).print(stage_table(drawn), count_table(drawn), kind_table(drawn))
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 400])
def test_picture_is_drawn_for_short_and_long_runs(tmp_path: Path, steps: int) -> None:
    stages = [stage("single", 1, 1, steps=1), stage("mixed", 0, 4, steps=steps, replay=0.3)]
    source = Curriculum(stages, pairs(d0=2, d1=5, d2=3, d4=2), seed=0, prompts_per_step=8)
    plot_preview(draw_everything(source), tmp_path / "preview.png", r"title of /data/$x$y/$\z")
    with Image.open(tmp_path / "preview.png") as image:
        assert image.size[0] == 1500
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["curriculum_preview", *arguments])
    return end_with_message(curriculum_preview.main, "nothing was written")


def write_data(folder: Path) -> Path:
    box = {"box": [1, 1, 9, 9], "box_a": [1, 1, 9, 9], "box_b": [1, 1, 9, 9]}
    known: dict[str, Any] = {"visible_px_a": 64, "visible_px_b": 64, "visible_fraction_a": 1, "visible_fraction_b": 0.5}
    difference = {"kind": "size", "object_id": 1, **box, **known}
    lines = [
        {"image_a_file_name": "images/a.png", "image_b_file_name": "images/b.png", "pair_id": f"p{count}", "width": 20}
        | {"height": 10, "num_differences": count, "split": "train", "seed": 1, "differences": [difference] * count}
        for count in (1, 2, 3, 4)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_command_prints_and_says_where_the_picture_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path)
    settings = ["--set", f'data.path="{data}"', "curriculum=curricula/staged.toml"]
    assert run_main(monkeypatch, *settings, "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert f"curricula/staged.toml on {data}: 75 steps of 64 pairs, from 4" in printed
    assert f"picture: {tmp_path / 'out' / 'staged.png'}" in printed
    assert (tmp_path / "out" / "staged.png").is_file()


def test_command_says_where_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", f'data.path="{write_data(tmp_path)}"', "curriculum=curricula/staged.toml"]
    (tmp_path / "file").write_text("")
    assert run_main(monkeypatch, *settings, "--out", str(tmp_path / "file/out")) == 1
    assert f"cannot write {tmp_path}/file/out/staged.png: Not a directory; name another" in capsys.readouterr().err


def test_command_ends_with_one_message_where_no_pair_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = tmp_path / "mine.toml"
    stages.write_text('[[stages]]\nname = "hidden"\ndifferences = [1, 4]\nvisibility = [0.0, 0.4]\nsteps = 1\n')
    settings = ["--set", f'data.path="{write_data(tmp_path)}"', f'curriculum="{stages}"']
    assert run_main(monkeypatch, *settings, "--out", str(tmp_path / "out")) == 1
    message = capsys.readouterr().err
    assert 'stage "hidden" wants pairs with 1 to 4 differences, visible fractions of 0 to 0.4' in message
    assert "0 of all have visible fractions of 0 to 0.4" in message
    assert not (tmp_path / "out").exists()
