# SPDX-License-Identifier: Apache-2.0
"""Builds the callbacks that measure and report a run, the same for every trainer."""

from __future__ import annotations

from typing import Any

import torch

from oumi.core.log import logger
from oumi.core.models.attention.flex import may_take_flex
from oumi.core.models.flops import model_flops
from oumi.core.monitoring.console import Console
from oumi.core.monitoring.efficiency import ComputeMode, Device, Efficiency
from oumi.core.monitoring.metrics_file import MetricsFile, SamplesFile
from oumi.core.monitoring.reporting import Reporting, Sink
from oumi.core.monitoring.telemetry import Telemetry
from oumi.core.monitoring.trackers import build_trackers
from oumi.core.plan.parts import Plan
from oumi.core.plan.step_sizes import num_recomputed


def build_reporting(plan: Plan, efficiency: Efficiency) -> Reporting:
    """Returns the callback that passes the measurements of a run to the console, to files and to trackers."""
    # The console comes first, so that a step is shown even while a tracker waits for its server.
    samples = [SamplesFile()] if plan.evaluation.num_samples else []
    sinks: list[Sink] = [Console(plan.logs), MetricsFile(), *samples, *build_trackers(plan)]
    if plan.logs.step_times and plan.logs.telemetry_dir is not None:
        sinks.append(Telemetry(plan.logs.telemetry_dir))
    return Reporting(sinks, efficiency)


def build_efficiency(plan: Plan, model: Any, has_full_head: bool) -> Efficiency:
    """Returns the meter of a model's steps; measures the machine's peaks unless they are cached."""
    dtype = plan.precision.autocast or str(model.dtype).removeprefix("torch.")
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 1
    # Compiled code and Triton kernels bypass torch's dispatcher, so their operations cannot be timed one by one.
    is_opaque = plan.speed.compile or plan.speed.liger or plan.model.attention == "flex_attention"
    mode = ComputeMode(
        has_full_head,
        recomputed=num_recomputed(plan.gradient_checkpointing, num_layers) / num_layers,
        is_opaque=is_opaque or may_take_flex(model),
    )
    return Efficiency(model_flops(model), Device(plan.device, plan.device_name, dtype), mode)


def write_model_summary(plan: Plan, model: torch.nn.Module) -> None:
    """Logs the module tree if the plan asks for it, and writes it to `model_summary.txt` in the telemetry folder."""
    if not plan.logs.model_summary:
        return
    logger.info("%s", model)
    if plan.logs.telemetry_dir is not None:
        plan.logs.telemetry_dir.mkdir(parents=True, exist_ok=True)
        (plan.logs.telemetry_dir / "model_summary.txt").write_text(f"{model}\n", encoding="utf-8")
