# SPDX-License-Identifier: Apache-2.0
"""Optimizers by their names in the config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from oumi.core.errors import ConfigError
from oumi.core.plan.parts import OptimizerPlan

Groups = list[dict[str, Any]]


def build_optimizer(model: torch.nn.Module, plan: OptimizerPlan) -> torch.optim.Optimizer:
    """Returns the plan's optimizer over the weights that move.

    Vectors (biases, the scales of norms) get no weight decay: decay is for matrices.

    Raises:
        ConfigError: The package for it is missing, or there is nothing to train.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("no weight is trained: everything is frozen")
    # Decay pulls towards zero, which is no natural place for a scale or a shift.
    groups: Groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Some optimizers refuse an empty group: a model may have matrices only.
    return OPTIMIZERS[plan.name]([group for group in groups if group["params"]], plan)


def _adam(kind: type[torch.optim.Adam], groups: Groups, plan: OptimizerPlan) -> torch.optim.Optimizer:
    return kind(groups, lr=plan.learning_rate, betas=plan.betas, eps=plan.epsilon, fused=True)


def _adafactor(groups: Groups, plan: OptimizerPlan) -> torch.optim.Optimizer:
    """Adafactor (arXiv 1804.04235) at a fixed learning rate."""
    from transformers.optimization import Adafactor

    # Otherwise it sets its own rate, and the schedule of the plan would have no effect.
    return Adafactor(groups, lr=plan.learning_rate, relative_step=False, scale_parameter=False, warmup_init=False)


def _bitsandbytes(name: str, groups: Groups, plan: OptimizerPlan) -> torch.optim.Optimizer:
    try:
        import bitsandbytes.optim
    except ImportError as error:
        raise ConfigError("training.optimizer: 8-bit and paged optimizers need: pip install 'oumi[narrow]'") from error
    optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, name)(
        groups, lr=plan.learning_rate, betas=plan.betas, eps=plan.epsilon
    )
    return optimizer


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerPlan], torch.optim.Optimizer]] = {
    "adam": partial(_adam, torch.optim.Adam),
    "adamw": partial(_adam, torch.optim.AdamW),
    "adamw_torch": partial(_adam, torch.optim.AdamW),
    "adamw_torch_fused": partial(_adam, torch.optim.AdamW),
    "adamw_8bit": partial(_bitsandbytes, "AdamW8bit"),
    "paged_adamw_8bit": partial(_bitsandbytes, "PagedAdamW8bit"),
    "paged_adamw": partial(_bitsandbytes, "PagedAdamW"),
    "paged_adamw_32bit": partial(_bitsandbytes, "PagedAdamW32bit"),
    "sgd": lambda groups, plan: torch.optim.SGD(groups, plan.learning_rate, plan.momentum, fused=True),
    "adafactor": _adafactor,
}
