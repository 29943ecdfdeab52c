# SPDX-License-Identifier: Apache-2.0
"""The parts of a plan: what will be done, every value decided. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oumi.core.configs import DatasetParams, TrainerType, TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.methods import METHODS, MethodSpec
from oumi.core.plan.shapes import ModelShape

_MEMORY_MARGIN = 0.05
"""Share of the memory that is left to the system."""


@dataclass(frozen=True)
class ModelPlan:
    """Which model and tokenizer are loaded, and how."""

    name: str
    revision: str | None
    digest: str | None
    """Of weights in a local directory, by which others under the same name are noticed."""
    pretrained: bool
    """False: random weights."""
    trust_remote_code: bool
    dtype: str
    """`float32`, `bfloat16`, ...; `auto` only when the file's own dtype is not known yet."""
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
    """What makes features of images, None for the model's own."""
    processor_kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA adapter, and what is saved of it."""

    settings: Mapping[str, Any]
    """Arguments of peft.LoraConfig."""
    save_mode: str


@dataclass(frozen=True)
class MixturePlan:
    """Data sets that are read together, and how."""

    datasets: tuple[DatasetParams, ...]
    strategy: str
    """`first_exhausted` or `all_exhausted`, where there are proportions."""
    pack: bool
    """Fill rows of the model's length with several examples."""
    stream: bool
    """Rows are read while others are trained, and not kept."""
    truncation: str | None
    max_rejected_rows: int
    on_duplicates: str
    """`warn` or `error`."""

    @property
    def proportions(self) -> tuple[float, ...] | None:
        """Returns the share of each data set, None where each is taken whole."""
        shares = [params.mixture_proportion for params in self.datasets]
        return None if None in shares or not shares else tuple(params or 0.0 for params in shares)


@dataclass(frozen=True)
class DataPlan:
    """Which rows are read, and which of their tokens are trained."""

    train: MixturePlan
    validation: MixturePlan
    train_on: str
    """`all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` of rows that are only prompts."""
    seed: int
    """Of the order of the rows."""
    landmarks: dict[str, str]
    """Strings that the config names around turns, which the chat template must write."""

    @property
    def tool_results(self) -> tuple[str, str] | None:
        """Returns what opens and closes results of tools within answers, which are not trained; None if not named."""
        both = (self.landmarks.get("tool_response_template"), self.landmarks.get("end_of_tool_response_template"))
        return (both[0], both[1]) if both[0] is not None and both[1] is not None else None

    def row_length(self, split: str, max_length: int | None) -> int:
        """Returns how long a packed row of a split is; raises ConfigError if nothing tells."""
        if max_length is None:
            raise ConfigError(
                f"data.{split}.pack: neither model nor tokenizer tells how long a row is: set model.model_max_length"
            )
        return max_length


@dataclass(frozen=True)
class MethodPlan:
    """What is learned from the rows, and the arguments of its loss."""

    name: str
    settings: Mapping[str, Any]

    @property
    def spec(self) -> MethodSpec:
        """Returns the row of the method in the table of methods."""
        return METHODS[self.name]


@dataclass(frozen=True)
class LossPlan:
    """What is added to the cross-entropy of the next token."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over the whole vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared logarithm of the softmax's sum, which keeps logits near zero."""


@dataclass(frozen=True)
class OptimizerPlan:
    """How the weights move."""

    name: str
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    momentum: float
    max_grad_norm: float | None


@dataclass(frozen=True)
class SchedulePlan:
    """How the learning rate moves, in the terms of transformers.get_scheduler."""

    name: str
    warmup_steps: int | None
    warmup_ratio: float | None
    kwargs: Mapping[str, Any]

    def num_warmup_steps(self, num_steps: int) -> int:
        """Returns the steps of warmup in a run of `num_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil((self.warmup_ratio or 0.0) * num_steps)


@dataclass(frozen=True)
class PrecisionPlan:
    """In which number formats the run computes."""

    autocast: str | None
    """`bfloat16` or `float16`: dtype of matrix products while weights stay float32."""
    reason: str
    fp8: str | None = None
    """Recipe by which large layers multiply in 8 bits."""


@dataclass(frozen=True)
class SpeedPlan:
    """By which means the model is computed faster, without changing what is computed."""

    flat_batches: bool = True
    """Documents stand end to end, without padding, where the model allows it."""
    fused_loss: bool = True
    """The head's logits are taken in chunks and never kept."""
    fused_layers: bool = False
    """Norms, gated MLPs, rotations and GELUs in our own form, for CPUs without compilation."""
    compile: bool = False
    """Each layer is compiled before its first step."""
    liger: bool = False
    """Liger's kernels, on a GPU."""


