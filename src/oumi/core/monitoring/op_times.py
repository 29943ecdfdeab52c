# SPDX-License-Identifier: Apache-2.0
"""The time of the parts of a step on the device: each kind of kernel, and the update."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "linear", "attention", "conv", "_grouped_mm", "_attn")
"""Parts of the names of kernels that are matrix products, including attention."""


class OpTimes(TorchDispatchMode):
    """Context manager that adds up the seconds of every operation; on a GPU it waits for each."""

    def __init__(self) -> None:
        super().__init__()
        self.products_s = 0.0
        """Of matrix products."""
        self.others_s = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Before and after: a GPU runs behind Python, and the work of others would count for this operation.
        _wait()
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        _wait()
        seconds = time.perf_counter() - started
        if any(part in func._schema.name for part in _PRODUCTS):
            self.products_s += seconds
        else:
            self.others_s += seconds
        return result


class UpdateTime:
    """Measures the seconds from the gradients to the end of the update.

    On a GPU it never waits: there the result is that of the previous step, whose update is complete by then.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._previous: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self.begin()

    def begin(self) -> None:
        """When the gradients are complete."""
        self._began, self._mark = time.perf_counter(), _mark(self._device)

    def end(self) -> float:
        """Returns the seconds; call it after the update was started."""
        mark = _mark(self._device)
        if self._mark is None or mark is None:
            return time.perf_counter() - self._began
        previous, self._previous = self._previous, (self._mark, mark)
        # elapsed_time raises for an event that is not complete, and is in milliseconds.
        return previous[0].elapsed_time(previous[1]) / 1e3 if previous and previous[1].query() else 0.0


def _mark(device: str) -> torch.cuda.Event | None:
    """Returns an event behind the work queued on the GPU, None for other devices."""
    if device != "cuda":
        return None
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
