"""How a process ended that can no longer say so: from what Ray noticed, and from what the process wrote itself."""

from __future__ import annotations

import re
from pathlib import Path

_NUM_WORDS = 3
_WORD_CHARACTERS = 200
# Ray's and Python's own lines after a signal, and Ray's log lines.
_CRASH = re.compile(r"^\*\*\* (SIG[A-Z]+) received at ", re.MULTILINE)
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_OF_RAY = re.compile(r"^\[[^]]* [A-Z] \d+ \d+\] |^.{0,9}\((raylet|autoscaler)[^)]*\)")

ADVICE = (
    "Run the same command again to go on from the last checkpoint; if memory ran out, lower rollout.kv_cache_gib, "
    "rollout.group_size or learner.micro_batch_tokens first"
)


def num_oom_kills() -> int:
    """Processes that this machine's out-of-memory killer has ended since it was started; 0 where nobody counts."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(counts.get("oom_kill", 0))


def written_since(log_path: Path, start: int) -> str:
    """What stands in a log after its first `start` bytes, which an earlier run has written."""
    try:
        return log_path.read_bytes()[start:].decode(errors="replace")
    except FileNotFoundError:
        return ""


def describe_death(reported: str, written: str, oom_kills: int = 0) -> str:
    """How the process ended, and its last words, in one line.

    Args:
        reported: by Ray.
        written: by the process, into its log.
        oom_kills: processes that the out-of-memory killer has ended while it ran.
    """
    return f"{_how(reported, written, oom_kills)}; {_last_words(written)}"


def _how(reported: str, written: str, oom_kills: int) -> str:
    if crash := _CRASH.search(written):
        fatal = _FATAL.search(written)
        return f"it crashed with {crash[1]}" + (f" ({fatal[1]})" if fatal else "")
    if "low on memory" in reported:
        return "Ray ended it, because its machine ran low on memory"
    if "receives a SIGTERM" in reported:
        return "somebody ended it with SIGTERM"
    if code := re.search(r"exit code (\d+)", reported):
        return f"it ended with exit code {code[1]}"
    if "connection error code" in reported:
        if oom_kills:
            return "the system killed it (SIGKILL, exit code 137), because memory ran out"
        return (
            "it was killed (SIGKILL, exit code 137), as the system does where memory runs out, or left without a word"
        )
    return reported.strip().splitlines()[-1].rstrip(".") if reported.strip() else "nobody knows how"


def _last_words(written: str) -> str:
    crash = _CRASH.search(written)
    own = written[: crash.start()] if crash else written
    # A progress bar writes its line again and again.
    lines = [line.rpartition("\r")[2].strip() for line in own.rstrip().split("\n") if not _OF_RAY.match(line)]
    words = [line[-_WORD_CHARACTERS:] for line in lines if line][-_NUM_WORDS:]
    return f"its last words: {' | '.join(words)}" if words else "it wrote nothing"