@dataclass(frozen=True)
class CheckpointPlan:
    """When the state of the run is saved, and what is kept."""

    every_steps: int | None
    every_epoch: bool
    keep: int | None
    final_model: bool
    resume_from: Path | None
    resume_last: bool


@dataclass(frozen=True)
class EvaluationPlan:
    """When the validation set is measured."""

    every_steps: int | None
    every_epoch: bool
    batch_size: int


@dataclass(frozen=True)
class LogPlan:
    """What is told, where, and how often."""

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
class SavedSize:
    """What of a model is saved: all of it, or its adapter."""

    num_bytes: int
    """Of all weights that are saved."""
    trained_bytes: int
    """Of those among them that are trained, for which the optimizer keeps a state."""
    base_bytes: int = 0
    """Of the weights below an adapter that are written at the end, in the adapter's mode of saving."""
    number_bytes: int = 4
    """Of one number that is trained."""


@dataclass(frozen=True)
class DiskPlan:
    """Bytes that the run will write."""

    checkpoint_bytes: int | None
    num_checkpoints: int
    """Checkpoints that stand at the same time, at most."""
    final_bytes: int | None
    free_bytes: int

    @property
    def total_bytes(self) -> int | None:
        """Returns the bytes that stand at the end, None if the model's size is not known yet."""
        if self.checkpoint_bytes is None or self.final_bytes is None:
            return None
        return self.checkpoint_bytes * self.num_checkpoints + self.final_bytes

    @property
    def is_short(self) -> bool:
        """Returns True if more will be written than there is room for."""
        return self.total_bytes is not None and self.total_bytes > self.free_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that the training process holds at the moment of its peak, by what they are for."""

    process: int
    """Of Python, torch and the rows, before there is a model; on a GPU, of its context."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the layers keep of the largest micro-batch for the backward pass."""
    loss: int
    """Logits and the gradients of the head."""
    available: int
    is_tight: bool
    """Freed blocks are used again without holes between them."""
    is_bound: bool
    """The rows are not read yet: each was taken for as long as it may be."""

    @property
    def total(self) -> int:
        """Returns the bytes in all."""
        return self.process + self.weights + self.gradients + self.optimizer + self.activations + self.loss

    @property
    def is_short(self) -> bool:
        """Returns True if that is more than there is."""
        return self.total > self.available * (1 - _MEMORY_MARGIN)


@dataclass(frozen=True)
class StepsPlan:
    """How the rows are cut into optimizer steps."""

    micro_batch_rows: int
    accumulation: int
    world_size: int
    num_epochs: int
    max_steps: int | None
    num_rows: int | None = None

    @property
    def rows_per_step(self) -> int:
        """Returns the rows of one optimizer step over all ranks."""
        return self.micro_batch_rows * self.accumulation * self.world_size

    @property
    def per_epoch(self) -> int | None:
        """Returns the optimizer steps of one epoch; the last one takes the rows that are left."""
        return None if self.num_rows is None else math.ceil(self.num_rows / self.rows_per_step)

    @property
    def total(self) -> int | None:
        """Returns the optimizer steps of the run, None until the rows are counted."""
        if self.max_steps is not None:
            return self.max_steps
        return None if self.per_epoch is None else self.per_epoch * self.num_epochs


@dataclass(frozen=True)
class Plan:
    """A run, decided: acting code reads its values here and has no defaults of its own."""

    config: TrainingConfig
    """As given: for the adapter to other trainers, and for the records of the run."""
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
    """Of the model, None where its files do not tell it."""
    memory: MemoryPlan | None
    """None where it is not known."""
    notes: tuple[str, ...]
    """Where the run differs from what one may expect, and why."""

    @property
    def is_native(self) -> bool:
        """Returns True if our own trainer carries the plan out."""
        return TrainerType[self.trainer].spec.is_native

    @property
    def num_steps(self) -> int:
        """Returns the optimizer steps of the run, which must be known by now."""
        assert self.steps.total is not None, "the rows are counted before anything acts"
        return self.steps.total

    @property
    def save_mode(self) -> str:
        """Returns what is saved of a model with an adapter; one that was trained further is saved alone."""
        return self.lora.save_mode if self.lora else "ADAPTER_ONLY"

    def with_num_rows(self, num_rows: int | None) -> Plan:
        """Returns the same plan for the rows that the training set really has; None for a stream."""
        return replace(self, steps=replace(self.steps, num_rows=num_rows))
