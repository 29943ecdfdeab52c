# SPDX-License-Identifier: Apache-2.0
"""The parts of a plan that say what a run takes: memory and disk space. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

_MEMORY_MARGIN = 0.05
"""Share of the memory that is reserved for the system."""


@dataclass(frozen=True)
class SavedSize:
    """The size of what is saved of a model: all weights or an adapter."""

    num_bytes: int
    """Bytes of the weights in a checkpoint."""
    trained_bytes: int
    """Bytes of the trained weights among them, for which the optimizer has a state."""
    base_bytes: int = 0
    """Bytes of the base weights that are saved with an adapter at the end of the run."""
    number_bytes: int = 4
    """Bytes of a single trained number."""


@dataclass(frozen=True)
class DiskPlan:
    """Bytes that the run will write."""

    checkpoint_bytes: int | None
    """Bytes of a checkpoint, None if the size of the model is not known yet."""
    num_checkpoints: int
    """Checkpoints that exist at the same time, at most."""
    final_bytes: int | None
    """Bytes of the model at the end of the run."""
    free_bytes: int
    temporary_bytes: int = 0
    """Bytes of a file with the whole weights of a divided model, which exists while they are saved."""

    @property
    def total_bytes(self) -> int | None:
        """Returns the bytes of all files that exist together, None if the size of the model is not known yet."""
        if self.checkpoint_bytes is None or self.final_bytes is None:
            return None
        return self.checkpoint_bytes * self.num_checkpoints + self.final_bytes + self.temporary_bytes

    @property
    def is_short(self) -> bool:
        """Returns True if the run writes more than there is free space."""
        return self.total_bytes is not None and self.total_bytes > self.free_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of the training process at its peak, by purpose."""

    process: int
    """Python, torch and the rows, before there is a model; on a GPU, its context."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the layers keep of the largest micro-batch for the backward pass."""
    loss: int
    """Logits and the gradients of the head."""
    available: int
    is_tight: bool
    """Freed memory is reused without fragmentation, see `host.has_tight_heap`."""
    is_bound: bool
    """An upper bound: the rows are not read yet, and each counts as long as it may be."""
    gathered: int = 0
    """Weights and gradients that are whole for a while, of a model that is divided over ranks, and what is being sent.
    """
    on_host: int = 0
    """Bytes in the memory of the host, which are not part of the total: what is offloaded from a GPU."""
    uncounted: str = ""
    """What is not counted, and why, where the total is a lower bound; empty if everything is counted."""

    @property
    def total(self) -> int:
        """Returns the sum of all bytes on the device."""
        kept = self.weights + self.gradients + self.optimizer + self.gathered
        return self.process + kept + self.activations + self.loss

    @property
    def is_short(self) -> bool:
        """Returns True if the run needs more than is available, less the share of the system."""
        return self.total > self.available * (1 - _MEMORY_MARGIN)
