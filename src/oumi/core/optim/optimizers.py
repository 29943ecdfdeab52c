# SPDX-License-Identifier: Apache-2.0
"""Optimizers by their names in the config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from oumi.core.errors import ConfigError
from oumi.core.plan.parts import OptimizerPlan

Groups = list[dict[str, Any]]
_NO_MATRIX = re.compile(r"bias|norm|scale|sink|^(A_log|A|D|dt)$|(^|_)(alpha|beta|gamma|lambda|time)(_|$|\d)", re.ASCII)
"""Names of weights that shift, scale or set a rate, in one dimension or more."""


def build_optimizer(
    model: torch.nn.Module, plan: OptimizerPlan, parameters: Mapping[str, torch.nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Returns the plan's optimizer over the weights that move.

    Biases, norms and other scales get no weight decay, whatever their dimensions: decay is for matrices.

    Args:
        model: The model.
        plan: The optimizer and its settings.
        parameters: What is updated, by the names of the model's weights; None for the weights themselves.

    Raises:
        ConfigError: The package for it is missing, or there is nothing to train.
    """
    trained = [(name, p) for name, p in (parameters or dict(model.named_parameters())).items() if p.requires_grad]
    if not trained:
        raise ConfigError("no weight is trained: everything is frozen")
    decayed = decayed_names(model)
    # Decay pulls towards zero, which is no natural place for a scale or a shift.
    groups: Groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": plan.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    # Some optimizers refuse an empty group: a model may have matrices only.
    return OPTIMIZERS[plan.name]([group for group in groups if group["params"]], plan)


def decayed_names(model: torch.nn.Module) -> set[str]:
    """Returns the names of the weights that are decayed: embeddings and the matrices and kernels of products.

    What a weight is shows in its module and its name. gpt-oss has expert biases, Cohere has norms, and Mamba has
    logarithms of decay rates in two dimensions.
    """
    names = set()
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            marked = getattr(parameter, "_no_weight_decay", False)  # by the authors of state-space models
            if parameter.ndim > 1 and not (is_norm or marked or _NO_MATRIX.search(name)):
                names.add(f"{path}.{name}" if path else name)
    return names


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
