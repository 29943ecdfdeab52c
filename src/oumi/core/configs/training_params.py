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
from oumi.core.configs.paths import PathText
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
    """Method of trainer OUMI: `next_token` (supervised fine-tuning and pretraining), `dpo`, `kto`, `orpo`, `cpo` or
    `simpo`; null takes the default of `trainer_type`, for OUMI `next_token`. Arguments of its loss, such as `beta`,
    belong in `trainer_kwargs`."""
    use_peft: bool = False
    """Train an adapter as set in the 'peft' section."""
    output_dir: Annotated[PathText, Field(min_length=1)] = "output"
    """Directory of the run."""
    run_name: str | None = None
    """Name for trackers."""

    # Steps.
    per_device_train_batch_size: PositiveInt | Literal["auto"] = 8
    """Rows of a micro-batch; `auto`: 8 x gradient_accumulation_steps rows per step, in as few micro-batches as fit."""
    per_device_eval_batch_size: PositiveInt = 8
    """Rows of an evaluation batch."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of an optimizer step."""
    max_steps: int = -1
    """Optimizer steps; if > 0, it overrides num_train_epochs."""
    num_train_epochs: int = 3
    """Number of epochs."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of weights and dropout."""
    data_seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of the order of rows."""
    use_deterministic: bool = False
    """Use only deterministic kernels; on a GPU, this makes a resumed run bitwise equal."""
    full_determinism: bool = False
    """The same as use_deterministic, by the name of transformers."""

    # Speed and memory.
    compile: bool = False
    """Compile each layer before its first step (torch.compile)."""
    mixed_precision_dtype: MixedPrecisionDtype = MixedPrecisionDtype.NONE
    """Dtype of matrix products over float32 weights."""
    fp8_recipe: Literal["rowwise", "rowwise_with_gw_hp", "tensorwise"] | None = None
    """Multiply large layers in 8-bit floats, by a recipe of torchao; needs trainer OUMI and `compile`."""
    enable_gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    gradient_checkpointing_kwargs: dict[str, Any] = {}
    """Such as `use_reentrant: false`. With trainer OUMI, `recompute_num_layers` recomputes only the first layers: a
    number of them, or `auto` for as few as fit into memory."""
    empty_device_cache_steps: PositiveInt | None = None
    """Steps between emptying the GPU's cache."""
    label_ignore_index: int | None = None
    """Label of tokens that are not trained."""
    nccl_default_timeout_minutes: PositiveFloat | None = None
    """Timeout of communication between processes, in minutes."""

    # Loss.
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread over the whole vocabulary; trainer OUMI only."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the squared log-sum-exp of the logits, which keeps them near zero; trainer OUMI only."""

    # Optimizer and schedule.
    learning_rate: NonNegativeFloat = 5e-05
    """Peak learning rate, reached after warmup."""
    optimizer: str = "adamw_torch"
    """Such as `adamw_torch`, `sgd`, `adafactor`."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of matrices; vectors have none."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    adam_epsilon: NonNegativeFloat = 1e-08
    """Added to the root of the second moment."""
    sgd_momentum: NonNegativeFloat = 0.0
    """Momentum of optimizer sgd."""
    max_grad_norm: NonNegativeFloat | None = 1.0
    """Gradients are clipped to this norm; null or 0 disables clipping."""
    lr_scheduler_type: str = "linear"
    """Such as `linear`, `cosine`, `constant`."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """Such as `min_lr_rate: 0.1`."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the steps in which the learning rate rises to its peak."""
    warmup_steps: NonNegativeInt | None = None
    """Steps in which the learning rate rises to its peak; overrides warmup_ratio."""

    # Saving, resuming, measuring.
    save_steps: Annotated[int, Field(ge=-1)] = 500
    """Steps between checkpoints; 0 and -1 save none during training."""
    save_epoch: bool = False
    """Save after each epoch, if save_steps saves none."""
    save_final_model: bool = True
    """Save the model at the end."""
    save_total_limit: PositiveInt | None = None
    """Checkpoints to keep; null keeps all."""
    resume_from_checkpoint: PathText | None = None
    """Checkpoint directory to resume from."""
    try_resume_from_last_checkpoint: bool = False
    """Resume from the newest checkpoint in output_dir, if there is one."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When the validation loss is computed."""
    eval_steps: PositiveInt = 500
    """Steps between evaluations."""
    eval_samples: NonNegativeInt = 0
    """Validation rows that the model answers at each evaluation, written to samples.jsonl and TensorBoard."""
    metric_for_best_model: str | None = None
    """Metric of the best evaluation, such as `eval_loss`, the default; `eval_` may be left out."""
    greater_is_better: bool | None = None
    """Whether the metric improves as it rises; null knows it for losses, perplexities, accuracies and margins."""
    load_best_model_at_end: bool = False
    """Save the model of the best evaluation at the end, and keep its checkpoint until then."""
    early_stopping_patience: PositiveInt | None = None
    """End the run after so many evaluations without an improvement."""
    early_stopping_threshold: NonNegativeFloat = 0.0
    """How much the metric must improve on the best one to count for early_stopping_patience."""
    metrics_function: str | None = None
    """Registered function that computes metrics."""

    # Logging.
    log_level: str = "info"
    """Log level of Oumi."""
    dep_log_level: str = "warning"
    """Log level of the libraries that Oumi uses."""
    log_examples: bool = False
    """Log the first row with its trained tokens marked."""
    enable_wandb: bool = False
    """Report to Weights & Biases."""
    enable_mlflow: bool = False
    """Report to MLflow."""
    enable_tensorboard: bool = True
    """Write TensorBoard event files."""
    logging_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When metrics are logged."""
    logging_dir: PathText | None = None
    """Directory of TensorBoard; null takes `<output_dir>/tensorboard`."""
    logging_steps: PositiveInt = 50
    """Steps between logs."""
    logging_first_step: bool = False
    """Log the first step too."""
    include_performance_metrics: bool = False
    """Write timings to telemetry/."""
    include_alternative_mfu_metrics: bool = False
    """Log Oumi's alternative count of operations."""
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
    """Batches that each process loads ahead."""
    dataloader_main_process_only: bool | None = None
    """Load batches on the first process and send them to the others."""
    ddp_find_unused_parameters: bool | None = None
    """Search for weights without a gradient."""

    # Of single methods.
    grpo: GrpoParams = GrpoParams()
    """Settings of GRPO."""
    gkd: GkdParams = GkdParams()
    """Settings of GKD."""
    gold: GoldParams = GoldParams()
    """Settings of GOLD."""
    trainer_kwargs: dict[str, Any] = {}
    """Further arguments of the config class of TRL or transformers; one that means the same as a key of the config sets
    that key."""
    reward_functions: list[str] | None = None
    """Names of registered reward functions."""
    reward_function_kwargs: dict[str, dict[str, Any]] = {}
    """Arguments of each reward function, by name."""
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
