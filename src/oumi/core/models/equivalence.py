# SPDX-License-Identifier: Apache-2.0
"""Compares a faster implementation with the reference one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from oumi.core.errors import ConfigError


@contextmanager
def trial(model: Any, training: bool = False) -> Iterator[None]:
    """Disables gradients in the context, and dropout unless `training`.

    Restores the mode of the model and the random state of the CPU on exit.
    """
    was_training = model.training
    model.train(training)
    try:
        # Autocast would round a model in float64 to 16 bits.
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
            yield
    finally:
        model.train(was_training)


def logits_of(model: Any, tokens_1S: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Returns the model's own logits [S, V] for a few tokens [1, S]; raises ConfigError if its forward pass fails."""
    try:
        logits: torch.Tensor = model(input_ids=tokens_1S, use_cache=False, **inputs).logits[0]
    except RuntimeError as error:
        message = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model {model.config.name_or_path}: the forward pass fails: {message}") from error
    return logits


def is_close(result: torch.Tensor, expected: torch.Tensor, num_eps: int = 64) -> bool:
    """Returns True if the relative error is rounding only: below `num_eps` x eps of float32 or 4 x eps of its dtype."""
    error = (result.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
    # Float64 is compared as float32: most models compute norms, rotations and softmax in it, whatever their dtype.
    return error.item() < max(num_eps * torch.finfo(torch.float32).eps, 4 * torch.finfo(result.dtype).eps)
