"""`make eval`: answer the pairs of a data folder with vLLM, or read stored answers, and measure them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dig_rl.actors.cluster import Cluster
from dig_rl.actors.fleet import launch_rollouts
from dig_rl.bounds import MAX_TEMPERATURE, MIN_TEMPERATURE
from dig_rl.config import Config, load_config
from dig_rl.durable import write_durably
from dig_rl.errors import ConfigError, MissingSplitError
from dig_rl.evaluate import answer_pairs
from dig_rl.evaluation.answers import JudgedPair, TruePair, judge_pairs, load_true_pairs, read_answers, write_answers
from dig_rl.evaluation.overview import Overview, overview
from dig_rl.next_command import next_command
from dig_rl.overrides import override
from dig_rl.reporting.evaluation_plots import draw_overview
from dig_rl.reporting.evaluation_tables import overview_lines, overview_markdown
from dig_rl.rollout import MAX_GROUP_SIZE
from launch.arguments import add_settings
from launch.checkpoints import SETTINGS_FILE, find_policy, load_checkpoint_config, load_predictions_config
from launch.next_steps import print_next, training_on
from launch.terminal import end_with_message

PREDICTIONS_FILE = "predictions.jsonl"
EVALUATION_FILE = "evaluation.json"


class Decoding(NamedTuple):
    """How a policy answers."""

    num_samples: int
    """Answers a pair."""
    temperature: float
    """0 takes the most likely token each time."""

    @classmethod
    def of_options(cls, num_samples: int | None, temperature: float | None) -> Decoding:
        """Greedy unless samples or a temperature are asked for; several samples alone are drawn at temperature 1.

        Raises:
            ConfigError: several greedy answers, or a number out of range.
        """
        samples = 1 if num_samples is None else num_samples
        chosen = (1.0 if samples > 1 else 0.0) if temperature is None else temperature
        in_range = chosen == 0.0 or MIN_TEMPERATURE <= chosen <= MAX_TEMPERATURE
        if not 1 <= samples <= MAX_GROUP_SIZE or not in_range:
            raise ConfigError(
                f"expected 1 to {MAX_GROUP_SIZE} SAMPLES and a TEMPERATURE of 0 or from {MIN_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}, found {samples} and {chosen:g}"
            )
        if samples > 1 and chosen == 0.0:
            raise ConfigError(f"{samples} SAMPLES at TEMPERATURE 0 would all be the same; ask for 1, or raise it")
        return cls(samples, chosen)

    def __str__(self) -> str:
        if self.temperature == 0.0:
            return "greedy"
        return f"{self.num_samples} sampled at temperature {self.temperature:g}"


class Source(NamedTuple):
    """Where answers come from, checked, before an engine is started for them."""

    name: str
    """Checkpoint or predictions file, as the user wrote it."""
    description: str
    config: Config
    truths: list[TruePair]
    stored: list[JudgedPair] | None
    """Judged answers of a predictions file."""
    decoding: Decoding

    @property
    def facts(self) -> dict[str, str]:
        """What is evaluated and how, for the reader."""
        data = self.config.data
        return {
            "source": f"{self.name}: {self.description}",
            "data": f"{data.path}, split {data.heldout_split}, {len(self.truths)} pairs",
            "answers": "as stored" if self.stored is not None else str(self.decoding),
            "found": f"IoU of at least {self.config.evaluation.match_iou:g}",
        }


def main() -> None:
    """Parse arguments, answer or read, measure, write, print."""
    parser = argparse.ArgumentParser(prog="make eval", description=__doc__)
    parser.add_argument("--checkpoint", help="policy folder, run folder, or a checkpoint of a run (CHECKPOINT=)")
    parser.add_argument("--predictions", type=Path, help="stored answers instead of a policy (PREDICTIONS=)")
    add_data_options(parser)
    parser.add_argument("--out", type=Path, help="folder to write (OUT=; default: runs/eval/<checkpoint>-on-<data>)")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) == (arguments.predictions is None):
        raise ConfigError("name what to evaluate: either CHECKPOINT= (a policy or run folder) or PREDICTIONS= (a file)")
    source = open_source(arguments.checkpoint or str(arguments.predictions), arguments)
    out = arguments.out or _default_out(source.name, arguments)
    print(source.facts["source"], source.facts["data"], sep="\n", flush=True)
    pairs, seconds = answers_of(source, out)
    started = time.perf_counter()
    found = overview(pairs, source.config.evaluation.match_iou)
    seconds["judge"] = time.perf_counter() - started
    _write_page(out, source, found)
    seconds["write"] = time.perf_counter() - started - seconds["judge"]
    _write_figures(out, source, found, seconds)
    print(f"{found.num_pairs} pairs", overview_lines(found), sep="\n")
    if "vllm" in seconds:
        print(_cost(seconds, len(pairs)))
    print(f"written to {out}: evaluation.md, .json and .png")
    if arguments.checkpoint is not None:
        print_next(*_next_commands(source, arguments))


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that evaluation and comparison share."""
    parser.add_argument("--data", help="data folder (DATA=; default: data.path of the settings)")
    parser.add_argument("--split", help="train, validation or test (SPLIT=; default: data.heldout_split)")
    parser.add_argument("--samples", type=int, help="answers a pair (SAMPLES=; default 1)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (TEMPERATURE=; default 0, or 1 with SAMPLES=)")
    add_settings(parser)


