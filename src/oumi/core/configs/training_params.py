# SPDX-License-Identifier: Apache-2.0
"""How a model is trained."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from oumi.core.configs.base import Complaint, NamedEnum, Params
from oumi.core.configs.distill import GkdParams, GoldParams
from oumi.core.configs.grpo import GrpoParams
from oumi.core.configs.profiler import ProfilerParams, TelemetryParams
from oumi.core.configs.trainers import TRAINERS, TrainerType

_RUN_NAME_LIMIT = 100


class SchedulerType(StrEnum):
    """Learning-rate schedules."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    CONSTANT = "constant"


class MixedPrecisionDtype(NamedEnum):
    """Dtype of matrix products over float32 weights."""

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"


class TrainingParams(Params):
    """How a model is trained."""

    # What runs.
    trainer_type: TrainerType = TrainerType.HF
    """Which trainer."""

    method: str | None = None
    """What trainer OUMI learns from the rows: `next_token` (supervised fine-tuning and pretraining) or `dpo`. Empty:
    what `trainer_type` says, for OUMI `next_token`. Arguments of its loss, such as `beta`, stand in
    `trainer_kwargs`."""
    use_peft: bool = False
    """Train an adapter, by the 'peft' section."""
    output_dir: Annotated[str, Field(min_length=1)] = "output"
    """Directory of the run."""
    run_name: str | None = None
    """Name for trackers."""

    # Steps.
    per_device_train_batch_size: PositiveInt | Literal["auto"] = 8
    """Rows of a micro-batch; `auto`: 8 x gradient_accumulation_steps rows a step, in the fewest parts that fit."""
    per_device_eval_batch_size: PositiveInt = 8
    """Rows of a batch of evaluation."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of an optimizer step."""
    max_steps: int = -1
    """Optimizer steps; above 0 it decides instead of epochs."""
    num_train_epochs: int = 3
    """Times that every row is trained."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of weights and dropout."""
    data_seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Of the order of rows."""
    use_deterministic: bool = False
    """Use deterministic kernels only: on a GPU, what makes a resumed run the same bit for bit."""
    full_determinism: bool = False
    """The same, in transformers' words."""

    # Speed and memory.
    compile: bool = False
    """Compile each layer before its first step (torch.compile)."""
    mixed_precision_dtype: MixedPrecisionDtype = MixedPrecisionDtype.NONE
    """Dtype of matrix products over float32 weights."""
    fp8_recipe: Literal["rowwise", "rowwise_with_gw_hp", "tensorwise"] | None = None
    """Multiply the large layers in 8-bit floats, by a recipe of torchao; trainer OUMI only, with `compile`."""
    enable_gradient_checkpointing: bool = False
    """Compute activations again in backward rather than keep them."""
    gradient_checkpointing_kwargs: dict[str, Any] = {}
    """Such as `use_reentrant: false`; `recompute_num_layers`: so many layers, the first ones, or auto for as few as let
    the run fit; trainer OUMI only."""
    empty_device_cache_steps: PositiveInt | None = None
    """Steps between emptying the GPU's cache."""
    label_ignore_index: int | None = None
    """Label that collators give to what is not trained."""
    nccl_default_timeout_minutes: PositiveFloat | None = None
    """Of communication between processes."""

    # Loss.
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread over the whole vocabulary; trainer OUMI only."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the squared logarithm of the softmax's sum, which keeps logits near zero; trainer OUMI only."""

    # Optimizer and schedule.
    learning_rate: NonNegativeFloat = 5e-05
    """Peak learning rate, reached after warmup."""
    optimizer: str = "adamw_torch"
    """Such as `adamw_torch`, `sgd`, `adafactor`."""
    weight_decay: NonNegativeFloat = 0.0
    """Of matrices; vectors have none."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    adam_epsilon: NonNegativeFloat = 1e-08
    """Added to the root of the second moment."""
    sgd_momentum: NonNegativeFloat = 0.0
    """Of optimizer sgd."""
    max_grad_norm: NonNegativeFloat | None = 1.0
    """Gradients are scaled down to this norm; null or 0 does not."""
    lr_scheduler_type: str = "linear"
    """Such as `linear`, `cosine`, `constant`."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """Such as `min_lr_rate: 0.1`."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the steps in which the learning rate rises."""
    warmup_steps: NonNegativeInt | None = None
    """Steps in which the learning rate rises."""

    # Saving, resuming, measuring.
    save_steps: Annotated[int, Field(ge=-1)] = 500
    """Steps between checkpoints; 0 and -1 save none on the way."""
    save_epoch: bool = False
    """Save after each epoch, when save_steps saves none."""
    save_final_model: bool = True
    """Save the model at the end."""
    save_total_limit: PositiveInt | None = None
    """Checkpoints to keep; null keeps all."""
    resume_from_checkpoint: str | None = None
    """A checkpoint directory to go on from."""
    try_resume_from_last_checkpoint: bool = False
    """Go on from the newest checkpoint in output_dir, if there is one."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When the validation data is measured."""
    eval_steps: PositiveInt = 500
    """Steps between measurements."""
    metrics_function: str | None = None
    """Registered function that computes metrics."""

    # Logging.
    log_level: str = "info"
    """Of this program."""
    dep_log_level: str = "warning"
    """Of the libraries below."""
    log_examples: bool = False
    """Log the first row with its trained tokens marked."""
    enable_wandb: bool = False
    """Report to Weights & Biases."""
    enable_mlflow: bool = False
    """Report to MLflow."""
    enable_tensorboard: bool = True
    """Write TensorBoard event files."""
    logging_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When a step is reported."""
    logging_dir: str | None = None
    """Of TensorBoard; null takes `<output_dir>/tensorboard`."""
    logging_steps: PositiveInt = 50
    """Steps between reports."""
    logging_first_step: bool = False
    """Report the first step too."""
    include_performance_metrics: bool = False
    """Write timings below telemetry/."""
    include_alternative_mfu_metrics: bool = False
    """Oumi's second way to count operations."""
    log_model_summary: bool = False
    """Write the module tree to telemetry/model_summary.txt."""
    profiler: ProfilerParams = ProfilerParams()
    """torch.profiler."""
    telemetry: TelemetryParams = TelemetryParams()
    """Timings."""

    # Loading data, processes.
    dataloader_num_workers: NonNegativeInt | Literal["auto"] = 0
    """Processes that load batches."""
    dataloader_persistent_workers: bool = False
    """Keep them between epochs."""
    dataloader_prefetch_factor: PositiveInt | None = None
    """Batches that each loads ahead."""
    dataloader_main_process_only: bool | None = None
    """Load on the first process and hand out."""
    ddp_find_unused_parameters: bool | None = None
    """Look for weights without a gradient."""

    # Of single methods.
    grpo: GrpoParams = GrpoParams()
    """GRPO."""
    gkd: GkdParams = GkdParams()
    """GKD."""
    gold: GoldParams = GoldParams()
    """GOLD."""
    trainer_kwargs: dict[str, Any] = {}
    """Further arguments of the config class of TRL or transformers; one that means the same as a key here sets that
    key."""
    reward_functions: list[str] | None = None
    """Registered functions that rate answers."""
    reward_function_kwargs: dict[str, dict[str, Any]] = {}
    """Arguments of reward functions, by their names."""
    verl_config_overrides: dict[str, Any] = {}
    """Changes to verl's config."""

    @property
    def telemetry_dir(self) -> Path | None:
        """Returns the directory of telemetry files, None if none are written."""
        name = self.telemetry.telemetry_dir
        return Path(self.output_dir) / name if name else None

    @property
    def safe_run_name(self) -> str | None:
        """Returns run_name with unusual characters replaced, and at most 100 characters."""
        if self.run_name is None:
            return None
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.run_name)
        if len(name) <= _RUN_NAME_LIMIT:
            return name
        # The digest keeps two long names with the same start apart.
        digest = hashlib.shake_128(name.encode()).hexdigest(8)
        return f"{name[: _RUN_NAME_LIMIT - len(digest) - 3]}...{digest}"

    def complaints(self) -> Iterator[Complaint]:
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            yield (
                "max_steps",
                f"got {self.max_steps}, and num_train_epochs is {self.num_train_epochs}: one must be > 0",
            )
        for key in ("log_level", "dep_log_level"):
            if getattr(self, key).lower() not in ("debug", "info", "warning", "error", "critical"):
                yield key, f"got '{getattr(self, key)}', must be one of debug, info, warning, error, critical"
        # Rewards need a trainer that takes them.
        names = [name for name in self.reward_functions or [] if name]
        trainer, limit = self.trainer_type.name, self.trainer_type.spec.max_rewards
        if names and not limit:
            others = " and ".join(kind.name for kind, spec in TRAINERS.items() if spec.max_rewards)
            yield "reward_functions", f"not supported by trainer {trainer}, only by {others}"
        elif len(names) > limit:
            yield "reward_functions", f"{trainer} takes at most {limit}, got {len(names)}"
        for name in self.reward_function_kwargs:
            if name not in names:
                yield f"reward_function_kwargs.{name}", f"'{name}' is not among reward_functions"
