"""Where engines keep sockets and a token, if the usual places do not do."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import MutableMapping
from pathlib import Path

_log = logging.getLogger(__name__)

SHORT = "/tmp"
LONGEST_BYTES = 39
"""Of a temporary folder: a socket's path has 107, and Ray puts 68 behind the folder."""


def provide_sockets(environment: MutableMapping[str, str]) -> None:
    """Keep the sockets of Ray and vLLM in `/tmp` where the path of TMPDIR is too long for them.

    A place that the user names stays as it is.
    """
    folder = environment.get("TMPDIR", SHORT)
    if len(os.fsencode(folder)) <= LONGEST_BYTES or not os.access(SHORT, os.W_OK | os.X_OK):
        return
    if "RAY_TMPDIR" not in environment:
        _log.info("Ray and vLLM keep their sockets in %s: the path of TMPDIR is too long for them", SHORT)
    environment.setdefault("RAY_TMPDIR", SHORT)
    environment.setdefault("VLLM_RPC_BASE_PATH", SHORT)


def provide_token(environment: MutableMapping[str, str]) -> None:
    """Hand a token to a private Ray where the home folder, in which it would make one, cannot be written."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & environment.keys():
        return
    try:
        token = Path.home() / ".ray" / "auth_token"
        token.parent.mkdir(parents=True, exist_ok=True)
        can_keep = token.exists() or os.access(token.parent, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # RuntimeError: the system knows no home
        can_keep = False
    if not can_keep:
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
