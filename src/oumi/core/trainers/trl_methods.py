# SPDX-License-Identifier: Apache-2.0
"""The table of TRL and transformers trainers, and the arguments that a plan becomes. Imports neither library.

A new method is a row of METHODS; a test compares the table with the installed versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from oumi.core.plan.choices import RENAMED_OPTIMIZERS
from oumi.core.plan.parts import Plan
from oumi.core.plan.preference_kwargs import former_arguments
from oumi.core.plan.trainer_kwargs import SAME_NAME
from oumi.core.system.host import num_cpus


@dataclass(frozen=True)
class Method:
    """A trainer of another library."""

    trainer: str
    """Path of the trainer class, as `module:name`."""
    config: str
    """Path of the class of its arguments."""
    extra: Mapping[str, Any]
    """Arguments that make the trainer use our rows unchanged."""
    form: str = "labels"
    """Form of its inputs: `labels`, or another one that `trl_pairs.py` describes."""
    has_reference: bool = False
    """Takes a copy of the model as it was, as `ref_model`."""


METHODS = {
    "HF": Method("transformers:Trainer", "transformers:TrainingArguments", {}),
    "TRL_SFT": Method(
        "trl:SFTTrainer",
        "trl:SFTConfig",
        # Our rows are already tokenized and truncated, and have labels.
        {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "packing": False},
    ),
    "TRL_DPO": Method("trl:DPOTrainer", "trl:DPOConfig", {"max_length": None}, "pair", has_reference=True),
    "TRL_KTO": Method("trl:KTOTrainer", "trl:KTOConfig", {"max_length": None}, "judged", has_reference=True),
    "TRL_ORPO": Method("trl.experimental.orpo:ORPOTrainer", "trl.experimental.orpo:ORPOConfig", {}, "sides"),
    "TRL_CPO": Method("trl.experimental.cpo:CPOTrainer", "trl.experimental.cpo:CPOConfig", {}, "sides"),
}

NEWER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Arguments by their old names, and the names in later versions of transformers."""


def arguments(plan: Plan) -> dict[str, Any]:
    """Returns the arguments of the config class of the plan's trainer."""
    training = plan.config.training
    num_workers = training.dataloader_num_workers
    if num_workers == "auto":  # a quarter of the CPUs, but 1 or 2
        num_workers = max(1, min(2, num_cpus() // 4))
    save_strategy = "steps" if plan.checkpoints.every_steps else "epoch" if plan.checkpoints.every_epoch else "no"
    values = {name: getattr(training, name) for name in SAME_NAME}
    values |= {
        "output_dir": str(plan.output_dir),
        # `Bridge` deletes checkpoints: transformers does so before the new one is complete, and at the end all but one.
        "save_total_limit": None,
        "optim": RENAMED_OPTIMIZERS.get(training.optimizer, training.optimizer),
        "log_level": training.dep_log_level,
        # FSDP recomputes whole blocks by itself, which saves gathering their weights twice.
        "gradient_checkpointing": plan.gradient_checkpointing is not None and plan.accelerate.fsdp is None,
        "gradient_checkpointing_kwargs": plan.gradient_checkpointing,
        "warmup_steps": plan.schedule.num_warmup_steps(plan.steps.total or 0),
        "fp16": plan.precision.autocast == "float16",
        # Not left out, since TRL would set it to True.
        "bf16": plan.precision.autocast == "bfloat16" or plan.accelerate.computes_in_bf16,
        "use_cpu": plan.device == "cpu",
        "torch_compile": plan.speed.compile,
        "use_liger_kernel": plan.speed.liger,
        # Copies, since transformers fills in values.
        "fsdp": plan.accelerate.fsdp is not None,
        "fsdp_config": deepcopy(plan.accelerate.fsdp),
        "deepspeed": deepcopy(plan.accelerate.deepspeed),
        "max_grad_norm": plan.optimizer.max_grad_norm or 0.0,
        "torch_empty_cache_steps": plan.empty_cache_every,
        "save_strategy": save_strategy,
        "save_steps": plan.checkpoints.every_steps or 500,  # 500 is the default, without effect
        "dataloader_num_workers": num_workers,
        "dataloader_prefetch_factor": training.dataloader_prefetch_factor if num_workers else None,
        "dataloader_pin_memory": plan.device != "cpu",
        # Our callbacks report every step, so the other trainer logs each one unfiltered, and reports nothing itself.
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "remove_unused_columns": False,
        # A stream goes on from its own position.
        "ignore_data_skip": plan.data.train.stream,
    }
    # Image encoders have weights that no loss depends on. Reentrant recomputation does not support the search for them.
    is_reentrant = (plan.gradient_checkpointing or {}).get("use_reentrant")
    if plan.model.sees_images and values["ddp_find_unused_parameters"] is None and not is_reentrant:
        values["ddp_find_unused_parameters"] = True
    # Last, so that the user's own arguments take precedence.
    return {**values, **METHODS[plan.trainer].extra, **former_arguments(training)}
