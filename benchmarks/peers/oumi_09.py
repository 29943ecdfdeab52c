# SPDX-License-Identifier: Apache-2.0
"""Oumi 0.9's `oumi train` with either of its trainers, told by the option `trainer_type`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from clock import Clock, keep_order, load_job


def main() -> None:
    """Trains the job's steps."""
    job = load_job()
    clock = Clock(job)
    path = Path(job["out"]) / "config.yaml"
    path.write_text(json.dumps(config(job)))
    clock.watch_optimizers()
    if job["options"]["trainer_type"] == "OUMI":
        keep_order()
        watch_native_losses(clock)
    else:
        from transformers import Trainer

        clock.watch_losses(Trainer)
    from oumi.cli.main import run

    sys.argv = ["oumi", "train", "-c", str(path)]
    try:
        run()
    except SystemExit as end:  # how its command line ends, also after success
        if end.code:
            raise
    clock.write_result()


def watch_native_losses(clock: Clock) -> None:
    """Takes the losses from what Oumi's own trainer logs."""
    from oumi.core.trainers.oumi_trainer import Trainer

    log = Trainer.log_metrics

    def logged(trainer: Any, metrics: dict[str, Any], step: int) -> None:
        clock.losses.append(float(metrics["train/loss"]))
        log(trainer, metrics, step)

    Trainer.log_metrics = logged


def config(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of the run."""
    is_native = job["options"]["trainer_type"] == "OUMI"
    collator: dict[str, Any] = {}  # TRL's own, which trains every token
    if is_native:
        marks = {"response_template": "<|im_start|>assistant\n", "end_of_turn_template": "<|im_end|>"}
        collator = {
            "collator_name": "text_completions_only_with_padding",
            "train_target": "ALL_ASSISTANT_TURNS",
            "collator_kwargs": marks,
        }
    training: dict[str, Any] = {
        "trainer_type": job["options"]["trainer_type"],
        "output_dir": job["out"],
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "save_steps": 0,
        "save_final_model": False,
        "enable_wandb": False,
        "enable_tensorboard": False,
    }
    if not is_native:
        training["trainer_kwargs"] = {"train_sampling_strategy": "sequential", "use_cpu": True}
    return {
        "model": {
            "model_name": job["model"],
            "model_max_length": job["max_length"],
            "torch_dtype_str": "float32",
        },
        "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": job["rows"]}], **collator}},
        "training": training,
    }


if __name__ == "__main__":
    main()
