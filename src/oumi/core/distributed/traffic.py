# SPDX-License-Identifier: Apache-2.0
"""The collective operations of a pass over a divided model, so that a rank whose pass fails does not leave the others.

A rank that runs out of memory within a pass knows it alone; the others wait in the next operation. So it takes part in
those that are left of the pass, with numbers that nobody uses, and then all ranks agree to compute the step anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

# Since torch 2.13 under the second name.
_all_gather: Callable[..., Any] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)
_reduce_scatter: Callable[..., Any] = getattr(distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor)


@dataclass(frozen=True)
class _Operation:
    function: Callable[..., Any]
    num_inputs: int
    num_outputs: int
    dtype: torch.dtype
    device: torch.device
    group: Any
    copies: Any
    """Ranks that have the same slices of other copies of the model, over which a sum goes on; None without any."""

    def repeat(self) -> None:
        """Takes part in the operation with zeros."""
        inputs = torch.zeros(self.num_inputs, dtype=self.dtype, device=self.device)
        outputs = torch.empty(self.num_outputs, dtype=self.dtype, device=self.device)
        self.function(outputs, inputs, group=self.group)
        if self.copies is not None:
            distributed.all_reduce(outputs, group=self.copies)


class Traffic:
    """The operations of the passes of a step; all passes of one kind have the same."""

    def __init__(self) -> None:
        self._pass: list[_Operation] | None = None
        """The operations of the current pass so far, None outside of a step."""
        self._complete: dict[str, list[_Operation]] = {}
        """Those of a complete pass, by kind."""
        self._kind = ""
        self._num_left = 0

    def begin(self, num_passes: int, kind: str = "") -> None:
        """Marks the begin of a step of so many passes of a kind."""
        self._pass, self._num_left, self._kind = None, num_passes, kind

    def begin_pass(self) -> None:
        """Marks the begin of a pass, and so the end of the one before."""
        self._end_pass()
        self._pass = []
        self._num_left -= 1

    def end(self) -> None:
        """Marks the end of the last pass."""
        self._end_pass()
        self._pass = None

    def complete(self) -> None:
        """Takes part in the rest of a pass that failed on this rank, and in the passes of the step after it."""
        num_done = len(self._pass or ())
        self._pass = None
        complete = self._complete.get(self._kind, [])
        for operation in [*complete[num_done:], *(complete * self._num_left)]:
            operation.repeat()

    def record(self, operation: _Operation) -> None:
        """Counts an operation of the current pass."""
        if self._pass is not None:
            self._pass.append(operation)

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._complete[self._kind] = self._pass

    def attach(self, module: Any, copies: Any) -> None:
        """Records the operations of an FSDP module.

        Args:
            module: A module after `fully_shard`.
            copies: Process group of the ranks with the same slices of other copies of the model, None without any.
        """
        module.set_custom_all_gather(_Recorder(_all_gather, self.record, None))
        module.set_custom_reduce_scatter(_Recorder(_reduce_scatter, self.record, copies))


class _Recorder:
    """A collective operation in the form that FSDP takes, which is recorded when it begins."""

    def __init__(self, function: Callable[..., Any], record: Callable[[_Operation], None], copies: Any) -> None:
        self._function = function
        self._record = record
        self._copies = copies

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Returns memory for a result."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False, **sum_: Any
    ) -> Any:
        sizes = input_tensor.numel(), output_tensor.numel()
        self._record(_Operation(self._function, *sizes, input_tensor.dtype, input_tensor.device, group, self._copies))
        return self._function(output_tensor, input_tensor, group=group, async_op=async_op, **sum_)
