# SPDX-License-Identifier: Apache-2.0
"""The notes of a plan: where the run differs from what the config suggests, and which of its keys are not read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from oumi.core.configs import DatasetParams, TrainingConfig
from oumi.core.configs.deepspeed import DeepSpeedParams, OffloadConfig
from oumi.core.configs.loading import leaves
from oumi.core.configs.model import DTYPES
from oumi.core.configs.problems import shown
from oumi.core.plan import collators
from oumi.core.plan.accelerate import accelerate_notes
from oumi.core.plan.adapters import adapter_notes
from oumi.core.plan.choices import FLAT_ATTENTIONS
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.methods import METHODS, method_of
from oumi.core.plan.parts import Plan, PrecisionPlan, StepsPlan
from oumi.core.plan.preference_kwargs import preference_notes
from oumi.core.plan.resources import DiskPlan
from oumi.core.plan.sharding import sharding_notes
from oumi.core.plan.trainer_kwargs import WITHOUT_EFFECT, mapped_arguments

_GROUPS = (
    "training.grpo.*",
    "training.gkd.*",
    "training.gold.*",
    "training.verl_config_overrides*",
    "training.reward_function*",
)
"""Keys of single methods, none of which is supported yet."""
_FP8_GAINS_FROM = 3e9
"""Parameters from which on 8-bit products pay; nanochat's smaller models became slower."""
_QUANTIZATION = (
    "peft.q_lora_bits",
    "peft.bnb_4bit_*",
    "peft.llm_int8_skip_modules",
    "peft.use_bnb_nested_quant",
)
_READ_BY_FSDP = {"enable_deepspeed", "deepspeed_config_path", "zero_stage", "offload_optimizer", "offload_param"}
_OF_DEEPSPEED = (
    *(f"deepspeed.{name}*" for name in DeepSpeedParams.model_fields if name not in _READ_BY_FSDP),
    *(f"deepspeed.offload_*.{name}" for name in OffloadConfig.model_fields if name != "device"),
)
"""Keys without an equivalent in FSDP2."""

# Patterns of keys -> why they are not read. `[[]]` matches `[]`, since fnmatch reads a bracket as a set of characters.
_NEVER_READ: dict[tuple[str, ...], str] = {
    ("data.test.*",): "training reads no test split",
    (
        "data.*.datasets[[]].trust_remote_code",
    ): "no data set runs code of the Hub; model.trust_remote_code is for tokenizer and processor",
    ("data.*.target_col",): "deprecated, targets come from the rendered conversation",
    ("data.*.use_torchdata",): "deprecated, rows are always read when they are needed",
    ("data.validation.stream",): "the validation rows are stored, since every evaluation reads all of them",
    ("data.validation.seed",): "the validation set is read in order",
    (
        "data.validation.collator_name",
        "data.validation.collator_kwargs*",
        "data.validation.train_target",
    ): "those of data.train are used for both splits",
    (
        "model.chat_template_kwargs*",
        "model.shard_for_eval",
        "model.tool_call_parser",
    ): "training does not read it",
    ("model.device_map",): "each process holds the whole model on its device",
    _GROUPS: "this method does not read it",
}
_NOT_READ_BY_NATIVE: dict[tuple[str, ...], str] = {
    ("training.ddp_find_unused_parameters",): "gradients are summed for all parameters, used or not",
    ("training.dataloader_*",): "batches are made from tokens in memory, which needs no workers",
    ("training.label_ignore_index",): "only trained positions reach the loss",
    ("training.include_alternative_mfu_metrics",): "it repeats include_performance_metrics",
}
_NOT_READ_BY_OTHER_METHODS: dict[tuple[str, ...], str] = {
    ("training.label_smoothing", "training.z_loss"): "only the cross-entropy of next_token has them",
    ("data.train.train_target",): "the method decides which tokens are trained",
}
_NOT_READ_BY_ADAPTER: dict[tuple[str, ...], str] = {
    ("training.label_ignore_index",): "the collator of the trainer marks ignored labels with -100",
    ("training.include_alternative_mfu_metrics",): "it repeats include_performance_metrics",
    ("training.sgd_momentum",): "transformers takes it from trainer_kwargs.optim_args",
    ("training.dataloader_main_process_only",): "each process reads its own rows",
}


