# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer in fp32 on a CPU; the job's options are further arguments of its SFTConfig."""

from __future__ import annotations

import trl.trainer.sft_trainer
from adapters import adapter_arguments, keep_wide
from clock import Clock, load_job
from datasets import load_dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Trains the job's steps."""
    job = load_job()
    clock = Clock(job)
    clock.watch_optimizers()
    clock.watch_losses(Trainer)
    settings = {
        "output_dir": job["out"],
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_length": job["max_length"],
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    adapter = adapter_arguments(job, trl.trainer.sft_trainer)
    settings |= job["options"]
    rows = load_dataset("json", data_files=job["rows"], split="train")
    trainer = SFTTrainer(model=job["model"], args=SFTConfig(**settings), train_dataset=rows, **adapter)
    keep_wide(trainer.model)
    trainer.train()
    clock.write_result()


if __name__ == "__main__":
    main()
