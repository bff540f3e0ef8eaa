"""All settings of a run: typed, frozen, defaults in this file alone.

Layers, later wins: the defaults below, TOML files from left to right, `SET` overrides. Tables merge, lists replace.
vLLM and DeepSpeed options pass through `rollout.vllm` and `learner.deepspeed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dig_rl.bounds import Gpus, MemoryGib, Seconds, Seed, Temperature, VllmTable
from dig_rl.deepspeed_options import check_table, names_a_rate, without_auto
from dig_rl.layers import build, read_layers
from dig_rl.precision import check_precision
from dig_rl.types import BoxTarget

Advantage = Literal["group_norm", "group_mean", "leave_one_out"]
Loss = Literal["grpo", "dapo", "dr_grpo", "gspo"]
KLEstimator = Literal["k1", "k2", "k3"]
ImportanceCorrection = Literal["token_truncate", "geometric_mask", "off"]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class PolicyConfig(_Section):
    """The vision-language model that is trained."""

    path: str = "policies/small"
    """Local Hugging Face folder, or a hub name (then set `hub = true`)."""
    hub: bool = False
    """Allow downloading `path` from the model hub; otherwise nothing leaves the machine."""
    thinking: bool = False
    """The policy writes `<think>...</think>` before its answer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of sampler and learner; float32 on CPUs. In both, logits and sums of gradients are float32."""
    min_pixels: int | None = Field(None, ge=1)
    """Smallest image area after the resize rule; None keeps the policy folder's own value."""
    max_pixels: int | None = Field(None, ge=1)
    """Largest image area after the resize rule; None keeps the policy folder's own value."""


class DataConfig(_Section):
    """The image pairs."""

    path: str = "data/demo"
    """Data folder with `metadata.jsonl` and `images/`."""
    train_split: str = "train"
    heldout_split: str | None = "test"
    """Split that is answered greedily before and after training; without it, or with none, that is left out."""
    validation_split: str | None = "validation"
    """Split that is answered greedily while training goes on (`evaluation.every_steps`); without it, or with none, no
    checkpoint is chosen as the best. Nor is one by the held-out split."""
    allow_no_change: bool = False
    """Accept pairs without any difference (off in the paper)."""
    box_target: BoxTarget = "union"
    """Which image a box refers to; said in the prompt."""
    looks: tuple[Literal["swap", "mirror", "recolor"], ...] = ()
    """What is done to training pairs at random, anew each time they are drawn: images swapped, mirrored left to
    right, their colour channels reordered. For small corpora; off in the paper."""

    @model_validator(mode="after")
    def _swapped_pairs_have_the_same_boxes(self) -> DataConfig:
        if "swap" in self.looks and self.box_target != "union":
            raise ValueError(
                f"looks with swap need box_target = union, found {self.box_target}: its boxes are one image's"
            )
        return self


class RewardTermConfig(_Section):
    """One weighted plugin."""

    use: str
    """`path/to/file.py:function`."""
    weight: float = Field(gt=0, le=1)
    kwargs: dict[str, Any] = {}
    """Keyword arguments of the plugin, checked against its signature before any model loads."""


