# SPDX-License-Identifier: Apache-2.0
"""Runs the tasks of EleutherAI's lm-eval on a model; the package is an extra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from oumi.core.errors import ConfigError, OumiError
from oumi.core.results.chat_model import base_of_adapter, check_model_dir
from oumi.core.system.filesystem import expanded
from oumi.core.system.host import describe_host


def run_tasks(model: str, tasks: Sequence[str], limit: int | None, num_fewshot: int | None) -> dict[str, Any]:
    """Returns the results of tasks: metrics by `task/metric`, and the whole result of lm-eval.

    Args:
        model: Directory of a model or an adapter.
        tasks: Names of tasks.
        limit: Rows of each task, None for all.
        num_fewshot: Examples before each question, None for the default of each task.

    Raises:
        ConfigError: lm-eval is not installed, or has no such task.
    """
    try:
        lm_eval = import_module("lm_eval")
        managers = import_module("lm_eval.tasks")
    except ImportError as error:
        raise ConfigError("--tasks: package lm-eval is not installed: pip install 'oumi[eval]'") from error
    folder = expanded(model)
    check_model_dir(folder)
    manager = managers.TaskManager()
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise ConfigError(f"--tasks: lm-eval has no task {', '.join(unknown)}; `lm-eval ls tasks` lists all")
    host = describe_host()
    dtype = "float32" if host.device == "cpu" and not host.has_bf16 else "auto"
    arguments = {"pretrained": str(folder), "dtype": dtype}
    if (folder / "adapter_config.json").is_file():
        arguments = {"pretrained": str(base_of_adapter(folder)), "peft": str(folder), "dtype": dtype}
        if any(folder.glob("tokenizer*")):
            arguments["tokenizer"] = str(folder)
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=list(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        device="cpu" if host.device == "cpu" else None,
        task_manager=manager,
    )
    metrics = {
        f"{task}/{name.removesuffix(',none')}": value
        for task, values in results["results"].items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not metrics:
        raise OumiError(f"lm-eval reports no metric for {', '.join(tasks)}")
    return {"model": str(Path(model)), "metrics": metrics, "lm_eval": json.loads(json.dumps(results, default=str))}
