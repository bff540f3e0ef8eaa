"""One vLLM engine in process: samples groups, takes new weights in place, forgets what the old weights computed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import vllm
from vllm import SamplingParams
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from dig_rl.actors.engine_inputs import inputs_of_requests, level_scale, watched_requests
from dig_rl.actors.engine_weights import held_weights
from dig_rl.config import Config, RolloutConfig
from dig_rl.errors import PolicyError
from dig_rl.finite import check_logprobs, check_sampled
from dig_rl.parsing import CoordinateFrame
from dig_rl.policy.load import BAN_BIAS, check_token_budget, load_frontend, load_image, load_images
from dig_rl.policy.records import HeldWeights
from dig_rl.policy.weight_files import check_names
from dig_rl.types import Completion, Example, FinishReason, PolicyInput, Question, Reply, SampledGroup
from dig_rl.vllm_options import engine_options


class RolloutWorker:
    """Samples answers for image pairs with the newest weights it was given."""

    def __init__(self, config: Config) -> None:
        """Start the engine.

        Raises:
            PolicyError: the policy cannot be opened.
        """
        self._config = config
        self._sampling = config.rollout
        self._frontend = load_frontend(config.policy, config.data.box_target)
        self._policy_version = 0
        self._engine_s = 0.0
        self._inputs: dict[Example, PolicyInput] | None = None  # noted while they are watched
        try:
            self._engine = vllm.LLM(**engine_options(config, self._frontend.resize_area_px))
        except ValueError:  # among other things of a weight that is missing, or that it does not know
            check_names(config.policy)
            raise

    def facts(self) -> tuple[str, CoordinateFrame, str]:
        """Engine with version, coordinate convention, and prompt."""
        return f"vllm {vllm.__version__}", self._frontend.frame, self._frontend.prompt

    def sample_groups(self, examples: Sequence[Example], seeds: Sequence[int]) -> list[SampledGroup]:
        """Sample G completions of each pair at the training temperature.

        Args:
            examples: pairs.
            seeds: of each pair's first completion; completion i is drawn with seed + i.
        """
        rollout = self._sampling
        params = [
            SamplingParams(
                n=rollout.group_size,
                temperature=rollout.temperature,
                seed=seed,
                **self._common_params(rollout.max_completion_tokens),
            )
            for seed in seeds
        ]
        return self._generate(examples, params)

    def configure(self, sampling: RolloutConfig) -> None:
        """Sample with other settings from now on (group size, temperature, longest answer); `answer` does not."""
        self._sampling = sampling

    def answer(
        self, examples: Sequence[Example], seeds: Sequence[int], num_samples: int, temperature: float
    ) -> list[SampledGroup]:
        """Answer each pair; at temperature 0 with the most likely tokens, which needs one sample and no seed."""
        options = self._common_params(self._config.rollout.max_completion_tokens)
        params = [
            SamplingParams(n=num_samples, temperature=temperature, seed=seed if temperature else None, **options)
            for seed in seeds
        ]
        return self._generate(examples, params)

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer free questions, one picture each, with the most likely tokens.

        Raises:
            ConfigError: a question and its longest answer do not fit the context.
        """
        prompts = [
            {
                "prompt": self._frontend.question_prompt(question, self._config),
                "multi_modal_data": {"image": [load_image(question.image_path, "question")]},
            }
            for question in questions
        ]
        params = SamplingParams(temperature=0.0, **self._common_params(self._config.rollout.max_completion_tokens))
        outputs = self._run_engine(prompts, params)
        completions = [_completion(output.outputs[0], 0) for output in outputs]
        for question, completion in zip(questions, completions, strict=True):
            check_logprobs(completion.logprobs_rollout, f"the sampler, question about {question.image_path}")
        return [
            Reply(
                completion.text,
                self._frontend.model_image_size_px(question.image_size_px),
                len(completion.token_ids),
                completion.finish_reason,
            )
            for question, completion in zip(questions, completions, strict=True)
        ]

    def engine_seconds(self) -> float:
        """Seconds inside vLLM so far: its own preprocessing and sampling, not opening images or handing answers on."""
        return self._engine_s

    def watch_inputs(self) -> None:
        """Note what the pictures of each pair are when they reach the policy, until `policy_inputs` is called."""
        self._inputs = {}

    def policy_inputs(self) -> dict[Example, PolicyInput]:
        """What was noted since `watch_inputs`."""
        inputs, self._inputs = self._inputs or {}, None
        return inputs

    def check_token_budget(self, examples: Sequence[Example]) -> None:
        """Make sure that every prompt and the longest answer fit the context.

        Raises:
            ConfigError: names the first pair that is too long.
        """
        check_token_budget(self._frontend, examples, self._config)

    def load_weights(self, buckets: Iterable[dict[str, torch.Tensor]], policy_version: int) -> None:
        """Replace the weights in place and drop every cache that holds features of the old ones.

        Args:
            buckets: parts of the state dict in Hugging Face names.
            policy_version: optimiser steps contained in the new weights.
        """
        named = (item for bucket in buckets for item in bucket.items())
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        self._engine.collective_rpc(_repack_tied_heads)
        self.reset_caches()
        self._policy_version = policy_version

    def held_weights(self, names: Sequence[str]) -> HeldWeights:
        """What the engine computes with, by the learner's names."""
        return self._engine.collective_rpc(held_weights, args=(list(names), self._config.policy.dtype))[0]

    def reset_caches(self) -> None:
        """Forget prefix, multimodal and encoder caches, on the scheduler's and the worker's side."""
        core = self._engine.llm_engine
        if not core.reset_prefix_cache():
            raise PolicyError("vLLM did not reset its prefix cache: requests are still running during a weight sync")
        core.reset_mm_cache()
        core.reset_encoder_cache()

    def _common_params(self, max_tokens: int) -> dict[str, Any]:
        return {
            "max_tokens": max_tokens,
            "logprobs": 0,  # the sampled token's own log-probability, no others
            "stop_token_ids": list(self._frontend.end_token_ids),
            "logit_bias": dict.fromkeys(self._frontend.banned_token_ids, BAN_BIAS),
            "skip_special_tokens": True,
        }

    def _run_engine(self, prompts: list[dict[str, Any]], params: SamplingParams | list[SamplingParams]) -> list[Any]:
        started = time.perf_counter()
        outputs = self._engine.generate(prompts, params, use_tqdm=False)
        self._engine_s += time.perf_counter() - started
        return outputs

    def _generate(self, examples: Sequence[Example], params: list[SamplingParams]) -> list[SampledGroup]:
        prompts = [
            {"prompt": self._frontend.prompt, "multi_modal_data": {"image": list(load_images(example))}}
            for example in examples
        ]
        with self._noting_inputs(examples, params):
            outputs = self._run_engine(prompts, params)
        groups = [
            SampledGroup(
                example=example,
                prompt_token_ids=tuple(output.prompt_token_ids),
                completions=tuple(_completion(sample, (param.seed or 0) + sample.index) for sample in output.outputs),
                policy_version=self._policy_version,
                model_image_size_px=self._frontend.model_image_size_px(example.image_size_px),
                num_cached_tokens=output.num_cached_tokens or 0,
            )
            for example, param, output in zip(examples, params, outputs, strict=True)
        ]
        check_sampled(groups)
        return groups

    @contextlib.contextmanager
    def _noting_inputs(self, examples: Sequence[Example], params: Sequence[SamplingParams]) -> Iterator[None]:
        if self._inputs is None:
            yield
            return
        with watched_requests(self._engine) as requests:
            yield
        inputs = inputs_of_requests(requests, [param.n for param in params], level_scale(self._engine))
        self._inputs |= dict(zip(examples, inputs, strict=True))


def _repack_tied_heads(worker: Any) -> None:
    """Let output heads that share the embedding's weight take it over.

    On the CPU vLLM multiplies with a packed copy of the head's weight. A reload renews the copy of every layer that is
    in the checkpoint; a tied head is not.
    """
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _completion(sample: Any, seed: int) -> Completion:
    token_ids = tuple(sample.token_ids)
    reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
    return Completion(
        token_ids=token_ids,
        logprobs_rollout=tuple(entry[token].logprob for token, entry in zip(token_ids, sample.logprobs, strict=True)),
        text=sample.text,
        finish_reason=reasons.get(sample.finish_reason, "abort"),
        seed=seed,
    )
