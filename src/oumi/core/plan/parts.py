# SPDX-License-Identifier: Apache-2.0
"""The parts of a plan: what a run will do, with every value decided. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oumi.core.configs import DatasetParams, TrainerType, TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.accelerate import AccelerateSettings
from oumi.core.plan.best import BestPlan
from oumi.core.plan.lora import LoraPlan, QuantizationPlan
from oumi.core.plan.methods import METHODS, MethodSpec
from oumi.core.plan.resources import DiskPlan, MemoryPlan
from oumi.core.plan.shapes import ModelShape
from oumi.core.plan.sharding import ShardingPlan
from oumi.core.types.answers import NO_LIMITS, AnswerLimits


@dataclass(frozen=True)
class ModelPlan:
    """Which model and tokenizer are loaded, and how."""

    name: str
    revision: str | None
    digest: str | None
    """Digest of the weights in a local directory, which detects other weights under the same name."""
    pretrained: bool
    """False for random weights."""
    trust_remote_code: bool
    dtype: str
    """`float32`, `bfloat16`, ...; `auto` only if the dtype of the files is not known yet."""
    attention: str | None
    config_overrides: Mapping[str, Any]
    disable_dropout: bool
    freeze: tuple[str, ...]
    tokenizer_name: str
    tokenizer_revision: str | None
    tokenizer_kwargs: Mapping[str, Any]
    pad_token: str | None
    max_length: int | None
    chat_template: str | None
    adapter: str | None
    adapter_revision: str | None
    sees_images: bool
    processor_name: str | None
    """Name of the image processor, None for that of the model."""
    processor_kwargs: Mapping[str, Any]
    quantization: QuantizationPlan | None = None
    """None for weights in the dtype of the model."""
    text_only: bool = False
    """Load only the language model of a model for text and images."""
    added_tokens: tuple[int, ...] = ()
    """New tokens of `tokenizer_kwargs`, once the tokenizer is loaded."""


@dataclass(frozen=True)
class MixturePlan:
    """A mixture of data sets, and how it is read."""

    section: str
    """Section of the config that messages name; empty if it is in none."""
    datasets: tuple[DatasetParams, ...]
    strategy: str
    """`first_exhausted` or `all_exhausted`, for mixtures with proportions."""
    pack: bool
    """Fill rows of the model's length with several documents."""
    stream: bool
    """Read rows during training instead of storing them."""
    truncation: str | None
    max_rejected_rows: int
    on_duplicates: str
    """`warn` or `error`."""

    @property
    def proportions(self) -> tuple[float, ...] | None:
        """Returns the share of each data set, None if all rows of each are used."""
        shares = [params.mixture_proportion for params in self.datasets]
        return None if None in shares or not shares else tuple(share or 0.0 for share in shares)


@dataclass(frozen=True)
class DataPlan:
    """Which rows are read, and which of their tokens are trained."""

    train: MixturePlan
    validation: MixturePlan
    train_on: str
    """`all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for rows that are only prompts."""
    seed: int
    """Seed of the order of the rows."""
    landmarks: dict[str, str]
    """Strings around turns that the config names and the chat template must contain, by argument."""
    answer_limits: AnswerLimits = NO_LIMITS
    """Largest lengths of the prompt and of the answer of a row."""

    @property
    def joins_documents(self) -> bool:
        """Returns True if rows have many documents, since they are packed or cut from concatenated texts."""
        splits = (self.train, self.validation)
        is_concatenated = any(params.dataset_kwargs.get("seq_length") for split in splits for params in split.datasets)
        return is_concatenated or any(split.pack for split in splits)

    @property
    def tool_results(self) -> tuple[str, str] | None:
        """Returns the delimiters of tool results within answers, which are not trained; None if the config has none."""
        start = self.landmarks.get("tool_response_template")
        end = self.landmarks.get("end_of_tool_response_template")
        return (start, end) if start is not None and end is not None else None

    def row_length(self, split: str, max_length: int | None) -> int:
        """Returns the length of a packed row of a split in tokens; raises ConfigError if it is not known."""
        if max_length is None:
            raise ConfigError(
                f"data.{split}.pack: neither model nor tokenizer has a maximum length: set model.model_max_length"
            )
        return max_length


