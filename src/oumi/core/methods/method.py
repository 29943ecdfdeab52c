# SPDX-License-Identifier: Apache-2.0
"""What a method is: the loss that our own trainer minimizes, whatever its rows are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from oumi.core.batch import Batch
from oumi.core.distributed.world import World
from oumi.core.methods.log_probs import LogProbs
from oumi.core.plan.methods import METHODS as SPECS
from oumi.core.plan.parts import Plan
from oumi.core.registry import Registry

Reference = Callable[[Batch], LogProbs]
"""What the model as it was before the training says of a batch; takes no gradients."""
StepSums = Mapping[str, torch.Tensor]
"""Scalars by name, summed over all batches of a step and all ranks."""


def terms(values: torch.Tensor) -> torch.Tensor:
    """Returns what a metric adds up: the sum of its values, and how many they are [2], without gradients."""
    total = values.detach().sum()
    return torch.stack([total, torch.full_like(total, values.numel())])


@dataclass(frozen=True)
class Loss:
    """The loss of a batch: sums over its terms, which the step divides by the terms of all its batches."""

    total: torch.Tensor
    """Sum of the loss, a scalar through which gradients flow."""
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the method measures beside, by name: a sum and the number of its terms [2], without gradients."""

    def flat(self) -> torch.Tensor:
        """Returns the loss and the metrics as one vector, for one collective operation."""
        return torch.cat([self.total[None], *(value.to(self.total.dtype) for value in self.metrics.values())])

    def means(self, values: Sequence[float]) -> dict[str, float]:
        """Returns the metrics as means, from the sums of `flat` over all ranks; those without any term are left out."""
        pairs = zip(values[1::2], values[2::2], strict=True)
        return {name: total / count for name, (total, count) in zip(self.metrics, pairs, strict=True) if count}


class Method(Protocol):
    """What is learned from rows. A loss is a sum over terms, so that it does not depend on how a step is cut."""

    reads_step_sums: bool = False
    """Its loss depends on sums over the whole step, which `step_sums` computes before any gradient."""

    def num_terms(self, batch: Batch) -> int:
        """Returns how many terms the loss of a batch sums: trained tokens, or pairs, or completions."""
        ...

    def step_sums(self, model: torch.nn.Module, batch: Batch) -> StepSums:
        """Returns what a batch adds to the sums of its step, under the same names for every batch."""
        return {}

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        """Returns the loss of a batch. In evaluation mode it is without what training alone adds to it.

        Args:
            model: The model in training.
            batch: Rows of the step.
            step: The sums of the whole step; empty unless `reads_step_sums`.
        """
        ...


BuildMethod = Callable[[Plan, Callable[[], Reference]], Method]

METHODS: Registry[BuildMethod] = Registry("method", {name: spec.loss for name, spec in SPECS.items() if spec.loss})
"""Methods of our own trainer by name; the table with their rows and settings is `core/plan/methods.py`."""


def build_method(plan: Plan, load_reference: Callable[[], Reference]) -> Method:
    """Returns the method of a plan; `load_reference` is called by those that compare with the model as it was."""
    return METHODS.get(plan.method.name)(plan, load_reference)


def add_step_sums(sums: dict[str, torch.Tensor], more: StepSums) -> None:
    """Adds the sums of another batch to those of a step so far."""
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def over_ranks(sums: Mapping[str, torch.Tensor], world: World) -> StepSums:
    """Returns the step sums of all ranks, in one collective operation."""
    return dict(zip(sums, world.sum(torch.stack(list(sums.values()))), strict=True)) if sums else {}
