"""`make serve CHECKPOINT=`: a policy behind vLLM's OpenAI-compatible server on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from dig_rl.actors.places import provide_sockets
from dig_rl.config import Config
from dig_rl.errors import ClusterError
from dig_rl.next_command import next_command
from dig_rl.policy.load import load_frontend
from dig_rl.vllm_options import SERVED_NAME, serve_command
from launch.arguments import add_settings
from launch.checkpoints import load_checkpoint_config
from launch.next_steps import print_next
from launch.suites import longest_answer
from launch.terminal import end_with_message

_POLL_S = 1.0
_STOP_S = 30.0
_TAIL_LINES = 15


def main() -> None:
    """Parse arguments, start, wait until it answers, say so, and stay until it ends or is ended."""
    parser = argparse.ArgumentParser(prog="make serve", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="policy folder, run folder, or a checkpoint (CHECKPOINT=)")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (PORT=; default 8000)")
    parser.add_argument("--log", type=Path, default=Path("runs", "serve.log"), help="what vLLM prints (LOG=)")
    add_settings(parser)
    options = parser.parse_args(sys.argv[1:] or ["--help"])
    config, description = load_checkpoint_config(options.checkpoint, options.config, options.set)
    frontend = load_frontend(config.policy, config.data.box_target)
    area = frontend.resize_area_px
    command = serve_command(sys.executable, config, area, port=options.port, thinking=config.policy.thinking)
    print(
        f"{options.checkpoint}: {description}",
        f"pictures of {area['shortest_edge']} to {area['longest_edge']} px after resizing (policy.min_pixels, "
        f"max_pixels); {config.rollout.max_model_len} tokens in all (rollout.max_model_len)",
        f"starting vLLM; what it prints goes to {options.log}",
        sep="\n",
        flush=True,
    )
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with options.log.open("w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end it in order.
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=_environment(config)
        )
        try:
            wait_until_ready(server, options.port, options.log, config.cluster.start_timeout_s)
            url = f"http://127.0.0.1:{options.port}/v1"
            print(f"ready: {url}, model {SERVED_NAME}; Ctrl-C ends it")
            print_next(_suites(config, url, options))
            server.wait()
            raise ClusterError(f"the server ended by itself:\n{_tail(options.log)}")
        finally:
            stop(server)


def _suites(config: Config, url: str, options: argparse.Namespace) -> str:
    room = config.rollout.max_model_len
    fewer = None if longest_answer(config) < room else room // 2
    return next_command(
        "suites", CHECKPOINT=options.checkpoint, URL=url, MAX_TOKENS=fewer, CONFIG=options.config, SET=options.set
    )


def wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float) -> None:
    """Return when the server answers `/health`.

    Raises:
        ClusterError: it ended, or took longer than `timeout_s`; shows the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ClusterError(f"vLLM did not start:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                # Another server on this port would answer, too, while ours is about to fail.
                if answer.status == 200 and server.poll() is None:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise ClusterError(f"vLLM was not ready after {timeout_s:.0f} s (cluster.start_timeout_s):\n{_tail(log)}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server and every process that it started; politely first."""
    if server.poll() is None:
        server.terminate()  # not SIGINT, which it ignores where we were started in the background
        with contextlib.suppress(subprocess.TimeoutExpired):  # killed below, with its engine
            server.wait(_STOP_S)
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all are gone
    server.wait()


def _environment(config: Config) -> dict[str, str]:
    hub = {} if config.policy.hub else {"HF_HUB_OFFLINE": "1"}
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment = os.environ | quiet | hub | {"OMP_NUM_THREADS": str(config.rollout.num_threads)}
    provide_sockets(environment)
    return environment


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])


if __name__ == "__main__":
    sys.exit(end_with_message(main, "the server has ended"))
