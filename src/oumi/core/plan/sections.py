# SPDX-License-Identifier: Apache-2.0
"""Plans each section of a config. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from oumi.core.configs import (
    DatasetSplitParams,
    MixedPrecisionDtype,
    TrainingConfig,
    TrainingParams,
)
from oumi.core.configs.methods import AnswerSettings, KtoSettings, NoSettings
from oumi.core.configs.model import DTYPES
from oumi.core.errors import ConfigError
from oumi.core.plan import collators
from oumi.core.plan.best import plan_best
from oumi.core.plan.choices import FLAT_ATTENTIONS, NO_LARGE_LAYER, NUM_RECOMPUTED, gains_by_fp8
from oumi.core.plan.disk import EMBEDDINGS
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.lora import QuantizationPlan
from oumi.core.plan.methods import METHODS, method_of
from oumi.core.plan.parts import (
    CheckpointPlan,
    DataPlan,
    EvaluationPlan,
    LogPlan,
    MethodPlan,
    MixturePlan,
    ModelPlan,
    OptimizerPlan,
    PrecisionPlan,
    SchedulePlan,
    SpeedPlan,
    StepsPlan,
)
from oumi.core.types.answers import AnswerLimits

_ROWS_OF_AUTO = 8
"""Rows of a micro-batch for `auto`, until it is known how many fit. Times the accumulation: the rows of a step."""


def plan_precision(config: TrainingConfig, facts: Facts) -> tuple[str, PrecisionPlan]:
    """Returns the dtype of the weights, and the precision of the computation with its reason.

    Raises:
        ConfigError: `fp8_recipe` is set, but no layer is large enough, or the rest is not computed in bfloat16.
    """
    dtype, precision = _precision_without_fp8(config, facts)
    recipe, compute_dtype = config.training.fp8_recipe, precision.autocast or dtype
    # A device without 8-bit products trains without them; `notes` says so.
    if recipe is None or not facts.has_fp8:
        return dtype, precision
    # torchao's kernels return bfloat16. `auto` is the dtype of files that are not downloaded yet.
    if compute_dtype not in ("bfloat16", "auto"):
        raise ConfigError(
            f"training.fp8_recipe: {recipe} needs bfloat16 for the rest of the computation, got "
            f"{compute_dtype}; set training.mixed_precision_dtype: BF16, or model.torch_dtype_str: bfloat16"
        )
    # The embeddings and the head are never converted to 8 bits.
    layers = [shape for name, shape in facts.model.matrices.items() if not any(part in name for part in EMBEDDINGS)]
    if layers and not any(gains_by_fp8(shape, recipe) for shape in layers):
        raise ConfigError(NO_LARGE_LAYER)
    reason = f"{precision.reason}; large layers multiply in 8 bits, {recipe}"
    return dtype, replace(precision, reason=reason, fp8=recipe)


def _precision_without_fp8(config: TrainingConfig, facts: Facts) -> tuple[str, PrecisionPlan]:
    dtype = DTYPES[config.model.torch_dtype_str.lower()]
    mixed = config.training.mixed_precision_dtype
    # Such a CPU emulates bfloat16 and float16, many times slower than float32.
    if facts.device == "cpu" and not facts.has_bf16:
        if dtype == "float64":
            return dtype, PrecisionPlan(None, "float64 as configured")
        return "float32", PrecisionPlan(None, "float32, since this CPU has no bfloat16 instructions")
    if mixed != MixedPrecisionDtype.NONE:
        autocast = "bfloat16" if mixed == MixedPrecisionDtype.BF16 else "float16"
        return "float32", PrecisionPlan(autocast, f"float32 weights, {autocast} matrix products, as configured")
    if dtype != "auto":
        return dtype, PrecisionPlan(None, f"{dtype} as configured")
    if not config.model.load_pretrained_weights:
        return "float32", PrecisionPlan(None, "float32, as random weights are drawn")
    stored = facts.model.stored_dtype
    return stored or "auto", PrecisionPlan(None, f"{stored or 'the dtype'} of the model's own files")


def plan_speed(config: TrainingConfig, dtype: str, precision: PrecisionPlan, facts: Facts) -> SpeedPlan:
    """Returns which optimizations are on; `facts.without` disables some to measure their effect."""
    training = config.training
    # The fused layers are for plain float32 or float64; autocast would change the dtypes inside them.
    on_cpu = facts.device == "cpu" and precision.autocast is None and dtype in ("float32", "float64")
    return SpeedPlan(
        flat_batches="flat" not in facts.without and config.model.attn_implementation in FLAT_ATTENTIONS,
        shared_prefixes="shared_prefixes" not in facts.without and facts.device == "cpu",
        fused_loss="fused_loss" not in facts.without,
        fused_layers=on_cpu and not training.compile and "fused_layers" not in facts.without,
        compile=training.compile,
        liger=config.model.enable_liger_kernel and facts.device == "cuda",
    )


def plan_model(
    config: TrainingConfig, dtype: str, facts: ModelFacts, quantization: QuantizationPlan | None = None
) -> ModelPlan:
    """Returns which model and tokenizer are loaded, and how.

    Raises:
        ConfigError: The collator is for images, and the model has no image input.
    """
    model, collator = config.model, config.data.train.collator_name
    if collator in collators.VISION and facts.are_available and not (facts.sees_images and not model.text_only):
        raise ConfigError(f"data.train.collator_name: {collator} is for images, but {model.model_name} takes only text")
    overrides = dict(model.model_kwargs)
    name = facts.adapter_of or model.model_name
    tokenizer_name = model.tokenizer_name or model.model_name
    # `model_revision` belongs to the repository that the config names: of an adapter, not of its base model.
    own_revision = None if facts.adapter_of else model.model_revision
    # The commit is preferred to a branch, which may move before the run is resumed.
    revision = facts.commit or own_revision
    # A tokenizer of any other name has no revision.
    tokenizer_revisions = {name: revision, model.model_name: model.model_revision if facts.adapter_of else revision}
    lengths = (facts.tokenizer_length, overrides.get("max_position_embeddings", facts.max_positions))
    # A row has at most as many tokens as the collator, else the config, else model and tokenizer allow.
    processor_name, processor_kwargs = collators.processor(config)
    max_length = collators.max_length(config.data.train) or model.model_max_length
    return ModelPlan(
        name=name,
        revision=revision,
        digest=facts.digest,
        pretrained=model.load_pretrained_weights,
        trust_remote_code=model.trust_remote_code,
        dtype=dtype,
        attention=model.attn_implementation,
        disable_dropout=bool(overrides.pop("disable_dropout", False)),
        config_overrides=overrides,
        freeze=tuple(model.freeze_layers),
        tokenizer_name=tokenizer_name,
        tokenizer_revision=tokenizer_revisions.get(tokenizer_name),
        tokenizer_kwargs=model.tokenizer_kwargs,
        pad_token=model.tokenizer_pad_token,
        max_length=max_length or min(filter(None, lengths), default=None),
        chat_template=model.chat_template,
        adapter=model.model_name if facts.adapter_of else model.adapter_model,
        adapter_revision=model.model_revision if facts.adapter_of else None,
        sees_images=facts.sees_images and not model.text_only,
        processor_name=processor_name,
        processor_kwargs=processor_kwargs,
        quantization=quantization,
        text_only=model.text_only and (facts.sees_images or not facts.are_available),
    )


def plan_data(config: TrainingConfig) -> DataPlan:
    """Returns which rows are read, and which of their tokens are trained."""
    # Without evaluation, the validation set is not read at all.
    validation = config.data.validation if config.training.eval_strategy != "no" else DatasetSplitParams()
    return DataPlan(
        train=_plan_mixture("data.train", config.data.train, config.data.train.stream),
        validation=_plan_mixture("data.validation", validation, is_streamed=False),  # every evaluation reads it again
        train_on=collators.train_on(config),
        landmarks=collators.landmarks(config.data.train),
        seed=config.data.train.seed if config.data.train.seed is not None else config.training.data_seed,
        answer_limits=_answer_limits(config.training),
    )


def _answer_limits(training: TrainingParams) -> AnswerLimits:
    # The limits that TRL had: our data path applies them, whichever trainer the rows are for.
    has_limits = issubclass(METHODS[method_of(training)].settings, AnswerSettings)
    names = ("max_prompt_length", "max_completion_length") if has_limits else ()
    return AnswerLimits(*(training.trainer_kwargs.get(name) for name in names))


def _plan_mixture(section: str, split: DatasetSplitParams, is_streamed: bool) -> MixturePlan:
    return MixturePlan(
        section=section,
        datasets=tuple(split.datasets),
        strategy=split.mixture_strategy,
        pack=split.pack,
        stream=is_streamed,
        truncation=collators.truncation(split),
        max_rejected_rows=split.max_rejected_rows,
        on_duplicates=split.on_duplicates.value,
    )


def plan_method(config: TrainingConfig, model: ModelPlan, steps: StepsPlan) -> MethodPlan:
    """Returns the method, the arguments of its loss, and where its reference is.

    Raises:
        ConfigError: The method compares the rows of a step, and a step has one.
    """
    training, peft = config.training, config.peft
    trainer, name = training.trainer_type.spec, method_of(training)
    # Other trainers take `trainer_kwargs` as arguments of their own config class.
    settings = METHODS[name].settings.model_validate(training.trainer_kwargs) if trainer.is_native else NoSettings()
    # Disabling an adapter restores the model before training, unless this run continues it or changes its base.
    keeps_base = peft.lora_bias == "none" and peft.keeps_base
    is_restored = training.use_peft and model.adapter is None and keeps_base
    mismatches = isinstance(settings, KtoSettings) and settings.loss_type == "kto"
    if mismatches and steps.rows_per_step < 2:
        raise ConfigError(
            "training.per_device_train_batch_size: method kto pairs each prompt with the answer of another row of its "
            "step, so a step needs 2 rows or more: raise it, or training.gradient_accumulation_steps"
        )
    has_reference = METHODS[name].has_reference and not getattr(settings, "reference_free", False)
    return MethodPlan(
        name=name,
        settings=settings.model_dump(),
        has_reference=has_reference,
        mismatches=mismatches,
        copies_reference=has_reference and not is_restored,
        keeps_log_probs=has_reference and getattr(settings, "precompute_ref_log_probs", False),
    )


def plan_steps(training: TrainingParams, world_size: int, num_rows: int | None, ranks_per_node: int = 1) -> StepsPlan:
    """Returns how rows are divided into optimizer steps."""
    rows = training.per_device_train_batch_size
    return StepsPlan(
        micro_batch_rows=_ROWS_OF_AUTO if rows == "auto" else rows,
        accumulation=training.gradient_accumulation_steps,
        world_size=world_size,
        num_epochs=training.num_train_epochs,
        max_steps=training.max_steps if training.max_steps > 0 else None,
        num_rows=num_rows,
        ranks_per_node=ranks_per_node,
    )


def plan_optimizer(training: TrainingParams) -> OptimizerPlan:
    """Returns the optimizer and its settings."""
    return OptimizerPlan(
        name=training.optimizer,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
        momentum=training.sgd_momentum,
        max_grad_norm=training.max_grad_norm or None,  # 0 means no clipping, as in transformers
    )


def plan_schedule(training: TrainingParams) -> SchedulePlan:
    """Returns the learning rate schedule and its settings."""
    return SchedulePlan(
        name=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        warmup_ratio=training.warmup_ratio,
        kwargs=training.lr_scheduler_kwargs,
    )


def plan_gradient_checkpointing(training: TrainingParams) -> dict[str, Any] | None:
    """Returns the arguments of gradient checkpointing, None if all activations are kept."""
    return recompute_settings(training) if training.enable_gradient_checkpointing else None


def recompute_settings(training: TrainingParams) -> dict[str, Any]:
    """Returns the arguments of gradient checkpointing, whether or not the config enables it."""
    # torch recommends the non-reentrant variant; the reentrant one cannot be compiled.
    settings = {"use_reentrant": False, **training.gradient_checkpointing_kwargs}
    if settings.get(NUM_RECOMPUTED) == "auto":
        del settings[NUM_RECOMPUTED]  # all layers, until it is known what fits
    return settings


def plan_checkpoints(training: TrainingParams) -> CheckpointPlan:
    """Returns when checkpoints are saved, how many are kept, and from which one the run resumes."""
    resume_from = training.resume_from_checkpoint
    # `save_steps` takes precedence over `save_epoch`.
    return CheckpointPlan(
        every_steps=training.save_steps if training.save_steps > 0 else None,
        every_epoch=training.save_epoch and training.save_steps <= 0,
        keep=training.save_total_limit,
        final_model=training.save_final_model,
        resume_from=Path(resume_from) if resume_from else None,
        resume_last=training.try_resume_from_last_checkpoint,
        best=plan_best(training),
    )


def plan_evaluation(config: TrainingConfig) -> EvaluationPlan:
    """Returns when the validation loss is computed."""
    training = config.training
    return EvaluationPlan(
        every_steps=training.eval_steps if training.eval_strategy == "steps" else None,
        every_epoch=training.eval_strategy == "epoch",
        batch_size=training.per_device_eval_batch_size,
        num_samples=training.eval_samples,
    )


def plan_logs(config: TrainingConfig, output_dir: Path) -> LogPlan:
    """Returns what is logged, where and how often."""
    training = config.training
    telemetry = training.telemetry.telemetry_dir
    tensorboard = Path(training.logging_dir) if training.logging_dir else output_dir / "tensorboard"
    return LogPlan(
        every_steps=training.logging_steps if training.logging_strategy == "steps" else None,
        first_step=training.logging_first_step,
        every_epoch=training.logging_strategy == "epoch",
        level=training.log_level,
        dependency_level=training.dep_log_level,
        tensorboard_dir=tensorboard if training.enable_tensorboard else None,
        wandb=training.enable_wandb,
        mlflow=training.enable_mlflow,
        telemetry_dir=output_dir / telemetry if telemetry else None,
        step_times=training.include_performance_metrics,
        model_summary=training.log_model_summary,
        examples=collators.shows_example(config),
    )
