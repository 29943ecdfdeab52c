# SPDX-License-Identifier: Apache-2.0
"""Refuses configs that cannot be carried out, with every problem by its key, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from glob import iglob
from pathlib import Path

from pydantic import ValidationError

from oumi.core.configs import TrainingConfig, TrainingParams
from oumi.core.configs.data import OnDuplicates, Truncation, is_split_expression, pattern_of
from oumi.core.configs.loading import leaves, locate
from oumi.core.configs.model import DTYPES
from oumi.core.configs.overrides import Override
from oumi.core.configs.problems import follows, in_order, semantic_problems, split_key, translate
from oumi.core.configs.trainers import TRAINERS
from oumi.core.errors import ConfigError, Problem, did_you_mean
from oumi.core.plan import collators
from oumi.core.plan.accelerate import accelerate_problems
from oumi.core.plan.adapters import adapter_problems
from oumi.core.plan.best import best_problems
from oumi.core.plan.choices import ATTENTIONS, CHECKPOINTING, NUM_RECOMPUTED, wrong_optimizer, wrong_schedule
from oumi.core.plan.custom import custom_model_problems
from oumi.core.plan.methods import METHODS, is_of_other_method, method_of, methods_of
from oumi.core.plan.notes import changed_keys, matches_key
from oumi.core.plan.preference_kwargs import has_no_effect, preference_problems
from oumi.core.plan.sharding import sharding_problems
from oumi.core.plan.trainer_kwargs import REFUSED, as_run, has_default, mapped_arguments
from oumi.core.system.filesystem import expanded

_NOT_BUILT = {
    "training.profiler.*": "the profiler",
    "training.metrics_function": "metrics functions",
    "training.telemetry.track_gpu_temperature": "GPU temperatures",
    "training.telemetry.collect_telemetry_for_all_ranks": "telemetry of several processes",
}
"""Patterns of keys that are not supported yet -> what they are for."""


def load_checked(path: Path, overrides: Sequence[Override] = (), reads_only: bool = False) -> TrainingConfig:
    """Returns the config in a file with overrides.

    Args:
        path: Config file.
        overrides: Values that replace those of the file.
        reads_only: Only its rows are read, so its trainer need not be supported yet.

    Raises:
        ConfigError: With all problems: of spelling, types and meaning, and what cannot be carried out here.
    """
    # A draft keeps what is valid, so that a spelling error does not hide the problems of the other keys.
    draft = TrainingConfig.draft(path, overrides)
    if draft.config is None:
        raise ConfigError(draft.problems, path.name)
    if problems := draft.joined(_problems(draft.config, reads_only)):
        raise ConfigError(problems, path.name)
    return draft.config


def check(config: TrainingConfig) -> None:
    """Raises ConfigError with all problems of a config, for configs that are made in Python."""
    if problems := _problems(config):
        raise ConfigError(problems, "config")


def _problems(config: TrainingConfig, reads_only: bool = False) -> list[Problem]:
    unset = config.unset_variables()
    left_out = [split_key(problem.key) for problem in unset]
    # Problems that only follow from an unset environment variable are not repeated.
    others = [*semantic_problems(as_run(config)), *refusals(config)]
    if reads_only and not config.training.trainer_type.spec.is_built:
        others = [problem for problem in others if problem.key != "training.trainer_type"]
    return in_order([*unset, *(problem for problem in others if not follows(problem, left_out, TrainingConfig))])


def refusals(config: TrainingConfig) -> list[Problem]:
    """Returns the problems of a config that this version, its trainer or this machine cannot carry out."""
    checks = (
        _unsupported,
        _wrong_method,
        _wrong_for_trainer,
        _wrong_model,
        _wrong_data,
        _wrong_gradient_checkpointing,
        _adapter_that_is_continued,
        adapter_problems,
        best_problems,
        custom_model_problems,
        preference_problems,
        sharding_problems,
        accelerate_problems,
    )
    run, arguments = as_run(config), mapped_arguments(config)
    problems = [(argument.place, argument.problem) for argument in arguments if argument.problem]
    problems += [problem for check in checks for problem in check(run)]
    # A problem of a key is reported at the argument in `trainer_kwargs` that set it, where the user finds the value.
    written = {argument.key: argument.place for argument in arguments}
    named = [(written.get(key, key), message) for key, message in problems]
    return [Problem(key, message, locate(config, key)) for key, message in named]


def _unsupported(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    if not training.trainer_type.spec.is_built:
        built = ", ".join(kind.name for kind, spec in TRAINERS.items() if spec.is_built)
        method = training.trainer_type.spec.method
        instead = f"use OUMI with training.method: {method}" if METHODS[method].loss else f"available: {built}"
        yield "training.trainer_type", f"{training.trainer_type.name} is not supported yet; {instead}"
    values = leaves(config)
    for key in changed_keys(config):
        is_off = values[key] is None or values[key] is False  # 0 is not off
        for pattern, purpose in _NOT_BUILT.items():
            if matches_key(key, pattern) and not is_off:
                yield key, f"{purpose}: not supported yet"
    # Adapters.
    if training.use_peft and "CAUSAL_LM" not in str(config.peft.lora_task_type):
        yield "peft.lora_task_type", f"{config.peft.lora_task_type}: not supported yet; available: CAUSAL_LM"


def _wrong_method(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training, method = config.training, method_of(config.training)
    methods = methods_of(training.trainer_type)
    if method not in methods:
        hint = did_you_mean(method, methods) or f"; it supports {', '.join(methods)}"
        yield "training.method", f"trainer {training.trainer_type.name} has no method '{method}'{hint}"
        return
    # The arguments of other trainers are checked by their own config classes.
    if not training.trainer_type.spec.is_native:
        return
    settings = METHODS[method].settings
    names = list(settings.model_fields)
    try:
        for name, message in settings.model_validate(training.trainer_kwargs).complaints():
            yield f"training.trainer_kwargs.{name}", message
    except ValidationError as error:
        for problem in translate(error, settings, {}):
            name, message = problem.key, problem.message
            if name.partition("[")[0] not in names:  # a value of a list has its index
                hint = did_you_mean(name, names) or (f"; it takes {', '.join(names)}" if names else "; it takes none")
                message = f"training.method {method} of trainer OUMI has no such argument{hint}"
            # `_wrong_for_trainer` reports misplaced keys, for every trainer.
            if not _is_misplaced(name, training):
                yield f"training.trainer_kwargs.{name}", message


def _is_misplaced(name: str, training: TrainingParams) -> bool:
    """Returns True if an argument in `trainer_kwargs` is a key of `training`, which would be read there."""
    return name in TrainingParams.model_fields and not is_of_other_method(name, method_of(training))


def _is_decided(name: str, value: object, training: TrainingParams) -> bool:
    """Returns True if the adapter to another trainer decides an argument, and the given value would be lost."""
    if training.trainer_type.spec.is_native or name not in REFUSED:
        return False
    return not has_no_effect(name, training) and not has_default(name, value)


def _wrong_for_trainer(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    trainer = training.trainer_type.name
    if message := wrong_optimizer(training.optimizer, training.trainer_type):
        yield "training.optimizer", message
    yield from wrong_schedule(
        training.lr_scheduler_type, training.lr_scheduler_kwargs, training.learning_rate, training.trainer_type
    )
    # Arguments that mean the same as a key of the config are no longer in `trainer_kwargs`, see `as_run`.
    for name, value in training.trainer_kwargs.items():
        key = f"training.trainer_kwargs.{name}"
        if _is_misplaced(name, training):
            yield key, f"is a key of 'training' itself: write it there, as '{name}'"
        elif _is_decided(name, value, training):
            yield key, f"the adapter decides it: {REFUSED[name]}"
    if not training.trainer_type.spec.is_native:
        # Options of trainer OUMI alone.
        if training.z_loss:
            yield "training.z_loss", f"not supported by {trainer}, only by trainer OUMI"
        if training.label_smoothing and method_of(training) == "next_token":
            argument = "`training.trainer_kwargs: {label_smoothing_factor: ...}`"
            yield "training.label_smoothing", f"{trainer} takes it from {argument}"
        if training.fp8_recipe is not None:
            yield "training.fp8_recipe", f"not supported by {trainer}, only by trainer OUMI"
        if training.per_device_train_batch_size == "auto":
            yield "training.per_device_train_batch_size", f"auto: not supported by {trainer}; set a number"
        return
    if config.model.model_kwargs.get("output_router_logits"):
        alternative = "use trainer TRL_SFT or HF, or leave it out"
        yield "model.model_kwargs.output_router_logits", f"trainer {trainer} adds no router loss: {alternative}"
    recomputes = training.enable_gradient_checkpointing
    if training.compile and recomputes and training.gradient_checkpointing_kwargs.get("use_reentrant"):
        key = "training.gradient_checkpointing_kwargs.use_reentrant"
        yield key, "true: not supported for compiled layers; set it to false"
    if training.fp8_recipe is not None and not training.compile:
        yield "training.fp8_recipe", "needs training.compile: true; otherwise the casts take longer than 8 bits save"


def _wrong_model(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    if DTYPES.get(config.model.torch_dtype_str.lower()) == "float16" and not config.training.use_peft:
        yield (
            "model.torch_dtype_str",
            "the gradients of float16 weights vanish; keep float32 weights with training.mixed_precision_dtype: FP16, "
            "use bfloat16, or train an adapter (training.use_peft)",
        )
    attention = config.model.attn_implementation
    # A slash is the id of a kernel on the Hub.
    if attention is not None and attention not in ATTENTIONS and "/" not in attention:
        hint = did_you_mean(attention, ATTENTIONS) or f"; known: {', '.join(ATTENTIONS)}"
        yield "model.attn_implementation", f"unknown attention '{attention}'{hint}"


def _wrong_data(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    for split in ("train", "validation"):
        for i, params in enumerate(getattr(config.data, split).datasets):
            if params.dataset_path is not None and (message := _missing_path(params.dataset_path)):
                yield f"data.{split}.datasets[{i}].dataset_path", message
            if params.dataset_path is not None and is_split_expression(params.split):
                yield (
                    f"data.{split}.datasets[{i}].split",
                    f"'{params.split}': parts of local data are not supported, only of data sets on the Hub; "
                    "sample_count limits the rows",
                )
    if config.training.eval_strategy != "no" and not config.data.validation.datasets:
        yield (
            "training.eval_strategy",
            f"'{config.training.eval_strategy}' needs rows: data.validation.datasets is empty",
        )
    yield from _wrong_samples(config)
    yield from _wrong_packing(config)
    yield from _wrong_stream(config)
    yield from collators.wrong_arguments(config.data.train)


def _wrong_samples(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training, key = config.training, "training.eval_samples"
    if not training.eval_samples:
        return
    if training.eval_strategy == "no":
        yield key, "needs evaluations: set training.eval_strategy to 'steps' or 'epoch'"
    if training.compile:
        yield key, "not supported with training.compile: the lengths of answers would compile the layers anew"
    for section in ("fsdp", "deepspeed"):
        if getattr(getattr(config, section), f"enable_{section}"):
            yield key, f"not supported with {section}: the first process answers, and has only a part of the weights"


def _wrong_packing(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields the problems of keys that put documents together or split them."""
    method = method_of(config.training)
    # An unknown method has a problem of its own.
    compares_parts = method in METHODS and not METHODS[method].is_per_token
    for split in ("train", "validation"):
        params = getattr(config.data, split)
        if params.pack and compares_parts:
            yield f"data.{split}.pack", f"rows of method {method} cannot be packed; leave this key out"
        if params.truncation == Truncation.SPLIT and compares_parts:
            yield (
                f"data.{split}.truncation",
                f"SPLIT would separate the parts of a row that method {method} compares; must be RIGHT, LEFT or REJECT",
            )


