# SPDX-License-Identifier: Apache-2.0
"""Arguments of TRL and transformers in `trainer_kwargs` that the plan decides.

One that means the same as a key of ours is taken as that key. One that would contradict the plan, or do nothing since
rows come read, rendered, cut and in order, is refused with the reason. Every other argument of their config classes is
passed on and acts; a test holds the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oumi.core.configs import TrainerType, TrainingConfig, TrainingParams
from oumi.core.configs.base import DEFAULT
from oumi.core.configs.problems import shown
from oumi.core.errors import ConfigError

SAME_NAME = (
    "gradient_accumulation_steps", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "per_device_eval_batch_size", "run_name", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "eval_strategy", "eval_steps", "full_determinism",
    "dataloader_persistent_workers", "ddp_find_unused_parameters", "seed", "data_seed", "save_total_limit",
)  # fmt: skip
"""Keys of `training` that transformers calls the same."""

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
"""Key of ours -> arguments that mean the same and take the same values."""

_WRITTEN_HERE = (
    "output_dir", "warmup_steps", "warmup_ratio", "max_grad_norm", "gradient_checkpointing_kwargs", "save_steps",
    "logging_strategy", "logging_steps", "logging_first_step", "resume_from_checkpoint", "dataloader_num_workers",
    "dataloader_prefetch_factor",
)  # fmt: skip
"""Keys of `training` with the name that transformers uses, which the plan works out further."""

_INSTEAD = {
    "training.mixed_precision_dtype": ("bf16", "fp16"),
    "model.torch_dtype_str": ("bf16_full_eval", "fp16_full_eval"),
    "training.compile": ("torch_compile_backend", "torch_compile_mode"),
    "training.save_steps or training.save_epoch": ("save_strategy",),
    "training.enable_tensorboard, enable_wandb or enable_mlflow": ("report_to",),
    "training.dataloader_main_process_only": ("accelerator_config",),
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
"""Key of ours that has to be set -> arguments that ask for something like it in other values."""

_REASONS = {
    "the rows come in the order of the seed, the same for every trainer": (
        "train_sampling_strategy", "group_by_length", "length_column_name", "dataloader_drop_last",
        "dataloader_in_order", "ignore_data_skip", "remove_unused_columns",
    ),
    "the plan holds the batch size": ("auto_find_batch_size",),
    "the device is the one that is there": ("use_cpu", "no_cuda", "dataloader_pin_memory"),
    "every step is shown as it is": ("logging_nan_inf_filter", "disable_tqdm", "include_num_input_tokens_seen"),
    "metrics functions are not built yet": (
        "include_for_metrics", "batch_eval_metrics", "prediction_loss_only", "eval_do_concat_batches",
        "eval_use_gather_object",
    ),
    "nothing is sent anywhere; push the output directory when the run is done": (
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
        "hub_revision", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    ),
    "the run is one process": (
        "local_rank", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
        "parallelism_config", "save_on_each_node", "log_on_each_node", "log_level_replica",
        "average_tokens_across_devices",
    ),
    "`oumi train` trains; it evaluates by training.eval_strategy": ("do_train", "do_eval", "do_predict"),
    "checkpoints are published and resumed by Oumi": (
        "save_only_model", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint",
    ),
}  # fmt: skip
"""Why -> arguments that nothing is set instead of."""

OWN_KEYS: Mapping[str, str] = {
    **{name: f"training.{name}" for name in (*SAME_NAME, *_WRITTEN_HERE)},
    **{name: key for key, names in _OTHER_NAME.items() for name in names},
}
"""Argument -> the key of ours that it is taken as."""

REFUSED: Mapping[str, str] = {
    **{name: f"set {key}" for key, names in _INSTEAD.items() for name in names},
    **{name: reason for reason, names in _REASONS.items() for name in names},
}
"""Argument -> what to set instead, or why it cannot be given."""


@dataclass(frozen=True)
class MappedArgument:
    """An argument in `trainer_kwargs` that is taken as a key of ours."""

    argument: str
    key: str
    value: Any
    problem: str = ""
    """Why it cannot be: of another type, or the key says something else."""

    @property
    def place(self) -> str:
        """Returns the key under which the argument stands in the config."""
        return f"training.trainer_kwargs.{self.argument}"


def as_run(config: TrainingConfig) -> TrainingConfig:
    """Returns the config that a run goes by: what `trainer_kwargs` says of a key of ours stands at that key.

    The config itself is not changed. One without such arguments is returned as it is.
    """
    return _mapped(config)[0]


def mapped_arguments(config: TrainingConfig) -> list[MappedArgument]:
    """Returns the arguments in `trainer_kwargs` that are taken as keys of ours, in their order."""
    return _mapped(config)[1]


def _mapped(config: TrainingConfig) -> tuple[TrainingConfig, list[MappedArgument]]:
    arguments = config.training.trainer_kwargs
    own_keys = _own_keys(config.training.trainer_type)
    if not own_keys.keys() & arguments.keys():
        return config, []
    run, mapped = config.model_copy(deep=True), list[MappedArgument]()
    for name in own_keys.keys() & arguments.keys():
        del run.training.trainer_kwargs[name]
    for name, key in ((name, own_keys[name]) for name in arguments if name in own_keys):
        section, field = _field(run, key)
        before = getattr(section, field)
        others = [other.argument for other in mapped if other.key == key]
        try:
            section.set_from(field, arguments[name], config.origin_of("training.trainer_kwargs"))
        except ConfigError as error:
            mapped.append(MappedArgument(name, key, arguments[name], error.problems[0].message))
            continue
        value, problem = getattr(section, field), ""
        if value != before and (others or config.origin_of(key) != DEFAULT):
            other = f"training.trainer_kwargs.{others[0]}" if others else key
            problem = f"got {shown(value)}, but {other} is {shown(before)}: leave one of them out"
            section.set_from(field, before, config.origin_of(key))
        mapped.append(MappedArgument(name, key, value, problem))
    return run, mapped


def _own_keys(trainer: TrainerType) -> Mapping[str, str]:
    """Returns the keys that arguments of a trainer are taken as; those of its own section come first."""
    section = trainer.spec.section
    fields = type(getattr(TrainingParams(), section)).model_fields if section else {}
    return {**OWN_KEYS, **{name: f"training.{section}.{name}" for name in fields}}


def _field(config: TrainingConfig, key: str) -> tuple[Any, str]:
    """Returns the section that holds a dotted key, and the name of its field."""
    *above, field = key.split(".")
    section: Any = config
    for part in above:
        section = getattr(section, part)
    return section, field
