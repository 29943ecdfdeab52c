# SPDX-License-Identifier: Apache-2.0
"""Arguments of TRL and transformers in `trainer_kwargs` that the plan decides.

An argument that means the same as a key of the config sets that key. One that would contradict the plan, or have no
effect since rows arrive tokenized and in order, is refused with the reason. Every other argument of their config
classes is passed on; a test sorts all of them, so that a new version of TRL cannot add an unnoticed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oumi.core.configs import TrainingConfig, TrainingParams
from oumi.core.configs.base import DEFAULT
from oumi.core.configs.paths import with_home
from oumi.core.configs.problems import shown
from oumi.core.errors import ConfigError

SAME_NAME = (
    "gradient_accumulation_steps", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "per_device_eval_batch_size", "run_name", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "eval_strategy", "eval_steps", "full_determinism",
    "dataloader_persistent_workers", "ddp_find_unused_parameters", "seed", "data_seed", "save_total_limit",
)  # fmt: skip
"""Keys of `training` that have the same name in transformers."""

_OTHER_NAME = {
    "training.optimizer": ("optim",),
    "training.enable_gradient_checkpointing": ("gradient_checkpointing", "activation_checkpointing"),
    "training.gradient_checkpointing_kwargs": ("activation_checkpointing_kwargs",),
    "training.empty_device_cache_steps": ("torch_empty_cache_steps",),
    "training.compile": ("torch_compile",),
    "training.dep_log_level": ("log_level",),
    "model.enable_liger_kernel": ("use_liger_kernel",),
    "model.trust_remote_code": ("trust_remote_code",),
    "model.model_max_length": ("max_length", "max_seq_length"),
    "model.tokenizer_pad_token": ("pad_token",),
    "data.train.pack": ("packing",),
    "data.validation.pack": ("eval_packing",),
}
"""Key of the config -> arguments that mean the same and take the same values."""

_DERIVED = (
    "output_dir", "warmup_steps", "warmup_ratio", "max_grad_norm", "gradient_checkpointing_kwargs", "save_steps",
    "logging_strategy", "logging_steps", "logging_first_step", "resume_from_checkpoint", "dataloader_num_workers",
    "dataloader_prefetch_factor", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
)  # fmt: skip
"""Keys of `training` with the same name in transformers, from which the plan derives other values."""

_INSTEAD = {
    "training.mixed_precision_dtype": ("bf16", "fp16"),
    "model.torch_dtype_str": ("bf16_full_eval", "fp16_full_eval"),
    "training.compile": ("torch_compile_backend", "torch_compile_mode"),
    "training.save_steps or training.save_epoch": ("save_strategy",),
    "training.enable_tensorboard, enable_wandb or enable_mlflow": ("report_to",),
    "training.nccl_default_timeout_minutes": ("ddp_timeout",),
    "model.enable_liger_kernel": ("liger_kernel_config",),
    "model.model_kwargs": ("model_init_kwargs",),
    "model.chat_template": ("chat_template_path",),
    "data.train.truncation": ("truncation_mode",),
    "model.tokenizer_kwargs": ("eos_token",),
    "data.train.train_target": ("completion_only_loss", "assistant_only_loss"),
    "data.train.pack": ("packing_strategy", "padding_free"),
    "data.train.collator_kwargs": ("pad_to_multiple_of",),
    "data.train.datasets": ("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "shuffle_dataset"),
    "fsdp": ("fsdp", "fsdp_config"),
    "deepspeed": ("deepspeed",),
}
"""Key of the config to set instead -> arguments with a similar meaning, but other values."""

_REASONS = {
    "the seed decides the order of the rows, the same for every trainer": (
        "train_sampling_strategy", "group_by_length", "length_column_name", "dataloader_drop_last",
        "dataloader_in_order", "ignore_data_skip", "remove_unused_columns",
    ),
    "the plan fixes the batch size": ("auto_find_batch_size",),
    "the device is detected": ("use_cpu", "no_cuda", "dataloader_pin_memory"),
    "every step is logged unchanged": ("logging_nan_inf_filter", "disable_tqdm", "include_num_input_tokens_seen"),
    "metrics functions are not supported yet": (
        "include_for_metrics", "batch_eval_metrics", "prediction_loss_only", "eval_do_concat_batches",
        "eval_use_gather_object", "eval_accumulation_steps",
    ),
    "nothing is uploaded; push the output directory after the run": (
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
        "hub_revision", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    ),
    "the launcher and the device decide it": ("local_rank", "ddp_backend"),
    "each process reads its own rows": ("accelerator_config",),
    "the sections fsdp and deepspeed decide what is sharded": ("parallelism_config",),
    "the main process alone writes and logs": ("save_on_each_node", "log_on_each_node", "log_level_replica"),
    "a loss is the mean over the tokens of all processes": ("average_tokens_across_devices",),
    "`oumi train` always trains; it evaluates by training.eval_strategy": ("do_train", "do_eval", "do_predict"),
    "Oumi saves and resumes checkpoints": (
        "save_only_model", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint",
    ),
}  # fmt: skip
"""Reason -> arguments that no key replaces."""

OWN_KEYS: Mapping[str, str] = {
    **{name: f"training.{name}" for name in (*SAME_NAME, *_DERIVED)},
    **{name: key for key, names in _OTHER_NAME.items() for name in names},
}
"""Argument -> the key of the config that it sets."""

REFUSED: Mapping[str, str] = {
    **{name: f"set {key}" for key, names in _INSTEAD.items() for name in names},
    **{name: reason for reason, names in _REASONS.items() for name in names},
}
"""Argument -> what to set instead, or why it is refused."""

WITHOUT_EFFECT: Mapping[str, tuple[Any, str]] = {
    "dataset_text_field": ("text", "a data set names the column that it reads"),
}
"""Refused argument -> the value, its default, with which it is accepted, and why it has no effect."""


@dataclass(frozen=True)
class MappedArgument:
    """An argument in `trainer_kwargs` that sets a key of the config."""

    argument: str
    key: str
    value: Any
    problem: str = ""
    """What is wrong: its type, or the key has another value; empty if nothing is."""

    @property
    def place(self) -> str:
        """Returns the dotted key of the argument."""
        return f"training.trainer_kwargs.{self.argument}"


def has_default(name: str, value: Any) -> bool:
    """Returns True for a refused argument that has its default, so that nothing is lost by ignoring it."""
    return name in WITHOUT_EFFECT and value == WITHOUT_EFFECT[name][0]


def as_run(config: TrainingConfig) -> TrainingConfig:
    """Returns the config with the arguments of `trainer_kwargs` moved to the keys that they set, and without `~`.

    The given config is not changed. Without such arguments and paths it is returned itself.

    Raises:
        ConfigError: A path begins with the home directory of a user who has none.
    """
    return with_home(_mapped(config)[0])


def mapped_arguments(config: TrainingConfig) -> list[MappedArgument]:
    """Returns the arguments in `trainer_kwargs` that set keys of the config, in their order."""
    return _mapped(config)[1]


def _mapped(config: TrainingConfig) -> tuple[TrainingConfig, list[MappedArgument]]:
    arguments, name_of_section = config.training.trainer_kwargs, config.training.trainer_type.spec.section
    # Some trainers have a section of their own: `beta` of GKD sets `training.gkd.beta`.
    fields = type(getattr(TrainingParams(), name_of_section)).model_fields if name_of_section else {}
    own_keys = {**OWN_KEYS, **{name: f"training.{name_of_section}.{name}" for name in fields}}
    if not own_keys.keys() & arguments.keys():
        return config, []
    run, mapped = config.model_copy(deep=True), list[MappedArgument]()
    for name in own_keys.keys() & arguments.keys():
        del run.training.trainer_kwargs[name]
    for name, key in ((name, own_keys[name]) for name in arguments if name in own_keys):
        *path, field = key.split(".")
        section: Any = run
        for part in path:
            section = getattr(section, part)
        before = getattr(section, field)
        others = [other.argument for other in mapped if other.key == key]
        try:
            section.set_from(field, arguments[name], config.origin_of("training.trainer_kwargs"))
        except ConfigError as error:
            mapped.append(MappedArgument(name, key, arguments[name], error.problems[0].message))
            continue
        # The assignment has converted the value, so `1e-4` as text equals the number. Two different values are an
        # error, unless the other one is only the default.
        value, problem = getattr(section, field), ""
        if value != before and (others or config.origin_of(key) != DEFAULT):
            other = f"training.trainer_kwargs.{others[0]}" if others else key
            problem = f"got {shown(value)}, but {other} is {shown(before)}: leave one of them out"
            section.set_from(field, before, config.origin_of(key))
        mapped.append(MappedArgument(name, key, value, problem))
    return run, mapped