def plan_notes(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """Returns the notes of a plan, a sentence each; those about memory come from `fitting.memory_notes`."""
    config = plan.config
    return (
        *_surprises(config, facts, plan.precision),
        *_never_due(config, plan.steps),
        *_limits(config, facts.model, plan.model.dtype, plan.disk),
        *_unread(config, plan.steps),
        *preference_notes(config.training),
        *_single_answers(plan),
        *adapter_notes(config, plan.model, plan.lora, facts.model),
        *sharding_notes(config, plan.sharding, plan.steps.world_size, plan.device),
        *accelerate_notes(config, plan.accelerate, plan.model.dtype, plan.steps.world_size),
        *(f"not read: {key}: it only changes the elements that your own code reads" for key in facts.unread),
    )


def argument_notes(config: TrainingConfig) -> tuple[str, ...]:
    """Returns a note for each key that an argument in `trainer_kwargs` sets."""
    arguments = mapped_arguments(config)
    return tuple(f"{argument.key}: {shown(argument.value)}, as {argument.place} says" for argument in arguments)


def changed_keys(config: TrainingConfig) -> list[str]:
    """Returns the dotted keys whose value is not the default, in the order of the config."""
    # By value, not by origin: a key that is written with its default changes nothing.
    defaults = leaves(TrainingConfig())
    # There are no data sets by default, so each is compared with one that has only a name.
    row_defaults = leaves(DatasetParams(dataset_name="-"))
    changed = []
    for key, value in leaves(config).items():
        match = re.fullmatch(r"data\.\w+\.datasets\[\d+\]\.(.+)", key)
        expected, name = (row_defaults, match[1]) if match else (defaults, key)
        if name not in expected or expected[name] != value:
            changed.append(key)
    return changed


def matches_key(key: str, pattern: str) -> bool:
    """Returns True if a pattern matches a dotted key, whatever the indices of its lists."""
    return fnmatchcase(re.sub(r"\[\d+\]", "[]", key), pattern)


def _surprises(config: TrainingConfig, facts: Facts, precision: PrecisionPlan) -> Iterator[str]:
    training, train, spec = config.training, config.data.train, config.training.trainer_type.spec
    # Numbers: the precision, and how batches are laid out.
    is_narrow = training.mixed_precision_dtype.name != "NONE" or DTYPES[config.model.torch_dtype_str.lower()] in (
        "bfloat16", "float16",
    )  # fmt: skip
    if facts.device == "cpu" and not facts.has_bf16 and is_narrow:
        yield f"precision: {precision.reason}, instead of what the config sets"
    attention = config.model.attn_implementation
    if spec.is_native and attention not in FLAT_ATTENTIONS:
        yield f"batches are padded, since {attention} cannot separate documents; sdpa can, in one kernel on a GPU"
    elif spec.is_native and "flat" not in facts.without and facts.model.mixers:
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts.model.mixers.items())
        yield f"flat batches; in the mixers of {kinds} layers, a document is a row, padded to those of similar length"
    # Targets: what is trained by default, unless the method or the config decides it.
    if METHODS[method_of(training)].train_on is None and train.train_target is None:
        trains_all = collators.train_on(config) == "all"
        has_landmarks = train.collator_name is not None and collators.landmarks(train)
        if spec.is_native and not trains_all and not has_landmarks:
            yield "targets: assistant turns only; set `data.train.train_target` to change it"
        elif spec.trains_prompts and trains_all:
            yield "targets: every token, prompts included; set `data.train.train_target` to train on answers only"
    # Model and device: what does not apply to them, or costs more than one may expect.
    if config.model.processor_kwargs and facts.model.are_available and not facts.model.sees_images:
        yield "not read: model.processor_kwargs: a text model has no processor"
    if training.compile and facts.device == "cpu" and spec.is_native:
        yield "compile: the first step waits half a minute or more; on a CPU, our fused layers are about as fast"
    if facts.device == "cuda" and spec.is_native:
        yield from _gpu_notes(config)
    if training.fp8_recipe is not None:
        yield from _fp8_notes(training.fp8_recipe, facts)
    # Keys that others take precedence over.
    if training.max_steps > 0 and "training.num_train_epochs" in changed_keys(config):
        yield "not read: training.num_train_epochs: max_steps decides"
    if training.save_steps > 0 and training.save_epoch:
        yield "not read: training.save_epoch: save_steps decides; set it to 0 to save after each epoch"
    if training.warmup_steps is not None and training.warmup_ratio is not None:
        yield "not read: training.warmup_ratio: warmup_steps decides"
    # Keys for a GPU.
    if config.model.enable_liger_kernel and facts.device != "cuda":
        yield "not read: model.enable_liger_kernel: its kernels are for a GPU"
    if training.empty_device_cache_steps is not None and facts.device == "cpu":
        yield "not read: training.empty_device_cache_steps: a CPU has no such cache"
    if training.optimizer == "adamw_torch_fused" and facts.device == "cpu":
        yield "optimizer: adamw_torch_fused is the same as adamw_torch on a CPU"
    if training.optimizer.startswith("paged"):
        effect = "does not page on a CPU"
        if facts.device != "cpu":
            effect = "moves its states to the host's memory if the GPU's is full; the plan does not count them"
        yield f"optimizer: {training.optimizer} {effect}"


