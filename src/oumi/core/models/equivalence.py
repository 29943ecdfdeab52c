# SPDX-License-Identifier: Apache-2.0
"""How a faster way to compute is tried against the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from oumi.core.errors import ConfigError


@contextmanager
def trial(model: Any, training: bool = False) -> Iterator[None]:
    """Runs a model without gradients in the context, and without dropout unless in training.

    Afterwards the model and the random numbers of the CPU are as they were.
    """
    was_training = model.training
    model.train(training)
    try:
        # A model in float64 cannot be run in mixed precision.
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
            yield
    finally:
        model.train(was_training)


def logits_of(model: Any, tokens_1S: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Returns the model's own logits [S, V] of a few tokens; raises ConfigError if it cannot compute them."""
    try:
        logits: torch.Tensor = model(input_ids=tokens_1S, use_cache=False, **inputs).logits[0]
    except RuntimeError as error:
        message = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model {model.config.name_or_path}: cannot compute a dozen tokens: {message}") from error
    return logits


def is_close(result: torch.Tensor, expected: torch.Tensor, num_eps: int = 64) -> bool:
    """Returns True if the two differ by rounding only: by so many of the smallest steps of float32."""
    error = (result.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
    # Wide numbers are compared as float32: most models take norms, rotations and softmax in it, whatever their dtype.
    return error.item() < max(num_eps * torch.finfo(torch.float32).eps, 4 * torch.finfo(result.dtype).eps)
