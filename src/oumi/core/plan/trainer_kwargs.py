# SPDX-License-Identifier: Apache-2.0
"""Arguments of TRL and transformers that the plan or our adapter decides, so `trainer_kwargs` may not.

What stands here would contradict the plan, or do nothing since rows come read, rendered, cut and in order.
Every other argument of their config classes is passed on and acts; a test holds the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping

SAME_NAME = (
    "gradient_accumulation_steps", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "per_device_eval_batch_size", "run_name", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "eval_strategy", "eval_steps", "full_determinism",
    "dataloader_persistent_workers", "ddp_find_unused_parameters", "seed", "data_seed", "save_total_limit",
)  # fmt: skip
"""Keys of `training` that transformers calls the same."""

_OTHER_NAME = {
    "training.output_dir": ("output_dir",),
    "training.optimizer": ("optim",),
    "training.warmup_steps": ("warmup_steps", "warmup_ratio"),
    "training.max_grad_norm": ("max_grad_norm",),
    "training.mixed_precision_dtype": ("bf16", "fp16"),
    "model.torch_dtype_str": ("bf16_full_eval", "fp16_full_eval"),
    "training.enable_gradient_checkpointing": ("gradient_checkpointing", "activation_checkpointing"),
    "training.gradient_checkpointing_kwargs": ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    "training.empty_device_cache_steps": ("torch_empty_cache_steps",),
    "training.compile": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "training.save_steps or training.save_epoch": ("save_strategy", "save_steps"),
    "training.logging_steps and its neighbours": ("logging_strategy", "logging_steps", "logging_first_step"),
    "training.enable_tensorboard, enable_wandb or enable_mlflow": ("report_to",),
    "training.dep_log_level": ("log_level",),
    "training.resume_from_checkpoint": ("resume_from_checkpoint",),
    "training.dataloader_num_workers": ("dataloader_num_workers",),
    "training.dataloader_prefetch_factor": ("dataloader_prefetch_factor",),
    "training.dataloader_main_process_only": ("accelerator_config",),
    "training.nccl_default_timeout_minutes": ("ddp_timeout",),
    "model.enable_liger_kernel": ("use_liger_kernel", "liger_kernel_config"),
    "model.model_kwargs": ("model_init_kwargs",),
    "model.trust_remote_code": ("trust_remote_code",),
    "model.chat_template": ("chat_template_path",),
    "model.model_max_length": ("max_length", "max_seq_length", "truncation_mode"),
    "model.tokenizer_pad_token": ("pad_token",),
    "model.tokenizer_kwargs": ("eos_token",),
    "data.train.train_target": ("completion_only_loss", "assistant_only_loss"),
    "data.train.pack": ("packing", "packing_strategy", "padding_free", "eval_packing"),
    "data.train.collator_kwargs": ("pad_to_multiple_of",),
    "data.train.datasets": ("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "shuffle_dataset"),
    "fsdp": ("fsdp", "fsdp_config"),
    "deepspeed": ("deepspeed",),
}
"""Our key -> the arguments for which it is to be set instead."""

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

DECIDED: Mapping[str, str] = {
    **{name: f"set training.{name}" for name in SAME_NAME},
    **{name: f"set {key}" for key, names in _OTHER_NAME.items() for name in names},
    **{name: reason for reason, names in _REASONS.items() for name in names},
}
"""Argument -> what to do instead, or why it cannot be given."""
