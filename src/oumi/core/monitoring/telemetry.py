# SPDX-License-Identifier: Apache-2.0
"""Named timers of a run, and the files in which Oumi's tools read them."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from oumi.core.log import current_rank, logger
from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.run import Progress

_NUM_SKIPPED_STEPS = 2
"""The first steps warm up allocators and kernels, so their times are not representative."""


class TelemetryTracker:
    """Collects the times of named parts of a program."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._timers: dict[str, list[float]] = defaultdict(list)
        self._cuda_timers: dict[str, list[float]] = defaultdict(list)
        self._memory: list[dict[str, float]] = []

    @contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Measures the seconds of a block under `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Adds seconds that were measured elsewhere."""
        self._timers[name].append(seconds)

    @contextmanager
    def cuda_timer(self, name: str) -> Iterator[None]:
        """Measures the seconds of GPU work in a block, and synchronizes after it; does nothing without a GPU."""
        if not torch.cuda.is_available():
            yield
            return
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        try:
            yield
        finally:
            end.record()
            # elapsed_time requires that the GPU has completed both events.
            torch.cuda.synchronize()
            self._cuda_timers[name].append(start.elapsed_time(end) / 1000.0)

    def log_gpu_memory(self, custom_logger: Any = None) -> None:
        """Records and logs the GPU memory in use, in GiB; does nothing without a GPU."""
        if not torch.cuda.is_available():
            return
        used = {
            "allocated": torch.cuda.memory_allocated() / 2**30,
            "max_allocated": torch.cuda.max_memory_allocated() / 2**30,
            "reserved": torch.cuda.memory_reserved() / 2**30,
        }
        self._memory.append(used)
        (custom_logger or logger.info)(f"GPU memory in GiB: {used}")

    def get_summary(self) -> dict[str, Any]:
        """Returns host, total seconds, and statistics of each timer."""
        # Percentages refer to the time since the tracker was created, so nested timers add up to more than 100.
        total = time.perf_counter() - self._started
        return {
            "hostname": socket.gethostname(),
            "total_time": total,
            "timers": {
                name: {**_statistics(times), "percentage": 100 * sum(times) / total}
                for name, times in self._timers.items()
            },
            "cuda_timers": {name: _statistics(times) for name, times in self._cuda_timers.items()},
            "gpu_memory": self._memory,
        }

    def print_summary(self) -> None:
        """Logs the summary, one timer per line."""
        summary = self.get_summary()
        logger.info("total %.2f s", summary["total_time"])
        for name, values in summary["timers"].items():
            logger.info("  %s: %.2f s in %d calls", name, values["total"], values["count"])

    def state_dict(self) -> dict[str, Any]:
        """Returns the timers as JSON values, for `load_state_dict`."""
        return {
            "timers": dict(self._timers),
            "cuda_timers": dict(self._cuda_timers),
            "gpu_memory": self._memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the timers by those that `state_dict` returned."""
        self._timers = defaultdict(list, state["timers"])
        self._cuda_timers = defaultdict(list, state["cuda_timers"])
        self._memory = list(state["gpu_memory"])


class Telemetry(Sink):
    """Writes the timers and the last record of a run below `telemetry/`, also when training fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tracker = TelemetryTracker()
        self._last: Record = {}
        self._num_steps = 0

    def step(self, run: Progress, record: Record, extra: Sequence[str]) -> None:
        self._last = record
        self._num_steps += 1
        if self._num_steps > _NUM_SKIPPED_STEPS:
            self._tracker.add("steps", record["step_time_s"])

    def close(self) -> None:
        # Written once at the end, also of a run that fails. Until then nothing reads them.
        self._directory.mkdir(parents=True, exist_ok=True)
        rank = f"rank{current_rank():04d}"
        for name, content in (
            (f"telemetry_callback_metrics_{rank}.json", self._last),
            (f"telemetry_callback_{rank}.json", self._tracker.get_summary()),
        ):
            (self._directory / name).write_text(json.dumps(content, indent=1) + "\n")


def _statistics(times: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(times),
        "mean": statistics.fmean(times),
        "median": statistics.median(times),
        "std_dev": statistics.pstdev(times),
        "min": min(times),
        "max": max(times),
        "total": sum(times),
    }
