"""A running Ray head on loopback, as a user of a cluster finds one."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@contextmanager
def running_ray_head() -> Iterator[dict[str, str]]:
    """A Ray head of our own that asks for a token of our own; yields what a client's environment needs.

    GCS_ADDRESS is where drivers join it, RAY_ADDRESS where jobs are submitted. It is stopped by the process that
    started it and by nothing broader.
    """
    folder = Path(tempfile.mkdtemp(prefix="digray", dir="/tmp"))  # socket paths must stay short
    (folder / "token").write_text(secrets.token_hex(32))
    port, dashboard, agent = free_ports(3)
    client = {
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "GCS_ADDRESS": f"127.0.0.1:{port}",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        "--dashboard-host=127.0.0.1", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}",
    ]  # fmt: skip
    settings = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    head = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_dashboard(client["RAY_ADDRESS"], head)
        yield client
    finally:
        head.terminate()
        head.wait(timeout=90)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_dashboard(address: str, head: subprocess.Popen[bytes], patience_s: float = 120) -> None:
    """Block until the head answers, if only that a token is needed."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended early"
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).close()
        except urllib.error.HTTPError as answer:
            assert answer.code == 401
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no Ray head at {address} after {patience_s} s")
