# SPDX-License-Identifier: Apache-2.0
"""Counts what torch's collectives are called with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_KINDS = {"_allgather_base_": "gather", "_reduce_scatter_base_": "scatter", "allreduce_": "sum"}


class Collectives(TorchDispatchMode):
    """Records, within its context, each collective operation as (kind, bytes of the largest of its tensors)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = func.__name__.partition(".")[0]
            self.calls.append((_KINDS.get(kind, kind), max(tensor.nbytes for tensor in _tensors(args))))
        return func(*args, **(kwargs or {}))

    def total(self, kind: str) -> int:
        """Returns the bytes of all operations of a kind."""
        return sum(size for name, size in self.calls if name == kind)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
