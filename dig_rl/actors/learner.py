"""One DeepSpeed rank: takes its share of the groups, updates the policy, hands out weights, saves and restores."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import deepspeed
import ray
import torch
import torch.distributed as dist

from dig_rl.actors.learner_files import DEEPSPEED_TAG, check_parts, rank_file, read_rank_state
from dig_rl.actors.random_state import random_state, restore_random_state
from dig_rl.actors.updates import Updates, tell_norm_without_zero
from dig_rl.algo.aggregation import aggregate
from dig_rl.algo.batch import MiniBatch, TrainingGroup, select_completions
from dig_rl.algo.logprobs import TokenLogprobs
from dig_rl.algo.loss import policy_loss
from dig_rl.algo.packing import PackedBatch, micro_batches, pack
from dig_rl.algo.statistics import UpdateStatistics, reduce_statistics
from dig_rl.config import Config
from dig_rl.deepspeed_table import learner_table
from dig_rl.errors import CheckpointError
from dig_rl.extension_lock import remove_stale_locks
from dig_rl.policy.checksums import as_sampled
from dig_rl.policy.load import load_frontend, load_model
from dig_rl.policy.records import WeightRecord, records_of
from dig_rl.policy.save import save_policy
from dig_rl.policy.scorer import PolicyScorer
from dig_rl.policy.trainable import (
    merged_parameters,
    merged_value,
    prepare_for_training,
    tied_names,
    without_adapters,
)
from dig_rl.policy.weights import examine_weights
from dig_rl.room import no_room_as_os_error
from dig_rl.types import Example, PolicyInput

WEIGHT_BUCKET_BYTES = 256 << 20
"""Weights travel to the rollout workers in parts of about this size."""


@dataclass
class _Pass:
    """One forward and backward pass, and what stays fixed over all updates of a rollout batch."""

    packed: PackedBatch
    counts: bool
    """Whether it is learned from; otherwise it only keeps this rank in step with the others."""
    logprobs_old_N: torch.Tensor | None = None
    """float32 `[N]` before the first update; None while they are those of the policy now."""
    logprobs_ref_N: torch.Tensor | None = None
    """float32 `[N]` of the reference; None before the first pass, and without a reference."""


class Learner:
    """A rank of the policy update."""

    def __init__(self, config: Config, rank: int, world_size: int) -> None:
        """Prepare a rank; `join` loads it.

        Args:
            config: the run.
            rank: of this process.
            world_size: number of ranks.
        """
        self._config = config
        self._rank = rank
        self._world_size = world_size
        self._reference: PolicyScorer | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Host and a free port of this machine, for the ranks to meet at."""
        host = "127.0.0.1" if self._world_size == 1 else ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def join(self, master: tuple[str, int]) -> None:
        """Meet the other ranks; load policy, reference and optimiser.

        Args:
            master: `rendezvous` of rank 0.
        """
        config, world_size = self._config, self._world_size
        _join_process_group(self._rank, world_size, master)
        self._frontend = load_frontend(config.policy, config.data.box_target)
        flex = config.learner.uses_flex_attention
        model = prepare_for_training(load_model(config.policy, flex_attention=flex), config)
        if config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        scorer = PolicyScorer(model, self._frontend, config)
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=[parameter for parameter in scorer.parameters() if parameter.requires_grad],
            config=learner_table(config, world_size),
        )
        tell_norm_without_zero(self._engine)
        weight = scorer.head.weight_VH
        if hasattr(weight, "ds_id"):  # ZeRO-3 gathers a weight for the module that owns it, and for those it is told of
            deepspeed.zero.register_external_parameter(scorer.head, weight)
        if config.learner.kl_coef > 0 and config.learner.lora is None:
            frozen = load_model(config.policy, flex_attention=flex)
            reference = PolicyScorer(frozen, self._frontend, config).requires_grad_(False)
            self._reference = reference.to(self._engine.device)

    @property
    def _module(self) -> PolicyScorer:
        return self._engine.module

    def engine_name(self) -> str:
        """Name and version of the engine."""
        return f"deepspeed {deepspeed.__version__}"

    def model_card(self) -> dict[str, Any]:
        """Device, architecture and number of parameters."""
        model = self._module.model
        count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return {"device": device, "parameters": count, "architecture": type(model).__name__}

    def policy_inputs(self, examples: Sequence[Example], dtypes: Sequence[str]) -> list[PolicyInput]:
        """What each pair's pictures are when they reach the policy, as a sampler has them that gives it `dtypes`."""
        pairs, processor = map(self._frontend.encode, examples), self._frontend.processor.image_processor
        return [
            as_sampled(pair["pixel_values"], pair["image_grid_thw"], dtype, processor)
            for pair, dtype in zip(pairs, dtypes, strict=True)
        ]

    def step(self, minibatches: Sequence[MiniBatch]) -> dict[str, float]:
        """Learn from one rollout batch: an optimiser step for each mini-batch, in each epoch.

        Args:
            minibatches: this rank's shares; as many on every rank.

        Returns:
            Statistics over all updates and all ranks' completion tokens, keys as in `dig_rl.metrics`.
        """
        started = time.perf_counter()
        passes = [self._passes(minibatch.groups) for minibatch in minibatches]
        num_updates = self._config.learner.num_epochs * len(minibatches)
        if num_updates > 1:
            for one_pass in chain.from_iterable(passes):
                packed = one_pass.packed
                with torch.no_grad():
                    one_pass.logprobs_old_N = self._engine(packed, self._module.encode(packed)).logprobs_N
        statistics, updates = UpdateStatistics(), Updates()
        for _ in range(self._config.learner.num_epochs):
            for minibatch, its_passes in zip(minibatches, passes, strict=True):
                for one_pass in its_passes:
                    self._accumulate(one_pass, minibatch, statistics)
                updates.step(self._engine)
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, statistics.sums)
        return (
            reduce_statistics(gathered, num_updates)
            | updates.figures()
            | {
                "learner/lr": float(self._engine.get_lr()[0]),
                "timing/learn_s": time.perf_counter() - started,
            }
        )

    def configure(self, config: Config) -> None:
        """Go on under the settings of a stage; a rate that DeepSpeed's own tables decide on stays as it is."""
        self._config = config
        for scorer in (self._module, self._reference):
            if scorer is not None:
                scorer.temperature = config.rollout.temperature
        if config.learner.lr_is_ours:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = config.learner.lr

    @torch.no_grad()
    def logprobs(self, group: TrainingGroup) -> list[list[float]]:
        """Log-probabilities of each completion's tokens under the current weights."""
        packed = pack([group], one_row=self._config.learner.uses_flex_attention)
        values = self._engine(packed, self._module.encode(packed)).logprobs_N.tolist()
        rows = iter(values)
        return [[next(rows) for _ in completion] for completion in group.completion_token_ids]

    def weight_buckets(self) -> Iterator[dict[str, torch.Tensor]]:
        """The policy's weights in Hugging Face names, gathered, in parts of about `WEIGHT_BUCKET_BYTES`.

        Every rank must run through the whole iterator, since gathering is collective.
        """
        bucket: dict[str, torch.Tensor] = {}
        size = 0
        for name, weight in self._named_weights():
            bucket[name] = weight
            size += weight.numel() * weight.element_size()
            if size >= WEIGHT_BUCKET_BYTES:
                yield bucket
                bucket, size = {}, 0
        if bucket:
            yield bucket

    def weight_records(self) -> dict[str, WeightRecord]:
        """Checksums of what `weight_buckets` hands out, tied weights under all their names; only rank 0 has them."""
        weights = self._named_weights()
        if self._rank:
            for _ in weights:  # gathering is collective
                pass
            return {}
        records = records_of(weights)
        return records | {alias: records[name] for alias, name in tied_names(self._module.model).items()}

    def examine_weights(self) -> tuple[list[str], tuple[float, str]]:
        """This rank's weights, as `dig_rl.policy.weights.examine_weights`."""
        return examine_weights(self._module.model.named_parameters(), self._rank)

    def export(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder (rank 0 writes, all ranks gather)."""
        weights = dict(self._named_weights())
        if self._rank == 0:
            save_policy(self._engine.module.model, self._frontend, weights, Path(folder))

    def save(self, folder: str) -> None:
        """Write weights, optimiser, learning-rate schedule and random state of this rank into `folder`."""
        with no_room_as_os_error():
            self._engine.save_checkpoint(folder, tag=DEEPSPEED_TAG, save_latest=False)
        state = {"world_size": dist.get_world_size(), "random": random_state()}
        rank_file(Path(folder), self._rank).write_text(json.dumps(state))

    def load(self, folder: str) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: the files do not fit this run.
        """
        state = read_rank_state(Path(folder), self._rank)
        if state["world_size"] != dist.get_world_size() and self._engine.zero_optimization():
            raise CheckpointError(
                f"checkpoint {folder} was written by {state['world_size']} ranks, this run has "
                f"{dist.get_world_size()}; set learner.num_ranks = {state['world_size']}, or start a new RUN from "
                "its policy"
            )
        check_parts(Path(folder), uses_zero=self._engine.zero_optimization())
        # The returned client state holds everything that was saved and is of no use here.
        try:
            path, _ = self._engine.load_checkpoint(folder, tag=DEEPSPEED_TAG)
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise CheckpointError(
                f"checkpoint {folder} does not hold what this run trains: {' '.join(str(error).split())[:300]}; "
                "continue with the version that wrote it, or `make export` it and start a new RUN from that policy"
            ) from error
        if path is None:
            raise CheckpointError(f"DeepSpeed found no checkpoint in {folder}; delete that folder to fall back")
        restore_random_state(state["random"])

    def _accumulate(self, one_pass: _Pass, minibatch: MiniBatch, statistics: UpdateStatistics) -> None:
        packed = one_pass.packed
        encoded = self._module.encode(packed)
        if self._config.learner.kl_coef > 0 and one_pass.logprobs_ref_N is None:
            one_pass.logprobs_ref_N = self._reference_logprobs(packed, encoded)
        current: TokenLogprobs = self._engine(packed, encoded)
        device = current.logprobs_N.device
        if one_pass.logprobs_old_N is None:  # nothing has been learned from this batch yet
            one_pass.logprobs_old_N = current.logprobs_N.detach()
        terms = policy_loss(
            current.logprobs_N,
            one_pass.logprobs_old_N,
            packed.logprobs_rollout_N.to(device),
            one_pass.logprobs_ref_N,
            packed.advantage_N.to(device),
            packed.completion_N.to(device),
            self._config.learner,
        )
        loss = aggregate(
            terms.loss_N,
            packed.token_weight_N.to(device),
            self._config.learner.loss,
            num_completions=minibatch.num_completions,
            num_tokens=minibatch.num_tokens,
            max_completion_tokens=self._config.rollout.max_completion_tokens,
        )
        # DeepSpeed averages over ranks, while the shares of all ranks add up to the loss.
        weight = dist.get_world_size() if one_pass.counts else 0
        self._engine.backward(loss * weight, scale_wrt_gas=False)
        if one_pass.counts:
            statistics.add(terms, current.entropy_N, float(loss.detach()))

    @torch.no_grad()
    def _reference_logprobs(self, packed: PackedBatch, encoded: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        if self._reference is not None:
            return self._reference(packed, encoded).logprobs_N
        with without_adapters(self._module.model):
            return self._engine(packed, encoded).logprobs_N

    def _passes(self, groups: Sequence[TrainingGroup]) -> list[_Pass]:
        """Deal groups to passes under the token budget, and give every rank the same number of passes.

        With fewer passes on one rank, a gathering of weights would wait for ever.
        """
        learner = self._config.learner
        one_row = learner.uses_flex_attention
        batches = micro_batches(
            groups, max_tokens=learner.micro_batch_tokens, shared_prefix=learner.shared_prefix, one_row=one_row
        )
        everything: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everything, (len(batches), groups[:1]))
        longest = max(length for length, _ in everything)
        filler = select_completions(next(first[0] for _, first in everything if first), [0])
        missing = [_Pass(pack([filler], one_row=one_row), counts=False) for _ in range(longest - len(batches))]
        return [_Pass(pack(batch, one_row=one_row), counts=True) for batch in batches] + missing

    def _named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        model = self._module.model
        dtype = getattr(torch, self._config.policy.dtype)
        for name, parts, adapter in merged_parameters(model):
            # ZeRO-3 keeps a part of each parameter on each rank.
            is_partitioned = hasattr(parts[0], "ds_id")
            with deepspeed.zero.GatheredParameters(parts) if is_partitioned else contextlib.nullcontext():
                yield name, merged_value(parts, adapter).to("cpu", dtype, copy=True)


def _join_process_group(rank: int, world_size: int, master: tuple[str, int]) -> None:
    # A Ray actor sees only its own device, hence LOCAL_RANK 0 everywhere.
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": master[0],
        "MASTER_PORT": str(master[1]),
    }
    # A lock left by a killed build of DeepSpeed's communication op would be waited for without end.
    remove_stale_locks(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
