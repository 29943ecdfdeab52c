# SPDX-License-Identifier: Apache-2.0
"""Swaps parts of a model's layers for ones that compute the same in fewer passes; each is tried on the part itself."""

from __future__ import annotations

import inspect
from collections import Counter
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.log import logger
from oumi.core.models.acceleration.cpu_ops import GELU, GELU_TANH, SILU, Activation, GatedMlp, Linear, RmsNorm, rotate
from oumi.core.models.equivalence import as_trained, is_close
from oumi.core.system.matmul import prefers_onednn_for_gradient

_ROTATE = "apply_rotary_pos_emb"
_ACTIVATIONS = (SILU, GELU_TANH, GELU)


def fuse_layers(model: Any) -> Counter[str]:
    """Gives every norm, gated MLP, rotation and GELU of a model its fused form where that gives the same numbers.

    Where oneDNN is much faster than the library that torch takes, products with weights go by it.

    Weights, names and what is saved stay as they are.

    Returns:
        How many parts of each kind were swapped.
    """
    swapped: Counter[str] = Counter()
    finders = {"norms": _norm, "mlps": _mlp, "rotations": _rotation, "GELUs": _gelu, "products": _linear}
    with as_trained(model):
        for module in model.modules():
            for kind, find in finders.items():
                forward = find(module)
                if forward is not None:
                    module.forward = MethodType(forward, module)
                    swapped[kind] += 1
    logger.info("fused forms: %s", ", ".join(f"{count} {kind}" for kind, count in swapped.items()) or "none")
    return swapped


def _norm(module: torch.nn.Module) -> Any:
    """Returns the fused forward of an RMS norm, None if the module is none."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, torch.nn.Parameter) or weight.ndim != 1:
        return None
    if "Norm" not in type(module).__name__ or not _takes_tensor(module) or _is_other_norm_of_torch(module):
        return None
    sample = torch.randn(3, len(weight), dtype=weight.dtype)
    for offset in (0.0, 1.0):
        if is_close(RmsNorm.apply(sample, weight, eps, offset), module(sample)):
            return partial(_normed, eps=eps, offset=offset)
    return None


def _normed(module: Any, x: torch.Tensor, *, eps: float, offset: float) -> torch.Tensor:
    result: torch.Tensor = RmsNorm.apply(x, module.weight, eps, offset)
    return result


def _takes_tensor(module: torch.nn.Module) -> bool:
    """Returns True if nothing but the states goes in: no gate, no residual."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def _is_other_norm_of_torch(module: torch.nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, torch.nn.RMSNorm)


def _mlp(module: torch.nn.Module) -> Any:
    """Returns the fused forward of a gated MLP, None if the module is none."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if any(type(part) is not torch.nn.Linear or part.bias is not None for part in parts):
        return None
    if not _takes_tensor(module):
        return None
    sample = torch.randn(1, 3, parts[0].in_features, dtype=parts[0].weight.dtype)  # type: ignore[union-attr]  # all are linear
    expected = module(sample)
    for activation in _ACTIVATIONS:
        if isinstance(expected, torch.Tensor) and is_close(_gated(module, sample, activation=activation), expected):
            return partial(_gated, activation=activation)
    return None


def _gated(module: Any, x: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    result: torch.Tensor = GatedMlp.apply(x, *weights, activation)
    return result


def _linear(module: torch.nn.Module) -> Any:
    """Returns the forward of a linear layer by oneDNN, None where that is not much the faster library."""
    if type(module) is not torch.nn.Linear:
        return None
    return _multiplied if prefers_onednn_for_gradient(module.weight, module.weight.numel()) else None


def _multiplied(module: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, module.weight, module.bias)
    result: torch.Tensor = Linear.apply(x, module.weight, module.bias)
    return result


def _rotation(module: torch.nn.Module) -> Any:
    """Returns the forward of an attention with the fused rotation, None if the module turns nothing."""
    forward = inspect.unwrap(type(module).forward)
    own = getattr(forward, "__globals__", {}).get(_ROTATE)
    if _ROTATE not in forward.__code__.co_names or not callable(own):
        return None
    return _turning(forward) if _is_rotation(own, forward) else None


def _gelu(module: torch.nn.Module) -> Any:
    """Returns the forward of a GELU by one kernel, None if the module is none; some write out its formula."""
    if "GELU" not in type(module).__name__ or isinstance(module, torch.nn.GELU) or not _takes_tensor(module):
        return None
    if any(True for _ in module.parameters()):
        return None
    sample = torch.linspace(-20, 20, 256)  # some are cut off far from zero
    for approximate in ("tanh", "none"):
        if is_close(F.gelu(sample, approximate=approximate), module(sample)):
            return lambda _, x, how=approximate: F.gelu(x, approximate=how)
    return None


@cache
def _turning(forward: FunctionType) -> FunctionType:
    """Returns a copy of a function that calls `rotate` where it called its own rotation."""
    names = {**forward.__globals__, _ROTATE: rotate}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


@cache
def _is_rotation(own: Any, forward: FunctionType) -> bool:
    """Returns True if a model's rotation turns the two halves of each head, as ours does."""
    angles = torch.randn(1, 3, 4).repeat(1, 1, 2)
    sample = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8), angles.cos(), angles.sin()
    try:
        rotated = own(*sample)
    except (TypeError, ValueError, RuntimeError):  # it takes something else
        return False
    return len(rotated) == 2 and all(is_close(a, b) for a, b in zip(rotate(*sample), rotated, strict=True))