def open_source(name: str, options: argparse.Namespace) -> Source:
    """Find a policy, or read the answers of a predictions file (`*.jsonl`), and the pairs they belong to.

    Args:
        name: checkpoint or predictions file.
        options: those of `add_data_options`.

    Raises:
        DigRlError: a source, config or data folder is wrong, or does not fit the others.
    """
    decoding = Decoding.of_options(options.samples, options.temperature)
    overrides = list(options.set)
    if options.data:
        overrides.append(override("data.path", options.data))
    if options.split:
        overrides.append(override("data.heldout_split", options.split))
    is_stored = name.endswith(".jsonl")
    if is_stored:
        config, description = load_predictions_config(Path(name), options.config, overrides)
    else:
        config, description = load_checkpoint_config(name, options.config, overrides)
    data = config.data
    try:
        truths = load_true_pairs(data.path, data.heldout_split, data.box_target, config.evaluation.max_pairs)
    except MissingSplitError as error:
        raise MissingSplitError(f"{error}; name one that is there with SPLIT=") from None
    stored = judge_pairs(truths, read_answers(Path(name)), name) if is_stored else None
    return Source(name, description, config, truths, stored, decoding)


def answers_of(source: Source, out: Path) -> tuple[list[JudgedPair], dict[str, float]]:
    """Judged answers, and what answering took.

    Args:
        source: stored answers, or a policy that is started and asked.
        out: folder that a policy's answers, its settings and the engine's logs are written to.

    Returns:
        The pairs, and seconds by phase: `start` of the engine; `answer`, of which `vllm` inside vLLM; `stop` of the
        engine, with the answers written. None for stored answers.
    """
    if source.stored is not None:
        return source.stored, {}
    config, examples = source.config, [truth.example for truth in source.truths]
    started = time.perf_counter()
    with Cluster(config.cluster, out / "logs", config.rollout.num_workers) as cluster:
        rollouts, policy = launch_rollouts(cluster, config)
        ready = time.perf_counter()
        rollouts.check_token_budget(examples)
        answers = answer_pairs(rollouts, policy, examples, config, **source.decoding._asdict())
        answered, vllm = time.perf_counter(), rollouts.engine_seconds()
    write_answers(out / PREDICTIONS_FILE, answers)
    write_durably(out / SETTINGS_FILE, config.model_dump_json(indent=2) + "\n")
    pairs = judge_pairs(source.truths, answers, source.name)
    ended = time.perf_counter()
    return pairs, {"start": ready - started, "answer": answered - ready, "vllm": vllm, "stop": ended - answered}


def outside_vllm_share(seconds: Mapping[str, float]) -> float:
    """Share of the time after the engine's start that was spent outside vLLM, in [0, 1]."""
    return 1.0 - seconds["vllm"] / _after_start(seconds)


def _after_start(seconds: Mapping[str, float]) -> float:
    return sum(value for phase, value in seconds.items() if phase not in ("start", "vllm"))  # vllm is part of answer


def _cost(seconds: Mapping[str, float], num_pairs: int) -> str:
    return (
        f"the engine started in {seconds['start']:.1f} s; then {_after_start(seconds):.1f} s for {num_pairs} pairs, "
        f"{outside_vllm_share(seconds):.0%} of it outside vLLM"
    )


def _next_commands(source: Source, options: argparse.Namespace) -> list[str]:
    """Is the policy of a run better than the one it began with? A policy of no run: train it on these pairs."""
    run_config = find_policy(source.name, may_download=lambda: True).run_config
    if run_config is None:
        folder = Path(source.config.data.path)
        return list(filter(None, [training_on(folder, policy=source.name)])) if Path(source.name).is_dir() else []
    start = load_config([run_config]).policy.path
    shared = {"DATA": options.data, "SPLIT": options.split, "SET": options.set}
    command = next_command("compare", A=start, B=source.name, CONFIG=[run_config, *options.config], **shared)
    return [command] if Path(start).is_dir() else []


def _default_out(source: str, options: argparse.Namespace) -> Path:
    data = f"-on-{Path(options.data).name}" if options.data else ""
    split = f"-{options.split}" if options.split else ""
    parts = [part for part in Path(source).with_suffix("").parts if part != "checkpoints"]
    return Path("runs", "eval", "-".join(parts[-2:]) + data + split)


def _write_page(out: Path, source: Source, found: Overview) -> None:
    out.mkdir(parents=True, exist_ok=True)
    title, facts = _title(source), source.facts
    write_durably(out / "evaluation.md", overview_markdown(title, facts, found) + "\n![](evaluation.png)\n")
    draw_overview(found, out / "evaluation.png", f"{title}: {found.num_pairs} pairs, {facts['answers']}")


def _write_figures(out: Path, source: Source, found: Overview, seconds: Mapping[str, float]) -> None:
    contents = {"facts": source.facts, **found.to_json(), "seconds": {name: round(s, 3) for name, s in seconds.items()}}
    if "vllm" in seconds:
        contents["outside_vllm_share"] = round(outside_vllm_share(seconds), 4)
    write_durably(out / EVALUATION_FILE, json.dumps(contents, indent=2) + "\n")


def _title(source: Source) -> str:
    return f"Evaluation of {source.name}"


if __name__ == "__main__":
    sys.exit(end_with_message(main, "nothing was written"))
