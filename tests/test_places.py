"""Sockets and tokens of engines where the usual places do not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dig_rl.actors.places import LONGEST_BYTES, provide_sockets, provide_token

# As Ray names it: a session by date, time, microseconds and process, with a socket in it.
SOCKET = "/ray/session_2026-11-29_19-48-22_123456_4194304/sockets/plasma_store"
LIMIT = 107
"""Bytes of a socket's path on Linux."""


def test_a_short_folder_has_room_for_a_socket_and_a_longer_one_is_left() -> None:
    assert LONGEST_BYTES + len(SOCKET) == LIMIT
    fits, too_long = "/" + "x" * (LONGEST_BYTES - 1), "/" + "ü" * (LONGEST_BYTES // 2) + "x"
    for environment in ({}, {"TMPDIR": fits}):
        given = dict(environment)
        provide_sockets(given)
        assert given == environment
    environment = {"TMPDIR": too_long}
    provide_sockets(environment)
    assert environment == {"TMPDIR": too_long, "RAY_TMPDIR": "/tmp", "VLLM_RPC_BASE_PATH": "/tmp"}
    named = {"TMPDIR": too_long, "RAY_TMPDIR": "/mine", "VLLM_RPC_BASE_PATH": "/mine"}
    environment = dict(named)
    provide_sockets(environment)
    assert environment == named


def test_a_token_is_handed_on_where_the_home_folder_cannot_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environment: dict[str, str] = {}
    provide_token(environment)
    assert environment == {}
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    provide_token(environment)
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    named = {"RAY_AUTH_TOKEN_PATH": "/mine"}
    provide_token(named)
    assert named == {"RAY_AUTH_TOKEN_PATH": "/mine"}
