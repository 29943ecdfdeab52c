# SPDX-License-Identifier: Apache-2.0
"""What a config asks for and cannot have: refused by name, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import iglob
from pathlib import Path

from pydantic import ValidationError

from oumi.core.configs import LoraWeightInitialization, PeftSaveMode, TrainingConfig, TrainingParams
from oumi.core.configs.data import OnDuplicates, Truncation
from oumi.core.configs.loading import leaves, locate
from oumi.core.configs.model import DTYPES
from oumi.core.configs.overrides import Override
from oumi.core.configs.problems import follows, in_order, semantic_problems, split_key
from oumi.core.configs.trainers import TRAINERS
from oumi.core.errors import ConfigError, Problem, did_you_mean
from oumi.core.plan import collators
from oumi.core.plan.choices import ATTENTIONS, CHECKPOINTING, NUM_RECOMPUTED, wrong_optimizer, wrong_schedule
from oumi.core.plan.methods import METHODS, method_of, methods_of
from oumi.core.plan.notes import changed_keys
from oumi.core.plan.trainer_kwargs import REFUSED, as_run, mapped_arguments

_NOT_BUILT = {
    "training.profiler.*": "the profiler",
    "training.metrics_function": "metrics functions",
    "training.telemetry.track_gpu_temperature": "GPU temperatures",
    "training.telemetry.collect_telemetry_for_all_ranks": "telemetry of several processes",
    "fsdp.enable_fsdp": "training on several devices",
    "deepspeed.enable_deepspeed": "DeepSpeed",
    "peft.q_lora": "quantised base weights",
}
_LORA_STARTS = (
    LoraWeightInitialization.DEFAULT,
    LoraWeightInitialization.RANDOM,
    LoraWeightInitialization.GAUSSIAN,
)


def load_checked(path: Path, overrides: Sequence[Override] = (), reads_only: bool = False) -> TrainingConfig:
    """Returns the config in a file, changed by overrides.

    Args:
        path: The file.
        overrides: Given beside it.
        reads_only: Its rows are only looked at, so its trainer need not be built yet.

    Raises:
        ConfigError: With everything that is wrong: spelling, types, meaning, and what cannot be carried out here.
    """
    draft = TrainingConfig.draft(path, overrides)
    if draft.config is None:
        raise ConfigError(draft.problems, path.name)
    if problems := draft.joined(_problems(draft.config, reads_only)):
        raise ConfigError(problems, path.name)
    return draft.config


def check(config: TrainingConfig) -> None:
    """Raises ConfigError with everything that is wrong with a config, or that cannot be carried out."""
    if problems := _problems(config):
        raise ConfigError(problems, "config")


def _problems(config: TrainingConfig, reads_only: bool = False) -> list[Problem]:
    unset = config.unset_variables()
    left_out = [split_key(problem.key) for problem in unset]
    others = [*semantic_problems(as_run(config)), *refusals(config)]
    if reads_only and not config.training.trainer_type.spec.is_built:
        others = [problem for problem in others if problem.key != "training.trainer_type"]
    return in_order([*unset, *(problem for problem in others if not follows(problem, left_out, TrainingConfig))])


def refusals(config: TrainingConfig) -> list[Problem]:
    """Returns every part of the config that this version, its trainer or this machine cannot carry out."""
    looks = (
        _unbuilt,
        _wrong_method,
        _wrong_for_trainer,
        _wrong_model,
        _wrong_data,
        _wrong_gradient_checkpointing,
        _wrong_adapter,
    )
    run, arguments = as_run(config), mapped_arguments(config)
    problems = [(argument.place, argument.problem) for argument in arguments if argument.problem]
    problems += [problem for look in looks for problem in look(run)]
    written = {argument.key: argument.place for argument in arguments}  # where the user finds the key
    named = [(written.get(key, key), message) for key, message in problems]
    return [Problem(key, message, locate(config, key)) for key, message in named]


def _unbuilt(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    if not training.trainer_type.spec.is_built:
        built = ", ".join(kind.name for kind, spec in TRAINERS.items() if spec.is_built)
        yield "training.trainer_type", f"{training.trainer_type.name} is not built yet; there are {built}"
    values = leaves(config)
    for key in changed_keys(config):
        for pattern, what in _NOT_BUILT.items():
            if fnmatchcase(re.sub(r"\[\d+\]", "[]", key), pattern) and not _is_off(values[key]):
                yield key, f"{what}: not built yet"
    for split in ("train", "validation"):
        name = getattr(config.data, split).collator_name
        if name in collators.VISION and not training.trainer_type.spec.is_native:
            kind = training.trainer_type.name
            yield f"data.{split}.collator_name", f"{name}: {kind} is not given images yet; trainer OUMI is"
    if training.use_peft and config.peft.lora_init_weights not in _LORA_STARTS:
        starts = ", ".join(start.name for start in _LORA_STARTS)
        yield (
            "peft.lora_init_weights",
            f"{config.peft.lora_init_weights.name} changes the base weights, "
            f"so the saved adapter would not fit them: not built yet; there are {starts}",
        )
    if training.use_peft and "CAUSAL_LM" not in str(config.peft.lora_task_type):
        yield "peft.lora_task_type", f"{config.peft.lora_task_type}: not built yet; there is CAUSAL_LM"


def _is_off(value: object) -> bool:
    return value is None or value is False  # not 0, which asks for something


def _wrong_method(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training, name = config.training, method_of(config.training)
    methods = methods_of(training.trainer_type)
    if name not in methods:
        hint = did_you_mean(name, methods) or f"; it trains {', '.join(methods)}"
        yield "training.method", f"trainer {training.trainer_type.name} has no method '{name}'{hint}"
    elif training.trainer_type.spec.is_native:
        yield from _wrong_settings(name, training)


def _wrong_settings(method: str, training: TrainingParams) -> Iterator[tuple[str, str]]:
    settings = METHODS[method].settings
    try:
        settings.model_validate(training.trainer_kwargs)
    except ValidationError as error:
        fields = list(settings.model_fields)
        for problem in error.errors():
            argument = str(problem["loc"][0])
            hint = did_you_mean(argument, fields) or (
                f"; it takes {', '.join(fields)}" if fields else "; it takes none"
            )
            message = f"{problem['msg']}, got {problem['input']!r}"
            if problem["type"] == "extra_forbidden":
                message = f"training.method {method} of trainer OUMI has no such argument{hint}"
            if argument not in TrainingParams.model_fields:  # which is told for every trainer
                yield f"training.trainer_kwargs.{argument}", message


def compares_parts(config: TrainingConfig) -> bool:
    """Returns True if the method of a config compares the parts of a row; False of an unknown method."""
    spec = METHODS.get(method_of(config.training))
    return spec is not None and not spec.is_per_token


def _wrong_for_trainer(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    trainer = training.trainer_type.name
    if message := wrong_optimizer(training.optimizer, training.trainer_type):
        yield "training.optimizer", message
    yield from wrong_schedule(
        training.lr_scheduler_type, training.lr_scheduler_kwargs, training.learning_rate, training.trainer_type
    )
    yield from _wrong_arguments(training)
    if not training.trainer_type.spec.is_native:
        yield from _wrong_loss(training)
        if training.fp8_recipe is not None:
            yield "training.fp8_recipe", f"{trainer} has none; trainer OUMI has"
        if training.per_device_train_batch_size == "auto":
            yield "training.per_device_train_batch_size", f"auto: with {trainer}, give a number"
        return
    recomputes = training.enable_gradient_checkpointing
    if training.compile and recomputes and training.gradient_checkpointing_kwargs.get("use_reentrant"):
        key = "training.gradient_checkpointing_kwargs.use_reentrant"
        yield key, "true: compiled layers cannot be computed again that way; set it to false"
    if training.fp8_recipe is not None and not training.compile:
        yield "training.fp8_recipe", "needs training.compile: true; else casts take longer than products save"


def _wrong_arguments(training: TrainingParams) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the arguments in `trainer_kwargs` that are not taken as keys of ours."""
    for name in training.trainer_kwargs:
        key = f"training.trainer_kwargs.{name}"
        if name in TrainingParams.model_fields:
            yield key, f"is a key of 'training' itself: write it there, as '{name}'"
        elif not training.trainer_type.spec.is_native and name in REFUSED:
            yield key, f"the adapter decides it: {REFUSED[name]}"


