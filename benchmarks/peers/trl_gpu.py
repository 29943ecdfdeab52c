# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer on a GPU, with Liger's kernels and flash attention as its documentation advises for speed."""

from __future__ import annotations

import json
import time
from importlib.metadata import version

import torch
from clock import load_job, result_path
from datasets import load_dataset
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import Trainer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Trains the job's steps; a step ends when the GPU has finished it."""
    job = load_job()
    marks: list[float] = []
    losses: list[float] = []
    log = Trainer.log

    def step_ended(*_: object) -> None:
        torch.cuda.synchronize()
        marks.append(time.perf_counter())

    def logged(trainer: Trainer, logs: dict[str, float], *arguments: object, **named: object) -> None:
        losses.extend([float(logs["loss"])] if "loss" in logs else [])
        log(trainer, logs, *arguments, **named)

    Trainer.log = logged
    register_optimizer_step_post_hook(step_ended)
    rows = load_dataset("json", data_files=job["rows"], split="train")
    trainer = SFTTrainer(model=job["model"], args=settings(job), train_dataset=rows, peft_config=adapter(job))
    trainer.train()
    result = {"marks": marks, "losses": losses, "peak_bytes": torch.cuda.max_memory_allocated()}
    result_path(job).write_text(json.dumps({**result, "versions": {name: version(name) for name in job["packages"]}}))


def settings(job: dict) -> SFTConfig:
    """Returns the job as arguments of TRL."""
    options, recomputes = dict(job["options"]), job["cell"]["recomputes"]
    attention = options.pop("attention")
    if "fsdp_config" in options:  # FSDP recomputes by itself
        options["fsdp_config"] = {**options["fsdp_config"], "activation_checkpointing": recomputes}
        recomputes = False
    values = {
        "output_dir": job["out"],
        "per_device_train_batch_size": job["cell"]["rows"],
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_length": job["length"],
        "train_sampling_strategy": "sequential",
        "packing": attention != "sdpa",  # whose flash kernel takes full rows as they are, but no packed ones
        "bf16": True,
        "gradient_checkpointing": recomputes,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": attention},
    }
    return SFTConfig(**{**values, **options})


def adapter(job: dict) -> object:
    """Returns the adapter of the job, None where all weights are trained."""
    if job["lora"] is None:
        return None
    from peft import LoraConfig

    lora = job["lora"]
    return LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules=lora["targets"], task_type="CAUSAL_LM")


if __name__ == "__main__":
    main()
