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
    head = None
    try:
        for _ in range(3):  # somebody may take a port between its being found free and Ray's opening it
            client, head = _start(folder)
            if _answers(client["RAY_ADDRESS"], head):
                break
        else:
            raise AssertionError("ray start ended early, three times")
        yield client
    finally:
        if head is not None:
            head.terminate()
            head.wait(timeout=90)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> tuple[dict[str, str], subprocess.Popen[bytes]]:
    port, dashboard, clients = free_ports(3)  # a head ends when its server of clients does, for want of port 10001
    client = {
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "GCS_ADDRESS": f"127.0.0.1:{port}",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0",
        f"--ray-client-server-port={clients}", "--dashboard-host=127.0.0.1", "--num-cpus=2",
        "--disable-usage-stats", f"--temp-dir={folder}",
    ]  # fmt: skip
    settings = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    environment = os.environ | settings
    return client, subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _answers(address: str, head: subprocess.Popen[bytes], patience_s: float = 300) -> bool:
    """Wait until the head answers, if only that a token is needed; False if it ends instead."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if head.poll() is not None:
            return False
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).close()
        except urllib.error.HTTPError as answer:
            assert answer.code == 401
            return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no Ray head at {address} after {patience_s} s")
