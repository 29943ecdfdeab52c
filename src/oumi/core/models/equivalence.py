# SPDX-License-Identifier: Apache-2.0
"""How a faster way to compute is tried: on the model itself, against its own way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from oumi.core.errors import ConfigError


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Lets the model run without dropout and without gradients meanwhile."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def as_trained(model: Any) -> Iterator[None]:
    """Lets the model on a CPU run as in training, dropout and all, but without gradients; the dice stay as they are."""
    was_training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        model.train(was_training)


def logits_of(model: Any, tokens_1S: torch.Tensor) -> torch.Tensor:
    """Returns the model's own logits [S, V] of a few tokens; raises ConfigError if it cannot compute them."""
    try:
        logits: torch.Tensor = model(input_ids=tokens_1S, use_cache=False).logits[0]
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model {model.config.name_or_path}: cannot compute a dozen tokens: {reason}") from error
    return logits


def is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Returns True if the two differ by rounding only."""
    error = (actual.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
    eps = torch.finfo(actual.dtype).eps
    return error.item() < max(64 * torch.finfo(torch.float32).eps, 4 * eps)