def _gpu_notes(config: TrainingConfig) -> Iterator[str]:
    training = config.training
    if not training.compile and not config.model.enable_liger_kernel:
        yield "layers are not fused: a 1B on an H200 took 0.81 of the time with training.compile, 0.86 with Liger"
    saves = training.save_steps > 0 or training.save_epoch
    if saves and not training.use_deterministic and not training.full_determinism:
        yield "resume: a GPU adds in no fixed order; training.use_deterministic makes resumed runs bitwise equal"


def _fp8_notes(recipe: str, facts: Facts) -> Iterator[str]:
    if not facts.has_fp8:
        yield f"not read: training.fp8_recipe: {facts.device_name} does not multiply 8-bit floats"
        return
    # A model of unknown size gets no note.
    if (facts.model.num_parameters or _FP8_GAINS_FROM) < _FP8_GAINS_FROM:
        yield "fp8: a model below about 3B gains little or nothing by products in 8 bits"
    # A scale that tokens share depends on all of them, so micro-batches of another size round differently.
    shared_scales = {
        "tensorwise": "all tokens of a micro-batch share a scale",
        "rowwise": "in the gradients of weights, all tokens of a micro-batch share a scale",
    }
    if recipe in shared_scales:
        yield f"fp8: {shared_scales[recipe]}, so its size affects the gradients; with rowwise_with_gw_hp it does not"
    yield "fp8: the logged share of the peak is that of bfloat16 products"


def _never_due(config: TrainingConfig, steps: StepsPlan) -> Iterator[str]:
    training = config.training
    intervals = {"training.save_steps": training.save_steps}
    if training.eval_strategy == "steps":
        intervals["training.eval_steps"] = training.eval_steps
    for key, num_steps in intervals.items():
        # The default interval is beyond the end of many short runs, which needs no note.
        if steps.total is not None and num_steps > steps.total and key in changed_keys(config):
            yield f"{key}: {num_steps:,} is beyond the run's {steps.total:,} steps, so it is never due"


def _single_answers(plan: Plan) -> Iterator[str]:
    """Yields a note if a step has one row, for a method that compares each row with another one of its step."""
    steps = plan.steps
    if not plan.method.mismatches or steps.num_rows is None or steps.total is None or steps.per_epoch is None:
        return
    # A shorter run never reaches the last rows of an epoch.
    if steps.num_rows % steps.rows_per_step == 1 and steps.total >= steps.per_epoch:
        yield f"{plan.method.name}: the last step of an epoch has one row, and no other to estimate kl from: it is 0"


def _limits(config: TrainingConfig, model: ModelFacts, dtype: str, disk: DiskPlan) -> Iterator[str]:
    # Of base weights only: PEFT keeps adapters in float32.
    if dtype in ("bfloat16", "float16") and not config.training.use_peft:
        yield (
            f"precision: {dtype} weights lose small updates; `model.torch_dtype_str: float32` with "
            "`training.mixed_precision_dtype: BF16` keeps them, for twice the memory of the weights"
        )
    if disk.is_short:
        yield "disk: not enough free space; the run will be refused before its first step"
    length, max_positions = config.model.model_max_length, model.max_positions
    if length and max_positions and length > max_positions:
        yield f"length: model_max_length {length:,} is beyond the {max_positions:,} positions of the model"
    if model.adapter_of and any(key.startswith("peft.lora_") for key in changed_keys(config)):
        yield "not read: peft.lora_*: model.model_name is an adapter, which has its own"
    if not model.are_available:
        yield "model: not downloaded yet; dtype, length and disk space depend on its files"


