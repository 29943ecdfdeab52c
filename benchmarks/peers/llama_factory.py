# SPDX-License-Identifier: Apache-2.0
"""LLaMA-Factory's supervised fine-tuning; the job's options are further arguments of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clock import Clock, load_job
from llamafactory.train.tuner import run_exp
from transformers import Trainer


def main() -> None:
    """Trains the job's steps."""
    job = load_job()
    clock = Clock(job)
    write_table(job)
    clock.watch_optimizers()
    clock.watch_losses(Trainer)
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "model_name_or_path": job["model"],
            "dataset": "rows",
            "dataset_dir": job["out"],
            "output_dir": job["out"],
            "template": "chatml",
            "train_on_prompt": True,
            "cutoff_len": job["max_length"],
            "disable_shuffling": True,
            "use_cpu": True,
            "per_device_train_batch_size": job["batch"],
            "max_steps": job["steps"],
            "learning_rate": job["learning_rate"],
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            **job["options"],
        }
    )
    clock.write_result()


def write_table(job: dict[str, Any]) -> None:
    """Writes the table of data sets, with the rows as its only one."""
    columns = {"messages": "messages"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    rows = {"file_name": job["rows"], "formatting": "sharegpt", "columns": columns, "tags": tags}
    (Path(job["out"]) / "dataset_info.json").write_text(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
