"""`make serve`: the real server answers the openai client about a pair, and ends with nothing left behind."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from dig_rl.errors import ClusterError
from dig_rl.prompts import instruction
from dig_rl.vllm_options import SERVED_NAME
from launch.serve import wait_until_ready
from tests.groups import make_pair
from tests.next_commands import printed, resolve
from tests.tiny import CONFIG, ENVIRONMENT, ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_content(path: str) -> dict[str, object]:
    encoded = base64.b64encode(Path(path).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


@pytest.mark.slow
def test_the_server_answers_about_a_pair_and_ctrl_c_ends_it(random_policy: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "launch.serve", "--checkpoint", str(random_policy), "--port", str(port)]
    command += ["--log", str(tmp_path / "serve.log"), "--config", str(CONFIG)]
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready = next((line for line in server.stdout if line.startswith("ready: ")), None)
        assert ready is not None, (tmp_path / "serve.log").read_text()
        assert ready.startswith(f"ready: http://127.0.0.1:{port}/v1, model {SERVED_NAME}")
        (suites,) = printed(next(server.stdout))
        assert resolve(suites)["--url"] == f"http://127.0.0.1:{port}/v1"
        pair = make_pair(tmp_path, (64, 48))
        text = {"type": "text", "text": instruction("union", "norm1000")}
        content = [as_content(pair.image_a_path), as_content(pair.image_b_path), text]
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="local", timeout=120)
        assert [model.id for model in client.models.list()] == [SERVED_NAME]
        answers = [
            client.chat.completions.create(
                model=SERVED_NAME,
                messages=[{"role": "user", "content": content}],  # type: ignore[typeddict-item, list-item]
                max_tokens=8,
                temperature=0,
            )
            for _ in range(2)
        ]
        assert answers[0].usage is not None and 0 < answers[0].usage.completion_tokens <= 8
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=120) == 130
        assert psutil.wait_procs(children, timeout=60)[1] == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(timeout=120)


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text("one\n" * 50 + "the reason\n")
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    dead.wait()
    with pytest.raises(ClusterError, match=r"vLLM did not start:\n(one\n){14}the reason$"):
        wait_until_ready(dead, free_port(), log, timeout_s=30)


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text("loading\n")
    hangs = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        started = time.monotonic()
        with pytest.raises(ClusterError, match=r"was not ready after 1 s \(cluster\.start_timeout_s\):\nloading"):
            wait_until_ready(hangs, free_port(), log, timeout_s=1.0)
        assert time.monotonic() - started >= 1.0
    finally:
        hangs.kill()
        hangs.wait()
