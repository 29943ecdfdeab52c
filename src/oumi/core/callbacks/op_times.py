# SPDX-License-Identifier: Apache-2.0
"""How long each kind of kernel takes in one step, by watching every operation of it."""

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
        taken = time.perf_counter() - started
        if any(part in func._schema.name for part in _PRODUCTS):
            self.products_s += taken
        else:
            self.others_s += taken
        return result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
