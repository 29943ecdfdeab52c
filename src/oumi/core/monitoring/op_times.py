# SPDX-License-Identifier: Apache-2.0
"""Measures parts of a step on the device: each kind of kernel, and the update."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "linear", "attention", "conv", "_grouped_mm", "_attn")
"""Parts of the names of kernels that are matrix products, including attention."""


class OpTimes(TorchDispatchMode):
    """Context manager that sums the seconds of all operations; on a GPU it synchronizes after each one."""

    def __init__(self) -> None:
        super().__init__()
        self.products_s = 0.0
        """Seconds of matrix products."""
        self.others_s = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Before and after, since a GPU runs asynchronously: earlier operations would count for this one.
        _wait()
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        _wait()
        seconds = time.perf_counter() - started
        # By the name of the schema, such as `aten::addmm`, which is the same for all overloads.
        if any(part in func._schema.name for part in _PRODUCTS):
            self.products_s += seconds
        else:
            self.others_s += seconds
        return result


class UpdateTime:
    """Measures the seconds from the gradients to the end of the update.

    On a GPU it never synchronizes. Instead it returns the time of the previous step, whose update is complete by then.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._previous: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self.begin()

    def begin(self) -> None:
        """Marks the point at which the gradients are complete."""
        self._began, self._mark = time.perf_counter(), _mark(self._device)

    def end(self) -> float:
        """Returns the seconds of the update; call it after the update was launched."""
        mark = _mark(self._device)
        if self._mark is None or mark is None:  # on a CPU, the update is complete when it returns
            return time.perf_counter() - self._began
        previous, self._previous = self._previous, (self._mark, mark)
        # elapsed_time is in milliseconds, and raises for an event that is not complete.
        return previous[0].elapsed_time(previous[1]) / 1e3 if previous and previous[1].query() else 0.0


def _mark(device: str) -> torch.cuda.Event | None:
    """Returns an event after the work queued on the GPU, None for other devices."""
    if device != "cuda":
        return None
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