class RewardConfig(_Section):
    """Parsing, matching and the weighted sum of terms (paper: format 0.1, F1 0.45, IoU 0.45)."""

    terms: dict[str, RewardTermConfig] = {
        "format": RewardTermConfig(use="rewards/answer_format.py:answer_format", weight=0.1),
        "f1": RewardTermConfig(use="rewards/box_f1.py:box_f1", weight=0.45),
        "iou": RewardTermConfig(use="rewards/box_iou.py:box_iou", weight=0.45),
    }
    """Terms by name; weights sum to 1."""
    cost_l1: float = Field(5.0, ge=0)
    """Weight of the L1 distance in the assignment cost."""
    cost_giou: float = Field(2.0, ge=0)
    """Weight of 1 - GIoU in the assignment cost."""
    max_boxes: int = Field(32, ge=1)
    """Longer answers are `too_many`."""
    max_answer_characters: int = Field(16_384, ge=1)
    """Longer answers are `too_long`, thinking not counted; about 20 times a full list of 32 integer boxes."""
    clip_tolerance: float = Field(2.0, ge=0)
    """A coordinate at most so far outside its range is clipped to it; further outside, the box is malformed."""
    count_malformed_boxes: bool = False
    """A malformed box in a list of valid ones counts as a wrong box, instead of making the whole list malformed."""
    num_workers: int = Field(1, ge=1)
    """Reward service actors."""
    num_processes: int = Field(1, ge=1)
    """Scoring processes of one service; plugins run there and nowhere else."""
    time_limit_s: Seconds = 10.0
    """Wall-clock time that scoring one completion may take; then its process is stopped and replaced."""
    memory_limit_gib: MemoryGib = 2.0
    """Memory that one scoring process may allocate, imports of the plugins included."""
    max_failed_frac: float = Field(0.0, ge=0, lt=1)
    """Completions of a step that plugins may break on; these are masked. One more stops the run."""

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> RewardConfig:
        total = sum(term.weight for term in self.terms.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"weights of reward.terms must sum to 1, found {total:g}")
        return self


class RolloutConfig(_Section):
    """Sampling with vLLM."""

    group_size: int = Field(8, ge=2, le=1024)
    """G, completions a pair."""
    prompts_per_step: int = Field(64, ge=1)
    """P, pairs a step."""
    max_refills: int = Field(0, ge=0)
    """Times in one step that groups without signal are made up for by drawing as many further pairs of the stage."""
    record_last: int = Field(0, ge=0)
    """Newest steps whose rollouts are kept in the run folder, for `make replay`; 0 keeps none."""
    num_workers: int = Field(1, ge=1)
    """Rollout actors, each with its own vLLM engine."""
    temperature: Temperature = 1.0
    max_completion_tokens: int = Field(4096, ge=1)
    max_model_len: int = Field(8192, ge=16)
    """Prompt with image tokens plus completion, in tokens."""
    num_threads: int = Field(2, ge=1, le=1024)
    """OpenMP threads of one worker on a CPU."""
    kv_cache_gib: int = Field(1, ge=1)
    """Key-value cache of one worker on a CPU, GiB."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one worker."""
    vllm: VllmTable = {}
    """Options of `vllm.LLM`, merged key by key over what dig-rl fills in."""


