# SPDX-License-Identifier: Apache-2.0
"""Telemetry and the profiler."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from oumi.core.configs.base import Params
from oumi.core.configs.paths import PathText


class TelemetryParams(Params):
    """Files with timings of a run."""

    telemetry_dir: PathText | None = "telemetry"
    """Directory below output_dir; null writes none."""
    collect_telemetry_for_all_ranks: bool = False
    """Gather the timings of every process."""
    track_gpu_temperature: bool = False
    """Record GPU temperatures."""


class ProfilerScheduleParams(Params):
    """Which steps are profiled."""

    enable_schedule: bool = False
    """False profiles the whole run."""
    wait: NonNegativeInt = 0
    """Steps to wait in each cycle."""
    warmup: NonNegativeInt = 1
    """Steps to warm up in each cycle."""
    active: PositiveInt = 3
    """Steps to record in each cycle."""
    repeat: NonNegativeInt = 1
    """Cycles."""
    skip_first: NonNegativeInt = 1
    """Steps before the first cycle."""


class ProfilerParams(Params):
    """torch.profiler around training."""

    save_dir: PathText | None = None
    """Null takes `<output_dir>/profiler`."""
    enable_cpu_profiling: bool = False
    """Record what the CPU does."""
    enable_cuda_profiling: bool = False
    """Record what the GPU does."""
    record_shapes: bool = False
    """Record the shapes of inputs."""
    profile_memory: bool = False
    """Record memory."""
    with_stack: bool = False
    """Record source lines."""
    with_flops: bool = False
    """Estimate operations."""
    with_modules: bool = False
    """Record the module hierarchy."""
    row_limit: Annotated[int, Field(ge=-1)] = 50
    """Rows of a table; -1 for all."""
    schedule: ProfilerScheduleParams = ProfilerScheduleParams()
    """Which steps."""
