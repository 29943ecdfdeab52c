# SPDX-License-Identifier: Apache-2.0
"""The surface of a config: its defaults, its descriptions, and that no two configs share state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from oumi.core.configs import (
    DatasetParams,
    GkdParams,
    GoldParams,
    GrpoParams,
    JobConfig,
    ProfilerScheduleParams,
    TrainingConfig,
)
from oumi.core.configs.deepspeed import OffloadConfig
from oumi.core.configs.loading import leaves, to_plain
from oumi.core.configs.problems import section_of

DEFAULTS: dict[str, Any] = {
    "data.train.datasets": [],
    "data.train.collator_name": None,
    "data.train.collator_kwargs": {},
    "data.train.train_target": None,
    "data.train.pack": False,
    "data.train.stream": False,
    "data.train.mixture_strategy": "first_exhausted",
    "data.train.seed": None,
    "data.train.use_torchdata": None,
    "data.validation.datasets": [],
    "data.test.datasets": [],
    "model.adapter_model": None,
    "model.tokenizer_name": None,
    "model.tokenizer_pad_token": None,
    "model.tokenizer_kwargs": {},
    "model.processor_kwargs": {},
    "model.model_max_length": None,
    "model.load_pretrained_weights": True,
    "model.trust_remote_code": False,
    "model.torch_dtype_str": "auto",
    "model.compile": False,
    "model.chat_template": None,
    "model.chat_template_kwargs": None,
    "model.attn_implementation": None,
    "model.device_map": "auto",
    "model.model_kwargs": {},
    "model.enable_liger_kernel": False,
    "model.shard_for_eval": False,
    "model.freeze_layers": [],
    "model.model_revision": None,
    "training.trainer_type": "HF",
    "training.use_peft": False,
    "training.output_dir": "output",
    "training.run_name": None,
    "training.per_device_train_batch_size": 8,
    "training.per_device_eval_batch_size": 8,
    "training.gradient_accumulation_steps": 1,
    "training.max_steps": -1,
    "training.num_train_epochs": 3,
    "training.seed": 42,
    "training.data_seed": 42,
    "training.use_deterministic": False,
    "training.full_determinism": False,
    "training.compile": False,
    "training.mixed_precision_dtype": "NONE",
    "training.enable_gradient_checkpointing": False,
    "training.gradient_checkpointing_kwargs": {},
    "training.empty_device_cache_steps": None,
    "training.label_ignore_index": None,
    "training.nccl_default_timeout_minutes": None,
    "training.learning_rate": 5e-05,
    "training.optimizer": "adamw_torch",
    "training.weight_decay": 0.0,
    "training.adam_beta1": 0.9,
    "training.adam_beta2": 0.999,
    "training.adam_epsilon": 1e-08,
    "training.sgd_momentum": 0.0,
    "training.max_grad_norm": 1.0,
    "training.lr_scheduler_type": "linear",
    "training.lr_scheduler_kwargs": {},
    "training.warmup_ratio": None,
    "training.warmup_steps": None,
    "training.save_steps": 500,
    "training.save_epoch": False,
    "training.save_final_model": True,
    "training.resume_from_checkpoint": None,
    "training.try_resume_from_last_checkpoint": False,
    "training.eval_strategy": "no",
    "training.eval_steps": 500,
    "training.metrics_function": None,
    "training.log_level": "info",
    "training.dep_log_level": "warning",
    "training.log_examples": False,
    "training.enable_wandb": False,
    "training.enable_mlflow": False,
    "training.enable_tensorboard": True,
    "training.logging_strategy": "steps",
    "training.logging_dir": None,
    "training.logging_steps": 50,
    "training.logging_first_step": False,
    "training.include_performance_metrics": False,
    "training.include_alternative_mfu_metrics": False,
    "training.log_model_summary": False,
    "training.dataloader_num_workers": 0,
    "training.dataloader_persistent_workers": False,
    "training.dataloader_prefetch_factor": None,
    "training.dataloader_main_process_only": None,
    "training.ddp_find_unused_parameters": None,
    "training.trainer_kwargs": {},
    "training.reward_functions": None,
    "training.reward_function_kwargs": {},
    "training.verl_config_overrides": {},
    "training.telemetry.telemetry_dir": "telemetry",
    "training.telemetry.collect_telemetry_for_all_ranks": False,
    "training.telemetry.track_gpu_temperature": False,
    "training.profiler.save_dir": None,
    "training.profiler.row_limit": 50,
    "training.profiler.enable_cpu_profiling": False,
    "training.profiler.enable_cuda_profiling": False,
    "peft.lora_r": 8,
    "peft.lora_alpha": 8,
    "peft.lora_dropout": 0.0,
    "peft.lora_target_modules": None,
    "peft.lora_exclude_modules": None,
    "peft.lora_target_parameters": None,
    "peft.lora_modules_to_save": None,
    "peft.lora_bias": "none",
    "peft.lora_init_weights": "DEFAULT",
    "peft.q_lora": False,
    "peft.q_lora_bits": 4,
    "peft.bnb_4bit_quant_type": "fp4",
    "peft.llm_int8_skip_modules": None,
    "peft.use_bnb_nested_quant": False,
    "peft.bnb_4bit_quant_storage": "uint8",
    "peft.bnb_4bit_compute_dtype": "float32",
    "peft.peft_save_mode": "ADAPTER_ONLY",
    "fsdp.enable_fsdp": False,
    "fsdp.sharding_strategy": "FULL_SHARD",
    "fsdp.cpu_offload": False,
    "fsdp.mixed_precision": None,
    "fsdp.backward_prefetch": "BACKWARD_PRE",
    "fsdp.forward_prefetch": False,
    "fsdp.use_orig_params": None,
    "fsdp.state_dict_type": "FULL_STATE_DICT",
    "fsdp.auto_wrap_policy": "NO_WRAP",
    "fsdp.min_num_params": 100_000,
    "fsdp.transformer_layer_cls": None,
    "fsdp.sync_module_states": True,
    "deepspeed.enable_deepspeed": False,
    "deepspeed.deepspeed_config_path": None,
    "deepspeed.zero_stage": "ZERO_0",
    "deepspeed.offload_optimizer": None,
    "deepspeed.offload_param": None,
    "deepspeed.precision": None,
    "deepspeed.overlap_comm": False,
    "deepspeed.contiguous_gradients": True,
    "deepspeed.reduce_bucket_size": 5e8,
    "deepspeed.allgather_bucket_size": 5e8,
    "deepspeed.stage3_prefetch_bucket_size": 5e7,
    "deepspeed.stage3_param_persistence_threshold": 1e5,
    "deepspeed.stage3_max_live_parameters": 1e9,
    "deepspeed.train_batch_size": "auto",
    "deepspeed.gradient_clipping": "auto",
    "deepspeed.steps_per_print": 10,
}
OTHER_DEFAULTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (
        DatasetParams,
        {"dataset_path": None, "subset": None, "split": "train", "dataset_kwargs": {}, "sample_count": None,
         "mixture_proportion": None, "shuffle": False, "seed": None, "shuffle_buffer_size": 1000,
         "trust_remote_code": False, "transform_num_workers": None},
    ),
    (
        GrpoParams,
        {"model_init_kwargs": {}, "max_prompt_length": None, "max_completion_length": None, "num_generations": None,
         "temperature": 0.9, "repetition_penalty": 1.0, "use_vllm": False, "vllm_mode": None,
         "vllm_gpu_memory_utilization": 0.9, "epsilon": 0.2, "log_completions": False, "rollout_function": None},
    ),
    (
        GkdParams,
        {"teacher_model_name_or_path": None, "teacher_model_init_kwargs": {"dtype": "auto"}, "temperature": 0.9,
         "lmbda": 0.5, "beta": 0.5, "max_new_tokens": 128, "disable_dropout": True, "seq_kd": False},
    ),
    (
        GoldParams,
        {"teacher_model_init_kwargs": {"torch_dtype": "auto"}, "temperature": 0.9, "top_p": 0.95, "top_k": 0,
         "lmbda": 0.5, "beta": 0.5, "max_completion_length": 128, "use_uld_loss": False, "use_extended_uld": True,
         "uld_crossentropy_weight": 0.0, "uld_distillation_weight": 1.0, "vllm_mode": "server",
         "vllm_server_port": 8001, "vllm_server_timeout": 240.0},
    ),
    (
        ProfilerScheduleParams,
        {"enable_schedule": False, "wait": 0, "warmup": 1, "active": 3, "repeat": 1, "skip_first": 1},
    ),
    (
        OffloadConfig,
        {"pin_memory": True, "buffer_count": 4, "buffer_count_nvme": 2, "block_size": 1048576, "queue_depth": 8,
         "single_submit": False, "overlap_events": True, "thread_count": 1},
    ),
]  # fmt: skip


def test_every_important_default_is_the_agreed_one() -> None:
    values = {key: to_plain(value) for key, value in leaves(TrainingConfig()).items()}
    assert {key: values[key] for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(("section", "expected"), OTHER_DEFAULTS, ids=lambda part: getattr(part, "__name__", ""))
def test_the_defaults_of_a_nested_section_are_the_agreed_ones(
    section: type[BaseModel], expected: dict[str, Any]
) -> None:
    assert {key: section.model_fields[key].default for key in expected} == expected


def test_a_job_runs_on_one_machine_that_is_not_preempted() -> None:
    job = JobConfig.from_str("resources: {cloud: gcp}\nrun: echo\n")
    assert (job.num_nodes, job.resources.use_spot, job.envs, job.setup) == (1, False, {}, None)


@pytest.mark.parametrize("root", [TrainingConfig, JobConfig])
def test_every_field_of_every_section_has_a_description(root: type[BaseModel]) -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in sections_below(root)
        for name, info in section.model_fields.items()
        if not (info.description or "").strip()
    ]
    assert silent == []


@pytest.mark.parametrize("root", [TrainingConfig, JobConfig])
def test_every_description_reaches_the_schema(root: type[BaseModel]) -> None:
    schema = root.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    assert all("description" in info for part in parts for info in part.get("properties", {}).values())


def test_two_configs_share_no_state() -> None:
    untouched = to_plain(TrainingConfig())
    changed, other = TrainingConfig(), TrainingConfig()
    spoil(changed)
    assert to_plain(other) == untouched
    assert to_plain(TrainingConfig()) == untouched
    assert other.keys_set() == set()


def test_two_configs_of_one_text_share_no_state() -> None:
    text = "training:\n  trainer_kwargs: &a {x: 1}\n  lr_scheduler_kwargs: *a\n"
    text += "model: {model_name: m}\ndata: {train: {datasets: [{dataset_name: a}]}}\n"
    first, other = TrainingConfig.from_str(text), TrainingConfig.from_str(text)
    first.training.trainer_kwargs["x"] = 2
    assert first.training.lr_scheduler_kwargs == {"x": 1}
    assert other.training.trainer_kwargs == {"x": 1}


def sections_below(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield root
    for info in root.model_fields.values():
        inner = section_of(info.annotation)
        if inner is not None:
            yield from sections_below(inner)


def spoil(section: Any) -> None:
    """Changes every list, mapping and flag in place, at any depth."""
    for name, value in section:
        if isinstance(value, BaseModel):
            spoil(value)
        elif isinstance(value, list):
            value.append("spoiled")
        elif isinstance(value, dict):
            value["spoiled"] = True
        elif isinstance(value, bool):
            setattr(section, name, not value)