@dataclass(frozen=True)
class MethodPlan:
    """The training method, and the arguments of its loss."""

    name: str
    settings: Mapping[str, Any]
    has_reference: bool = False
    """Compares with the model before training."""
    mismatches: bool = False
    """Compares the answers of a step also with prompts of other rows."""
    copies_reference: bool = False
    """The reference is a frozen copy of the model; False where the base below an adapter is that model."""
    keeps_log_probs: bool = False
    """The log-probabilities of the reference are computed before the first step, and no copy is held."""

    @property
    def holds_copy(self) -> bool:
        """Returns True if a copy of the model is held during the training."""
        return self.copies_reference and not self.keeps_log_probs

    @property
    def runs_reference(self) -> bool:
        """Returns True if each step computes the reference."""
        return self.has_reference and not self.keeps_log_probs

    @property
    def spec(self) -> MethodSpec:
        """Returns the properties of the method."""
        return METHODS[self.name]


@dataclass(frozen=True)
class LossPlan:
    """Terms that are added to the cross-entropy of the next token."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over the whole vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log-sum-exp of the logits, which keeps them near zero."""


@dataclass(frozen=True)
class OptimizerPlan:
    """The optimizer and its settings."""

    name: str
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    momentum: float
    max_grad_norm: float | None
    """Gradients are clipped to this norm, None for no clipping."""


@dataclass(frozen=True)
class SchedulePlan:
    """The learning rate schedule, as arguments of transformers.get_scheduler."""

    name: str
    warmup_steps: int | None
    warmup_ratio: float | None
    kwargs: Mapping[str, Any]

    def num_warmup_steps(self, num_steps: int) -> int:
        """Returns the number of warmup steps in a run of `num_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil((self.warmup_ratio or 0.0) * num_steps)  # rounded up, as in transformers


@dataclass(frozen=True)
class PrecisionPlan:
    """The number formats of the computation."""

    autocast: str | None
    """`bfloat16` or `float16`: dtype of matrix products, with float32 weights."""
    reason: str
    """The precision and its reason, for users."""
    fp8: str | None = None
    """Recipe for 8-bit products in large layers, None for none."""


@dataclass(frozen=True)
class SpeedPlan:
    """Optimizations, none of which changes the result by more than rounding."""

    flat_batches: bool = True
    """Concatenate documents without padding, if the model allows it."""
    shared_prefixes: bool = True
    """Compute the tokens that documents of a row have in common only once, if flat batches and the model allow it."""
    fused_loss: bool = True
    """Compute logits and loss in chunks, and never keep all logits."""
    fused_layers: bool = False
    """Use our own norms, gated MLPs, rotary embeddings and GELUs, for CPUs without compilation."""
    compile: bool = False
    """Compile each layer before its first step."""
    liger: bool = False
    """Use Liger's kernels, on a GPU."""


@dataclass(frozen=True)
class CheckpointPlan:
    """When checkpoints are saved, and from which one the run resumes."""

    every_steps: int | None
    every_epoch: bool
    keep: int | None
    """Number of checkpoints to keep, None for all."""
    final_model: bool
    """Save the model at the end."""
    resume_from: Path | None
    resume_last: bool
    """Resume from the newest checkpoint in the output directory, if there is one."""
    best: BestPlan | None = None
    """How the best evaluation is found, None if nothing asks for it."""


@dataclass(frozen=True)
class EvaluationPlan:
    """When the validation loss is computed."""

    every_steps: int | None
    every_epoch: bool
    batch_size: int
    """Rows of a batch."""
    num_samples: int = 0
    """Rows that the model answers at each evaluation."""


@dataclass(frozen=True)
class LogPlan:
    """What is logged, where and how often."""

    every_steps: int | None
    first_step: bool
    every_epoch: bool
    level: str
    dependency_level: str
    tensorboard_dir: Path | None
    wandb: bool
    mlflow: bool
    telemetry_dir: Path | None
    step_times: bool
    model_summary: bool
    examples: bool