def _wrong_stream(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    if not config.data.train.stream:
        return
    if training.max_steps <= 0:
        yield "training.max_steps", "the length of a stream is not known in advance: set the number of steps"
    if config.data.train.on_duplicates == OnDuplicates.ERROR:
        yield "data.train.on_duplicates", "the rows of a stream are not stored, so they cannot be compared"
    if config.training.trainer_type.spec.is_native and config.training.trainer_kwargs.get("precompute_ref_log_probs"):
        key = "training.trainer_kwargs.precompute_ref_log_probs"
        yield key, "the rows of a stream are not known in advance: leave it out"
    # A stream repeats its data sets without end, so no epoch ends.
    per_epoch = {
        "training.save_epoch": training.save_epoch and training.save_steps <= 0,
        "training.eval_strategy": training.eval_strategy == "epoch",
        "training.logging_strategy": training.logging_strategy == "epoch",
    }
    for name in (name for name, is_set in per_epoch.items() if is_set):
        yield name, "the length of an epoch of a stream is not known in advance: use steps"


def _wrong_gradient_checkpointing(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    arguments = (NUM_RECOMPUTED, *CHECKPOINTING)
    for name, value in training.gradient_checkpointing_kwargs.items():
        key = f"training.gradient_checkpointing_kwargs.{name}"
        if name not in arguments:
            hint = did_you_mean(name, arguments) or f"; it takes {', '.join(arguments)}"
            yield key, f"torch.utils.checkpoint has no such argument{hint}"
        elif name == NUM_RECOMPUTED and not training.trainer_type.spec.is_native:
            yield key, f"{training.trainer_type.name} recomputes all layers or none; only trainer OUMI reads it"
        elif name == NUM_RECOMPUTED and value != "auto" and (type(value) is not int or value < 1):  # True is an int
            yield key, f"got {value!r}, must be a number of layers >= 1, or auto"


def _adapter_that_is_continued(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    # An adapter that is trained further keeps its own rank, targets and scale.
    if config.training.use_peft and config.model.adapter_model is not None:
        for key in changed_keys(config):
            if key.startswith("peft.lora_"):
                yield key, "the adapter of model.adapter_model has its own; leave this key out"


def _missing_path(path: str) -> str:
    """Returns the message for a path or pattern of data that matches nothing, an empty string if it does."""
    missing = expanded(path)
    # A file whose name looks like a pattern is taken literally.
    if missing.exists() or next(iglob(pattern_of(str(missing)), recursive=True), None) is not None:
        return ""
    # Comparing all names of a huge directory would take minutes.
    names = [file.name for file in missing.parent.iterdir()][:10_000] if missing.parent.is_dir() else []
    near = get_close_matches(missing.name, names, n=1)
    hint = f", did you mean '{missing.parent / near[0]}'?" if near else ""
    return f"no such file or directory: {path}{hint}"