class LoraConfig(_Section):
    """Low-rank adapters (peft) in place of full weights."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    """The adapter's product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Ends of the names of the linear layers that get one. A name that the text model has means its layers alone;
    frozen parts get none. By default every projection of the text model."""

    @field_validator("targets")
    @classmethod
    def _head_stays_plain(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if "lm_head" in targets:
            raise ValueError("lm_head cannot get an adapter: log-probabilities are taken from its weight directly")
        return targets


class LearnerConfig(_Section):
    """The update with DeepSpeed; docs/algorithms.md has the equation and source of every choice."""

    lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    num_epochs: int = Field(1, ge=1)
    """Times that every rollout batch is learned from."""
    num_minibatches: int = Field(1, ge=1)
    """Optimiser steps of one epoch; fewer when fewer groups are left."""
    advantage: Advantage = "group_norm"
    """Deviation from the group's mean divided by its spread, not divided, or from the mean of the others."""
    advantage_eps: float = Field(1e-4, gt=0)
    """Added to the group's standard deviation."""
    normalize_terms: bool = False
    """Compare each reward term within its group before the weighted sum, instead of the total."""
    min_reward_spread: float = Field(1e-6, ge=0)
    """Groups whose rewards spread less are dropped."""
    mask_truncated_completions: bool = False
    """Do not learn from completions cut off at the token budget; they still count in their group's mean and spread."""
    loss: Loss = "grpo"
    """Mean over completions, over tokens, over the token budget, or over completions with one ratio a completion."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.2, ge=0)
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(None, gt=1)
    """Where the advantage is negative, the ratio counts at most this much; None sets no bound."""
    kl_coef: float = Field(0.01, ge=0)
    """beta of the KL term; 0 loads no reference policy."""
    kl_estimator: KLEstimator = "k3"
    """Estimate of the KL that the loss takes."""
    importance: ImportanceCorrection = "token_truncate"
    """How the difference between learner and sampler is corrected."""
    importance_cap: float = Field(2.0, gt=0)
    """token_truncate: upper bound of the token-wise importance weight learner / rollout."""
    importance_band: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = (0.99, 1.01)
    """geometric_mask: completions whose geometric mean ratio lies outside are left out of the policy term."""
    freeze: tuple[Literal["vision", "projector"], ...] = ()
    """Parts that are not trained: the vision tower, and what turns its features into image tokens."""
    lora: LoraConfig | None = None
    """A table here trains adapters alone; the reference is then the policy without them."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Padded tokens (prompts and completions) of one forward pass."""
    shared_prefix: bool = True
    """Compute a group's prompt and images once; false repeats them for every completion, to compare."""
    attention: Literal["auto", "sdpa", "flex_attention"] = "auto"
    """Of the text model: dense masks, or block-sparse ones with all groups of a pass in one row. auto takes
    flex_attention on GPUs."""
    logprob_chunk_tokens: int = Field(256, ge=1)
    """Completion tokens whose logits exist at one time."""
    gradient_checkpointing: bool = False
    num_ranks: int = Field(1, ge=1)
    """DeepSpeed ranks, one actor each."""
    num_threads: int = Field(2, ge=1, le=1024)
    """OpenMP threads of one rank on a CPU."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one rank."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed's own table. It is merged key by key over what dig-rl fills in: batch sizes, `lr`, `weight_decay`,
    clipping, ZeRO stage 1, the peak and length of a schedule; "auto" stands for that as well."""

    @property
    def uses_flex_attention(self) -> bool:
        """What `attention` comes down to on this learner's devices."""
        return self.attention == "flex_attention" or (self.attention == "auto" and self.num_gpus > 0)

    @property
    def lr_is_ours(self) -> bool:
        """Whether `lr` is what the optimiser uses: no table of DeepSpeed's own decides on it."""
        return not names_a_rate(self.deepspeed)

    @model_validator(mode="after")
    def _is_consistent(self) -> LearnerConfig:
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(f"dual_clip ({self.dual_clip:g}) must be above 1 + clip_high ({1 + self.clip_high:g})")
        if self.attention == "flex_attention" and self.num_gpus == 0:
            raise ValueError("attention = flex_attention has no backward pass on CPUs; set learner.num_gpus, or sdpa")
        if self.importance_band[0] > self.importance_band[1]:
            raise ValueError(f"importance_band must be [lowest, highest], found {list(self.importance_band)}")
        check_table(self.deepspeed, self.num_ranks, on_cpu=self.num_gpus == 0)
        return self


class CheckpointConfig(_Section):
    """Saving and resuming."""

    every_steps: int = Field(10, ge=1)
    every_minutes: float = Field(10.0, gt=0)
    """A checkpoint is also due after this long."""
    keep_last: int = Field(2, ge=1)
    keep_best: bool = True
    """Save at once, and keep beside the last ones, the step with the highest `validation/f1` (the first, if several);
    `checkpoints/best.json` names it. Without `evaluation.every_steps` no step is best, and only the last are kept."""


class EvaluationConfig(_Section):
    """Greedy answers: on the held-out split before and after training, on the validation split while it goes on."""

    every_steps: int | None = Field(None, ge=1)
    """Steps from one evaluation on the validation split to the next, the first and the last policy included; None
    evaluates before and after training only."""
    max_pairs: int | None = Field(None, ge=1)
    """Pairs of a split that are answered, by number of changes in proportion and the same in every run; None takes
    all."""
    match_iou: float = Field(0.5, gt=0, le=1)
    """IoU from which a box counts as found."""
    num_panels: int = Field(8, ge=0, le=100)
    """Pairs of an evaluation whose pictures and answers go to TensorBoard."""


