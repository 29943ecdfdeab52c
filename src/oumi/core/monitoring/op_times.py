# SPDX-License-Identifier: Apache-2.0
"""How long the parts of a step take on the device: each kind of kernel, and the update."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "linear", "attention", "conv", "_grouped_mm", "_attn")
"""Kernels by parts of their names that are matrix products, attention among them."""


class OpTimes(TorchDispatchMode):
    """Counts the seconds of every operation while it is entered; on a GPU each is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.products_s = 0.0
        """Of matrix products."""
        self.others_s = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
    """Seconds from the gradients to the end of the update.

    A GPU is not waited for: known of it is the update of the step before, as it is over by then.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self.begin()

    def begin(self) -> None:
        """When the gradients are there."""
        self._began, self._mark = time.perf_counter(), _mark(self._device)

    def end(self) -> float:
        """Returns the seconds; call it when the update is asked for."""
        mark = _mark(self._device)
        if self._mark is None or mark is None:
            return time.perf_counter() - self._began
        before, self._before = self._before, (self._mark, mark)
        return before[0].elapsed_time(before[1]) / 1e3 if before and before[1].query() else 0.0


def _mark(device: str) -> torch.cuda.Event | None:
    """Returns a mark in the work that a GPU was given, None elsewhere."""
    if device != "cuda":
        return None
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