@dataclass(frozen=True)
class StepsPlan:
    """How the rows are divided into optimizer steps."""

    micro_batch_rows: int
    accumulation: int
    """Micro-batches of a step on each rank."""
    world_size: int
    num_epochs: int
    max_steps: int | None
    num_rows: int | None = None
    """Rows of the training set, None until they are counted."""
    ranks_per_node: int = 1
    """Ranks that a machine has; they exchange data faster than those of different machines."""

    @property
    def rows_per_step(self) -> int:
        """Returns the rows of an optimizer step over all ranks."""
        return self.micro_batch_rows * self.accumulation * self.world_size

    @property
    def per_epoch(self) -> int | None:
        """Returns the steps of an epoch, of which the last trains the remaining rows; None until they are counted."""
        return None if self.num_rows is None else math.ceil(self.num_rows / self.rows_per_step)

    @property
    def total(self) -> int | None:
        """Returns the optimizer steps of the run, None until the rows are counted."""
        # `max_steps` takes precedence; the rows are repeated as often as it needs.
        if self.max_steps is not None:
            return self.max_steps
        return None if self.per_epoch is None else self.per_epoch * self.num_epochs


@dataclass(frozen=True)
class Plan:
    """A run with every value decided. Code that acts reads its values here and has no defaults of its own."""

    config: TrainingConfig
    """The config, for the adapter to other trainers and for the records of the run."""
    trainer: str
    method: MethodPlan
    output_dir: Path
    run_name: str | None
    device: str
    device_name: str
    seed: int
    deterministic: bool
    model: ModelPlan
    lora: LoraPlan | None
    sharding: ShardingPlan | None
    accelerate: AccelerateSettings
    data: DataPlan
    steps: StepsPlan
    loss: LossPlan
    optimizer: OptimizerPlan
    schedule: SchedulePlan
    precision: PrecisionPlan
    speed: SpeedPlan
    gradient_checkpointing: Mapping[str, Any] | None
    empty_cache_every: int | None
    checkpoints: CheckpointPlan
    evaluation: EvaluationPlan
    logs: LogPlan
    disk: DiskPlan
    shape: ModelShape | None
    """Shape of the model, None if its family is unknown."""
    memory: MemoryPlan | None
    """None if it cannot be predicted."""
    least_memory: MemoryPlan | None
    """What the run needs at least, where `memory` is None; None if not even that is known."""
    notes: tuple[str, ...]
    """Where the run differs from what the config suggests, and why."""

    @property
    def is_native(self) -> bool:
        """Returns True if trainer OUMI carries the plan out."""
        return TrainerType[self.trainer].spec.is_native

    @property
    def shares_prefixes(self) -> bool:
        """Returns True if the prompt of a pair is expected to be computed once; a trial of the model decides."""
        shape, is_pair = self.shape, self.method.spec.documents_per_row > 1
        # Scores in blocks cannot go on after a prefix, and with dropout each answer needs a prompt of its own.
        has_scores = self.model.attention == "eager" or (shape is not None and shape.has_softcap)
        drops = shape is not None and shape.drops_weights and not self.model.disable_dropout
        return is_pair and self.speed.shared_prefixes and self.speed.flat_batches and not (has_scores or drops)

    @property
    def num_steps(self) -> int:
        """Returns the optimizer steps of the run; only valid once the rows are counted."""
        assert self.steps.total is not None, "the rows are counted before training starts"
        return self.steps.total

    @property
    def save_mode(self) -> str:
        """Returns how a model with an adapter is saved."""
        # Without new LoRA settings it is the adapter of the config that was trained further; its base exists already.
        return self.lora.save_mode if self.lora else "ADAPTER_ONLY"

    def with_num_rows(self, num_rows: int | None) -> Plan:
        """Returns the plan with the actual number of rows of the training set, None for a stream."""
        return replace(self, steps=replace(self.steps, num_rows=num_rows))
