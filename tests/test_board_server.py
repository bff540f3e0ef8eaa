"""TensorBoard itself is started on a run's folder and asked for every page that the run fills."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from dig_rl.board import evaluation_summaries, first_summaries, stage_summaries
from dig_rl.config import load_config
from dig_rl.tracking import Tracker
from tests.browser import Browser
from tests.test_board import BOX, answer, make_pairs

RUN = "first/tensorboard"
DEADLINE_S = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = tmp_path_factory.mktemp("runs")
    (runs / "first").mkdir()
    examples, config = make_pairs(runs, 2), load_config([], ["rollout.group_size=4"])
    answers = [answer(example, BOX) for example in examples]
    with Tracker(runs / "first", restored_step=None, head=first_summaries(config)) as tracker:
        for step in range(1, 6):
            figures = {"reward/total": step / 10, "reward/f1": 0.25}
            tracker.log(step, figures, stage="single", summaries=stage_summaries("single", figures))
            summaries = evaluation_summaries("validation", examples, answers, config)
            tracker.log(step, {"validation/f1": 0.5}, summaries=summaries)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    log = runs / "log.txt"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            yield wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), log).group()
        finally:
            server.terminate()


def wait_for(ask: Any, log: Path | None = None) -> Any:
    until = time.monotonic() + DEADLINE_S
    while not (found := ask()):
        assert time.monotonic() < until, log and log.read_text()
        time.sleep(0.2)
    return found


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{address}/data/plugin/{path}", data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=30) as response:
            return json.load(response)
    except URLError as error:
        return pytest.fail(f"{path}: {error}")


@pytest.mark.slow
def test_every_page_has_what_the_run_wrote(address: str) -> None:
    images = wait_for(lambda: ask(address, "images/tags").get(RUN))  # its files are read some time after it answers
    assert sorted(images) == ["validation_pairs/v-00", "validation_pairs/v-01"]
    layout = ask(address, "custom_scalars/layout")
    assert layout["category"][0]["title"] == "1 Does it learn?"
    for chart, tags in ((0, ["reward/total"]), (1, ["reward/f1"]), (2, ["validation/f1"])):
        found: list[str] = []
        for pattern in layout["category"][0]["chart"][chart]["multiline"]["tag"]:
            query = f"custom_scalars/scalars?run={quote(RUN, safe='')}&tag={quote(pattern, safe='')}"
            found += ask(address, query)["tag_to_events"]
        assert found == tags
    assert ask(address, "text/tags")[RUN] == ["validation_answers/pairs/text_summary"]
    assert "validation_histograms/count_error" in ask(address, "histograms/tags")[RUN]
    experiment = ask(address, "hparams/experiment", {"experimentName": ""})
    names = [info["name"] for info in experiment["hparamInfos"]]
    assert "learner.lr" in names and names.index("rollout.group_size") < names.index("alarms.duplicates")


WIDE = "[...walk(document)].filter(one => one.tagName === 'path' && one.getBoundingClientRect().width > 60).length"
"""Curves and areas, which icons are too small for."""
PAGES = {
    "custom_scalars": (("1 Does it learn?", "reward terms", "6 Where does the time go?"), f"{WIDE} >= 3"),
    "images": (("validation_pairs/v-00", "validation_pairs/v-01"), "pictures().some(one => one.naturalWidth > 700)"),
    "text": (("validation_answers", "1 true, 1 answered, ok"), "true"),
    "histograms": (("validation_histograms", "count_error"), f"{WIDE} >= 6"),
    "hparams": (("learner.lr", "rollout.group_size"), "true"),
    "timeseries": (("by_stage", "/reward_single"), "true"),
}
"""Page, what it says, and what else must hold before it is taken."""


@pytest.mark.long
def test_the_pages_show_it_in_a_browser(address: str, browser: Browser, tmp_path: Path) -> None:
    wait_for(lambda: ask(address, "images/tags").get(RUN))
    for name, (parts, drawn) in PAGES.items():
        page = browser.page(1400, 1000)
        page.open(f"{address}/#{name}")
        page.wait_for_text(*parts)
        page.wait_for(drawn)
        assert {url.split("/")[2] for url in page.requests() if url.startswith("http")} == {address.split("/")[2]}
        with Image.open(page.photograph(tmp_path / f"{name}.png")) as shot:
            assert shot.size == (1400, 1000) and len(shot.convert("RGB").getcolors(1 << 24) or []) > 50
