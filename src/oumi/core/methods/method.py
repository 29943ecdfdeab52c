# SPDX-License-Identifier: Apache-2.0
"""What a method is: the loss that our own trainer minimizes, whatever its rows are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from oumi.core.batch import Batch, Prediction
from oumi.core.plan.methods import METHODS as SPECS
from oumi.core.plan.parts import Plan
from oumi.core.registry import Registry

Reference = Callable[[Batch], Prediction]
"""The model as it was before the training; takes no gradients."""


@dataclass(frozen=True)
class Loss:
    """The loss of a batch: sums over its terms, which the step divides by the terms of all its batches."""

    total: torch.Tensor
    """Sum of the loss, a scalar through which gradients flow."""
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Sums of what the method measures beside, scalars by name, without gradients."""


class Method(Protocol):
    """What is learned from rows. A loss is a sum over terms, so that it does not depend on how a step is cut."""

    def num_terms(self, batch: Batch) -> int:
        """Returns how many terms the loss of a batch sums: trained tokens, or pairs, or completions."""
        ...

    def loss(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """Returns the loss of a batch. In evaluation mode it is without what training alone adds to it."""
        ...


BuildMethod = Callable[[Plan, Callable[[], Reference]], Method]

METHODS: Registry[BuildMethod] = Registry("method", {name: spec.loss for name, spec in SPECS.items() if spec.loss})
"""Methods of our own trainer by name; the table with their rows and settings is `core/plan/methods.py`."""


def build_method(plan: Plan, load_reference: Callable[[], Reference]) -> Method:
    """Returns the method of a plan; `load_reference` is called by those that compare with the model as it was."""
    return METHODS.get(plan.method.name)(plan, load_reference)