def _wrong_loss(training: TrainingParams) -> Iterator[tuple[str, str]]:
    name = training.trainer_type.name
    if training.z_loss:
        yield "training.z_loss", f"{name} has none; trainer OUMI has"
    if training.label_smoothing:
        yield (
            "training.label_smoothing",
            f"{name} takes it from `training.trainer_kwargs: {{label_smoothing_factor: ...}}`",
        )


def _wrong_model(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    if DTYPES.get(config.model.torch_dtype_str.lower()) == "float16" and not config.training.use_peft:
        yield (
            "model.torch_dtype_str",
            "the gradients of float16 weights vanish; keep float32 weights with training.mixed_precision_dtype: FP16, "
            "take bfloat16, or train an adapter (training.use_peft)",
        )
    attention = config.model.attn_implementation
    if attention is not None and attention not in ATTENTIONS and "/" not in attention:
        hint = did_you_mean(attention, ATTENTIONS) or f"; known: {', '.join(ATTENTIONS)}"
        yield "model.attn_implementation", f"unknown attention '{attention}'{hint}"


def _wrong_data(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    for split in ("train", "validation"):
        for i, params in enumerate(getattr(config.data, split).datasets):
            if params.dataset_path is not None and not _is_there(params.dataset_path):
                near = _near_file(params.dataset_path)
                yield (
                    f"data.{split}.datasets[{i}].dataset_path",
                    f"no such file or directory: {params.dataset_path}{near}",
                )
            if params.is_file and "[" in (params.split or ""):
                yield (
                    f"data.{split}.datasets[{i}].split",
                    f"'{params.split}' takes a part of {params.dataset_path}: parts of a file are not built yet",
                )
    if config.training.eval_strategy != "no" and not config.data.validation.datasets:
        yield (
            "training.eval_strategy",
            f"'{config.training.eval_strategy}' needs rows: data.validation.datasets is empty",
        )
    yield from _wrong_packing(config)
    yield from _wrong_stream(config)
    yield from _wrong_truncation(config)
    yield from collators.wrong_arguments(config.data.train)


def _wrong_packing(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    for split in ("train", "validation"):
        if getattr(config.data, split).pack and compares_parts(config):
            yield (
                f"data.{split}.pack",
                f"rows of method {method_of(config.training)} are not packed; leave this key out",
            )
        elif getattr(config.data, split).pack and not config.training.trainer_type.spec.is_native:
            name = config.training.trainer_type.name
            yield f"data.{split}.pack", f"{name} would let packed documents see each other; trainer OUMI does not"


def _wrong_stream(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training, key = config.training, "data.train.stream"
    if not config.data.train.stream:
        return
    if not training.trainer_type.spec.is_native:
        yield key, f"{training.trainer_type.name} takes rows that are kept; trainer OUMI takes a stream"
    if training.max_steps <= 0:
        yield "training.max_steps", "a stream has no length that is known before: say how many steps to take"
    if config.data.train.on_duplicates == OnDuplicates.ERROR:
        yield "data.train.on_duplicates", "a stream keeps no rows that others could be compared with"
    per_epoch = {
        "training.save_epoch": training.save_epoch and training.save_steps <= 0,
        "training.eval_strategy": training.eval_strategy == "epoch",
        "training.logging_strategy": training.logging_strategy == "epoch",
    }
    for name in (name for name, is_set in per_epoch.items() if is_set):
        yield name, "the epochs of a stream have no length that is known before: count in steps"


def _wrong_truncation(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    name = config.training.trainer_type.name
    for split in ("train", "validation"):
        if getattr(config.data, split).truncation == Truncation.SPLIT and compares_parts(config):
            yield (
                f"data.{split}.truncation",
                f"SPLIT would part rows that {name} compares; expected RIGHT, LEFT or REJECT",
            )


def _wrong_gradient_checkpointing(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    arguments = (NUM_RECOMPUTED, *CHECKPOINTING)
    for name, value in training.gradient_checkpointing_kwargs.items():
        key = f"training.gradient_checkpointing_kwargs.{name}"
        if name not in arguments:
            help_ = did_you_mean(name, arguments) or f"; it takes {', '.join(arguments)}"
            yield key, f"torch.utils.checkpoint has no such argument{help_}"
        elif name == NUM_RECOMPUTED and not training.trainer_type.spec.is_native:
            yield key, f"{training.trainer_type.name} computes all layers again or none; only trainer OUMI reads it"
        elif name == NUM_RECOMPUTED and value != "auto" and (type(value) is not int or value < 1):
            yield key, f"expected a number of layers, 1 or more, or auto; found {value!r}"


def _wrong_adapter(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    if not config.training.use_peft:
        return
    if not config.model.load_pretrained_weights and config.peft.peft_save_mode == PeftSaveMode.ADAPTER_ONLY:
        yield (
            "peft.peft_save_mode",
            "ADAPTER_ONLY would lose the random weights below the adapter (model.load_pretrained_weights is false); "
            "set MERGED or ADAPTER_AND_BASE_MODEL",
        )
    if config.model.adapter_model is not None:
        for key in changed_keys(config):
            if key.startswith("peft.lora_"):
                yield key, "the adapter of model.adapter_model brings its own; leave this key out"


def _is_there(path: str) -> bool:
    pattern = str(Path(path).expanduser())
    return Path(pattern).exists() or next(iglob(pattern, recursive=True), None) is not None


def _near_file(path: str) -> str:
    missing = Path(path).expanduser()
    names = [file.name for file in missing.parent.iterdir()][:10_000] if missing.parent.is_dir() else []
    near = get_close_matches(missing.name, names, n=1)
    return f", did you mean '{missing.parent / near[0]}'?" if near else ""
