"""Actors: results, errors, deaths and waits reach the driver as one clear message; nothing is left behind."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dig_rl.actors import cluster as cluster_module
from dig_rl.actors.cluster import Actor, Cluster
from dig_rl.config import ClusterConfig
from dig_rl.errors import ClusterError, PolicyError
from tests.hosted import heavy_modules
from tests.tiny import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow

ECHO = "tests.hosted:Echo"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(ClusterConfig(), tmp_path_factory.mktemp("logs"), num_actors=16) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> tuple[Actor, Actor]:
    actors = cluster.spawn("one-0", ECHO, "one"), cluster.spawn("two-0", ECHO, "two", environment={"MINE": "yes"})
    cluster.wait_until_ready()
    return actors


def test_more_gpus_than_a_private_cluster_has_are_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(
        ClusterError, match=r"greedy-0 reserves 99 GPUs.* this machine offers \d+\. Lower rollout\.num_gpus"
    ):
        cluster.spawn("greedy-0", ECHO, num_gpus=99)


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own: Ray knows one cluster a process."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_results_come_in_the_order_asked_for_not_the_order_done(cluster: Cluster, pair: tuple[Actor, Actor]) -> None:
    one, two = pair
    pending = [one.call("answer", 1, after_s=0.5), two.call("answer", 2), one.call("answer", 3), two.call("answer", 4)]
    assert cluster.gather(pending) == [("one", 1), ("two", 2), ("one", 3), ("two", 4)]
    assert cluster.gather([]) == []


def test_an_error_a_user_can_mend_arrives_as_itself(cluster: Cluster, pair: tuple[Actor, Actor]) -> None:
    with pytest.raises(PolicyError, match=r"^expected a, found b$"):
        cluster.gather([pair[1].call("answer", 1), pair[0].call("refuse")])
    assert cluster.gather([pair[0].call("answer", "still there")]) == [("one", "still there")]


def test_any_other_error_names_actor_and_log(cluster: Cluster, pair: tuple[Actor, Actor]) -> None:
    with pytest.raises(ClusterError, match=r"^two-0 failed: KeyError: 'missing'; log: .*two-0\.log$"):
        cluster.gather([pair[1].call("stumble")])
    with pytest.raises(ClusterError, match=r"one-0 failed: AttributeError: .*nonsense"):
        cluster.gather([pair[0].call("nonsense")])


def test_output_goes_to_the_actors_log_from_the_first_line(
    cluster: Cluster, pair: tuple[Actor, Actor], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError):
        cluster.gather([pair[1].call("stumble")])
    lines = pair[1].log_path.read_text().splitlines()
    assert "building two" in lines
    assert "about to stumble" in lines
    assert "building one" not in lines
    assert "stumble" not in "".join(capfd.readouterr())


def test_actors_have_their_environment_usual_priority_and_no_engine(
    cluster: Cluster, pair: tuple[Actor, Actor]
) -> None:
    (_, niceness, environment), (_, _, other) = cluster.gather([actor.call("where") for actor in pair][::-1])
    assert niceness == 0
    assert environment["MINE"] == "yes" and "MINE" not in other
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert cluster.gather([pair[0].run(heavy_modules)]) == [[]]


def test_memory_is_that_of_each_process(cluster: Cluster, pair: tuple[Actor, Actor]) -> None:
    gib = cluster.memory_gib()
    assert set(pair) <= set(gib)
    assert all(0.01 < value < 2 for value in gib.values())


def test_an_error_while_building_arrives_as_itself(tmp_path: Path, cluster: Cluster) -> None:
    good, bad = cluster.spawn("good-0", ECHO, "good"), cluster.spawn("bad-0", ECHO, "bad", "policy")
    with pytest.raises(PolicyError, match=r"^no policy for bad$"):
        cluster.wait_until_ready()
    cluster_module.ray.kill(bad.handle)
    cluster._actors.remove(bad)
    assert cluster.gather([good.call("answer", 1)]) == [("good", 1)]


def test_a_call_to_an_actor_that_failed_to_build_says_why_it_failed(cluster: Cluster) -> None:
    bad = cluster.spawn("worse-0", ECHO, "worse", "bug")
    with pytest.raises(ClusterError, match=r"^worse-0 failed: ZeroDivisionError: by hand; log: .*worse-0\.log$"):
        cluster.wait_for([bad.call("answer", 1)])


def test_a_class_that_is_not_there_is_named(cluster: Cluster) -> None:
    cluster.spawn("none-0", "tests.hosted:Nothing")
    with pytest.raises(ClusterError, match=r"none-0 failed: AttributeError: .*Nothing"):
        cluster.wait_until_ready()


KILLED = "it was killed (SIGKILL, exit code 137), as the system does where memory runs out, or left without a word"
DEATHS: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "killed": (("crash", signal.SIGKILL), KILLED, "its last words: building killed | before the end"),
    "gone": (("die",), KILLED, "its last words: building gone | first words | native library: out of memory"),
    "crashed": (
        ("crash", signal.SIGSEGV),
        "it crashed with SIGSEGV (Segmentation fault)",
        "building crashed | before the end",
    ),
}


def test_a_dead_actor_is_named_with_how_it_died_and_its_last_words(
    cluster: Cluster, pair: tuple[Actor, Actor], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in DEATHS:
        log = cluster._log_dir / f"{name}-0.log"
        log.write_text("RuntimeError: of a start last week\n")
    victims = {name: cluster.spawn(f"{name}-0", ECHO, name) for name in DEATHS}
    cluster.wait_until_ready()
    capfd.readouterr()
    for name, (call, how, words) in DEATHS.items():
        with pytest.raises(ClusterError) as caught:
            cluster.gather([pair[0].call("answer", 1), victims[name].call(*call)])
        message = str(caught.value)
        assert message.startswith(f"{name}-0 died: {how}; "), message
        assert f"{words}; log: {victims[name].log_path}. Run the same command again" in message
        assert "\n" not in message and "last week" not in message
        cluster._actors.remove(victims[name])
    time.sleep(1)  # what Ray has to say comes from a thread of its own
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("first", ["victim", "peer"])
def test_of_several_that_fail_the_dead_one_is_named(cluster: Cluster, pair: tuple[Actor, Actor], first: str) -> None:
    """A rank that is killed takes its peers with it, and one of these may be heard first."""
    victim = cluster.spawn("doomed-0", ECHO, "doomed")
    cluster.wait_until_ready()
    delay = {"victim": 30.0, "peer": 0.0}[first]  # nobody waits for those that hang
    pending = [pair[0].call("break_off", delay), victim.call("answer", 1, after_s=0.5), victim.call("die")]
    with pytest.raises(ClusterError, match=r"^doomed-0 died: it was killed"):
        cluster.gather(pending)
    cluster._actors.remove(victim)


def test_a_start_that_takes_too_long_names_who_is_awaited(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.spawn("quick-0", ECHO, "quick")
    cluster.wait_until_ready()  # however long a busy machine takes for it
    monkeypatch.setattr(cluster, "_config", ClusterConfig(start_timeout_s=4.0))
    monkeypatch.setattr(cluster_module, "_REPORT_WAIT_EVERY_S", 1.0)
    cluster.spawn("slow-0", ECHO, "slow", "slow")
    homeless = cluster.spawn("homeless-0", ECHO, "homeless", num_cpus=1000)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(ClusterError) as caught:
        cluster.wait_until_ready()
    assert time.monotonic() - started < 60
    message = str(caught.value)
    assert message.startswith("homeless-0, slow-0 not ready after 4 s; cluster offers {")
    assert "cluster.start_timeout_s" in message
    assert "waiting for homeless-0, slow-0; free resources" in caplog.text
    # A single result that never comes is told in the same way.
    with pytest.raises(ClusterError, match="homeless-0 not ready after 4 s"):
        cluster.wait_for([homeless.call("answer", 1)])


LEAVE = """
import sys
from pathlib import Path
import psutil
from dig_rl.actors.cluster import Cluster
from dig_rl.config import ClusterConfig
from dig_rl.errors import PolicyError
try:
    with Cluster(ClusterConfig(), Path(sys.argv[1]), num_actors=2) as cluster:
        cluster.spawn("one-0", "tests.hosted:Echo", "one")
        cluster.wait_until_ready()
        cluster.spawn("slow-0", "tests.hosted:Echo", "slow", "slow")
        children = psutil.Process().children(recursive=True)
        raise PolicyError("the run fails")
except PolicyError:
    _, alive = psutil.wait_procs(children, timeout=60)
    print(len(children), [child.name() for child in alive])
"""


def test_leaving_ends_every_process(tmp_path: Path) -> None:
    done = run_script(LEAVE, str(tmp_path / "logs"))
    assert done.returncode == 0, done.stderr
    number, alive = done.stdout.strip().splitlines()[-1].split(maxsplit=1)
    assert int(number) > 2
    assert alive == "[]"


JOIN = """
import sys
from pathlib import Path
from dig_rl.actors.cluster import Cluster
from dig_rl.config import ClusterConfig
from launch.terminal import end_with_message
sys.exit(end_with_message(lambda: Cluster(ClusterConfig(address=sys.argv[2]), Path(sys.argv[1]), 1), ""))
"""


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no such address"])
def test_a_cluster_that_cannot_be_reached_is_one_message(tmp_path: Path, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # and nobody listens there any more
    address = address.format(port=port)
    done = run_script(JOIN, str(tmp_path / "logs"), address)
    assert done.returncode == 1, done.stdout + done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert error.startswith(f"error: cannot reach Ray ({address}): ")
    assert "cluster.address" in error
    assert "Traceback" not in done.stderr
