"""How a process ended, from what Ray and the process itself have left."""

from __future__ import annotations

from pathlib import Path

import pytest

from dig_rl.actors.deaths import describe_death, num_oom_kills, written_since

VANISHED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: _Host\nThe actor is dead because its "
    "worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
    "connection error code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer"
)
SIGTERM = "Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM."
MEMORY = "Task was killed due to the node running low on memory.\nMemory on the node was 15 GB / 16 GB"
NODE = "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died."
FOREIGN = (
    "[2026-11-29 19:27:21,507 E 24866 24866] logging.cc:474: x\n 1%\r 50%\r100%\n"
    "\x1b[33m(raylet)\x1b[0m A worker died\n"
)
CRASHED = (
    "loading\n*** SIGSEGV received at time=1 on cpu 0 ***\nPC: @ 0x7f (unknown) kill\n"
    "Fatal Python error: Segmentation fault\n\nStack (most recent call first):\n  File x\n"
)


@pytest.mark.parametrize(
    ("reported", "written", "oom_kills", "expected"),
    [
        (VANISHED, "", 1, "the system killed it (SIGKILL, exit code 137), because memory ran out; it wrote nothing"),
        (MEMORY, "a\n\n b \nc\nd", 0, "Ray ended it, because its machine ran low on memory; its last words: b | c | d"),
        (VANISHED, CRASHED, 0, "it crashed with SIGSEGV (Segmentation fault); its last words: loading"),
        (SIGTERM, "x", 0, "somebody ended it with SIGTERM; its last words: x"),
        (NODE, "", 0, "The actor died because its node has died; it wrote nothing"),
        ("Worker exits with an exit code 137.", FOREIGN, 0, "it ended with exit code 137; its last words: 100%"),
    ],
)  # fmt: skip
def test_how_it_ended(reported: str, written: str, oom_kills: int, expected: str) -> None:
    assert describe_death(reported, written, oom_kills) == expected


def test_long_words_are_cut_at_their_beginning() -> None:
    assert describe_death("exit code 1", "x" * 500 + "end\n").endswith("x" * 197 + "end")


def test_what_an_earlier_start_has_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert written_since(log, 0) == ""
    log.write_text("ä old\nnew\n", encoding="utf-8")
    assert written_since(log, len("ä old\n".encode())) == "new\n"
    assert num_oom_kills() >= 0