class AlarmsConfig(_Section):
    """When a run warns that the policy games its reward or stops learning: thresholds by the name of the alarm.

    `dig_rl/alarms.py` says which metric each is held against, and what it means.
    """

    window: int = Field(10, ge=1)
    """Steps over which a metric is averaged before it is compared."""
    stop: tuple[str, ...] = ()
    """Alarms that end the run, checkpoint saved; the others are told in the log and the report."""
    off: tuple[str, ...] = ()
    """Alarms that are not wanted."""
    whole_image: float = Field(0.5, ge=0)
    duplicates: float = Field(0.3, ge=0)
    one_box: float = Field(0.9, ge=0)
    count_collapse: float = Field(0.5, ge=0)
    same_box: float = Field(0.5, ge=0)
    images_ignored: float = Field(0.8, ge=0)
    format_hacking: float = Field(0.9, ge=0)
    thinking_collapse: float = Field(0.1, ge=0)
    """Fraction of the length that thinking had in the first window."""
    entropy_collapse: float = Field(0.02, ge=0)
    """Nats a token."""
    mismatch: float = Field(0.01, ge=0)
    """Nats a token."""
    no_signal: float = Field(0.8, ge=0)
    skipped_updates: float = Field(1, gt=0)
    """Updates of one step."""
    not_finite: float = Field(1, gt=0)
    """Metrics of one step."""

    @model_validator(mode="after")
    def _named_are_alarms(self) -> AlarmsConfig:
        known = sorted(type(self).model_fields.keys() - {"window", "stop", "off"})
        for key, names in (("stop", self.stop), ("off", self.off)):
            for name in names:
                if name not in known:
                    raise ValueError(f"alarms.{key} names {name!r}; alarms are {', '.join(known)}")
        return self


class WarmupConfig(_Section):
    """Supervised start (`make warmup`): from `start` to `policy.path`."""

    start: str = "policies/small"
    """Policy folder that the warm-up begins with; `policies/small` is built when missing."""
    steps: int = Field(200, ge=1)
    batch_size: int = Field(16, ge=1)
    """Pairs a step."""
    lr: float = Field(1e-3, gt=0)
    """Peak of a linear-decay schedule."""
    coordinate_levels: int = Field(1000, ge=1, le=1000)
    """Answers are rounded to multiples of 1000 / levels; small policies have one token a level."""


class ClusterConfig(_Section):
    """Ray."""

    address: str | None = None
    """Address of a running cluster; None starts a private one on this machine (inside a Ray job: the job's)."""
    start_timeout_s: Seconds = 600.0
    """How long actors may take to be placed and to load."""


class Config(_Section):
    """A whole run."""

    seed: Seed = 0
    curriculum: str = "curricula/staged.toml"
    """Stage file."""
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    warmup: WarmupConfig = WarmupConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _lengths_fit(self) -> Config:
        if self.rollout.max_completion_tokens >= self.rollout.max_model_len:
            raise ValueError(
                f"rollout.max_completion_tokens ({self.rollout.max_completion_tokens}) must be below "
                f"rollout.max_model_len ({self.rollout.max_model_len}): the prompt needs room"
            )
        return self

    @model_validator(mode="after")
    def _engines_compute_alike(self) -> Config:
        check_precision(self.policy.dtype, without_auto(self.learner.deepspeed), self.rollout.vllm)
        return self


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] | None = None) -> Config:
    """Read the layered config.

    Args:
        paths: TOML files, later ones win; `config.json` of a run is read as well.
        overrides: `section.key=value` strings, values in TOML syntax (bare words are strings).

    Raises:
        ConfigError: a file is missing or not TOML, a key is unknown, or a value does not fit its field.
    """
    return build(Config, read_layers(paths, overrides or []), where=", ".join(map(str, paths)) or "the defaults")