def _unread(config: TrainingConfig, steps: StepsPlan) -> Iterator[str]:
    training = config.training
    changed = changed_keys(config)
    yield from _unread_of_files(config, changed)
    if not training.trainer_type.spec.is_native:
        for name in WITHOUT_EFFECT.keys() & training.trainer_kwargs.keys():
            yield f"not read: training.trainer_kwargs.{name}: {WITHOUT_EFFECT[name][1]}"
    for keys, reason in collators.unread_arguments(config).items():
        yield f"not read: {', '.join(keys)}: {reason}"
    # A key is noted only if its value differs from the default.
    reasons: dict[tuple[str, ...], str] = {
        **_NEVER_READ,
        **(_NOT_READ_BY_NATIVE if training.trainer_type.spec.is_native else _NOT_READ_BY_ADAPTER),
        **({} if method_of(training) == "next_token" else _NOT_READ_BY_OTHER_METHODS),
        **_switched_off(config),
    }
    for patterns, reason in reasons.items():
        unread_keys = [key for key in changed if any(matches_key(key, pattern) for pattern in patterns)]
        if unread_keys:
            yield f"not read: {', '.join(unread_keys)}: {reason}"
    if training.nccl_default_timeout_minutes is not None and steps.world_size == 1:
        yield "not read: training.nccl_default_timeout_minutes: the run is a single process"


def _unread_of_files(config: TrainingConfig, changed: list[str]) -> Iterator[str]:
    for split in ("train", "validation"):
        for i, params in enumerate(getattr(config.data, split).datasets):
            for name in ("split", "subset") if params.is_file else ():
                key = f"data.{split}.datasets[{i}].{name}"
                if key in changed:
                    yield f"not read: {key}: {params.dataset_path} is a file, which is read completely"


def _switched_off(config: TrainingConfig) -> dict[tuple[str, ...], str]:
    """Returns patterns of the keys that another key switches off, each with the reason."""
    training = config.training
    off: dict[tuple[str, ...], str] = {}
    # Data.
    if config.data.train.stream:
        off["data.train.datasets[[]].transform_num_workers",] = "a stream is read by a single thread"
    else:
        off["data.train.datasets[[]].shuffle_buffer_size",] = "only streams have a shuffle buffer"
    off["data.validation.datasets[[]].shuffle_buffer_size",] = "only streams have a shuffle buffer"
    for split in ("train", "validation"):
        if all(params.mixture_proportion is None for params in getattr(config.data, split).datasets):
            off[(f"data.{split}.mixture_strategy",)] = "only mixtures with proportions read it"
    if config.data.train.stream and training.eval_strategy == "no" and not training.trainer_type.spec.is_native:
        off[("training.dataloader_*",)] = "a stream is read by a thread"
    # Whole sections.
    if not training.use_peft:
        off[("peft.*",)] = "training.use_peft is false"
    elif not config.peft.q_lora:
        off[_QUANTIZATION] = "peft.q_lora is false"
    elif config.peft.q_lora_bits == 8:
        off["peft.bnb_4bit_*", "peft.use_bnb_nested_quant"] = "peft.q_lora_bits is 8"
    if not config.fsdp.enable_fsdp:
        off[("fsdp.*",)] = "fsdp.enable_fsdp is false"
    if not config.deepspeed.enable_deepspeed:
        off[("deepspeed.*",)] = "deepspeed.enable_deepspeed is false"
    elif training.trainer_type.spec.is_native:
        off[_OF_DEEPSPEED] = "trainer OUMI divides the model by FSDP2, which has no such setting"
    # Settings of other optimizers and strategies.
    if training.optimizer != "sgd":
        off[("training.sgd_momentum",)] = "only sgd has momentum"
    if training.optimizer in ("sgd", "adafactor"):
        off[("training.adam_*",)] = f"{training.optimizer} has no such setting"
    if not training.enable_gradient_checkpointing:
        off[("training.gradient_checkpointing_kwargs*",)] = "training.enable_gradient_checkpointing is false"
    if training.eval_strategy == "no":
        off[("training.eval_steps", "training.per_device_eval_batch_size", "data.validation.*")] = (
            "training.eval_strategy is 'no'"
        )
    elif training.eval_strategy == "epoch":
        off[("training.eval_steps",)] = "training.eval_strategy is 'epoch'"
    if training.logging_strategy != "steps":
        off[("training.logging_steps",)] = f"training.logging_strategy is '{training.logging_strategy}'"
    if training.dataloader_num_workers == 0:
        off[("training.dataloader_prefetch_factor",)] = "training.dataloader_num_workers is 0"
    if not training.enable_tensorboard:
        off[("training.logging_dir",)] = "training.enable_tensorboard is false"
    return off
