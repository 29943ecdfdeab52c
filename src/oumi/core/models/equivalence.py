# SPDX-License-Identifier: Apache-2.0
"""Compares a faster implementation with the reference one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from oumi.core.errors import ConfigError


@contextmanager
def trial(model: Any, training: bool = False, gradients: bool = False) -> Iterator[None]:
    """Disables dropout in the context unless `training`, and gradients unless `gradients`.

    Restores the mode of the model and the random state of the CPU on exit.
    """
    was_training = model.training
    model.train(training)
    try:
        # Autocast would round a model in float64 to 16 bits.
        without = torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[])
        with torch.set_grad_enabled(gradients), without[0], without[1]:
            yield
    finally:
        model.train(was_training)


def logits_of(model: Any, tokens_1S: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Returns the model's own logits [S, V] for a few tokens [1, S]; raises ConfigError if its forward pass fails."""
    try:
        logits: torch.Tensor = model(input_ids=tokens_1S, use_cache=False, **inputs).logits[0]
    except (RuntimeError, ValueError, IndexError) as error:
        message = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model {model.config.name_or_path}: the forward pass fails: {message}") from error
    return logits


def is_close(result: torch.Tensor, expected: torch.Tensor, num_eps: int = 64) -> bool:
    """Returns True if the relative error is rounding only: below `num_eps` x eps of float32 or 4 x eps of its dtype."""
    error = (result.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
    return error.item() < _tolerance(result.dtype, num_eps)


def _tolerance(dtype: torch.dtype, num_eps: int) -> float:
    # Float64 is compared as float32: most models compute norms, rotations and softmax in it, whatever their dtype.
    return max(num_eps * torch.finfo(torch.float32).eps, 4 * torch.finfo(dtype).eps)


def gradients_of(model: Any, logits_SV: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the gradient of every weight by name, of a sum of the logits with random factors; empty without a graph.

    A weight that is not used has a gradient of zeros.
    """
    if not logits_SV.requires_grad:
        return {}
    generator = torch.Generator().manual_seed(0)
    # In one dtype, of which the random numbers depend: some models return float32 logits whatever their weights are.
    factors_SV = torch.randn(logits_SV.shape, generator=generator).to(logits_SV.device, logits_SV.dtype)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad((logits_SV * factors_SV).sum(), list(weights.values()), allow_unused=True)
    pairs = zip(weights.items(), gradients, strict=True)
    return {name: torch.zeros_like(weight) if value is None else value for (name, weight), value in pairs}


def first_difference(
    results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], num_eps: int = 64
) -> str | None:
    """Returns the name of the first result that differs by more than rounding, None if all are close.

    The gradient of a weight that hardly matters is rounding itself, so errors are compared with at least a hundredth
    of the typical norm.
    """
    norms = [tensor.float().norm() for tensor in expected.values()]
    typical = torch.stack(norms).square().mean().sqrt() if norms else torch.zeros(())
    for (name, tensor), norm in zip(expected.items(), norms, strict=True):
        if name not in results:
            continue
        error = (results[name].float() - tensor.float()).norm() / torch.maximum(norm, typical / 100).clamp_min(1e-12)
        if not error.item() < _tolerance(tensor.dtype, num_eps):
            return name
    return None
