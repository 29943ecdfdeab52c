# SPDX-License-Identifier: Apache-2.0
"""Swaps parts of a model's layers for ones that compute the same in fewer passes, once these are proven."""

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
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import as_trained, is_close
from oumi.core.models.twin import NoTrialError, kind_of, plain_class, trial_models
from oumi.core.system.matmul import prefers_onednn_for_gradient

_ROTATE = "apply_rotary_pos_emb"
_SCALES = (1.0, 30.0)
"""Of the inputs of a trial: some activations are cut off far from zero."""
_Form = tuple[Any, dict[str, Any]]
"""A forward function of a module and its settings."""


def fuse_layers(model: Any) -> Counter[str]:
    """Gives every norm, gated MLP, rotation and GELU of a model its fused form where that gives the same numbers.

    Norms and MLPs are tried on the models that `trial_models` yields. Where oneDNN is much faster than the library that
    torch takes, products with weights go by it. Weights, names and what is saved stay as they are.

    Returns:
        How many parts of each kind were swapped.
    """
    swapped: Counter[str] = Counter()
    forms = _proven_forms(model)
    for name, module in below_adapter(model).named_modules():
        for part, form in (
            *((part, forms.get((part, kind_of(name, module)))) for part, (fits, _) in _TRIED.items() if fits(module)),
            ("rotations", _rotation(module)),
            ("GELUs", _gelu(module)),
            ("products", _linear(module)),
        ):
            if form is not None:
                forward, settings = form
                module.forward = MethodType(partial(forward, **settings) if settings else forward, module)
                swapped[part] += 1
    logger.info("fused forms: %s", ", ".join(f"{count} {part}" for part, count in swapped.items()) or "none")
    return swapped


def _proven_forms(model: Any) -> dict[tuple[str, Any], _Form | None]:
    """Returns the fused forms of norms and MLPs by the kind of module, None where no form holds for all of the kind."""
    forms: dict[tuple[str, Any], _Form | None] = {}
    try:
        for trial in trial_models(model):
            with as_trained(trial):
                for name, module in below_adapter(trial).named_modules():
                    for part, (fits, find) in _TRIED.items():
                        if fits(module):
                            key, form = (part, kind_of(name, module)), find(module)
                            forms[key] = form if forms.get(key, form) == form else None
    except NoTrialError as error:
        logger.info("norms and MLPs stay as they are: %s", error)
    return forms


def _is_rms_norm(module: torch.nn.Module) -> bool:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, torch.nn.Parameter) or weight.ndim != 1:
        return False
    is_other = type(module).__module__.startswith("torch.nn") and not isinstance(module, torch.nn.RMSNorm)
    return "Norm" in type(module).__name__ and _takes_tensor(module) and not is_other


def _rms_norm(module: Any) -> _Form | None:
    """Returns the fused form of an RMS norm, whose weight may be what one is added to; None if it does more."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    noise = torch.randn(3, len(module.weight), dtype=module.weight.dtype)
    for offset in (0.0, 1.0):
        form = _fused_norm, {"eps": eps, "offset": offset}
        if _agrees(module, form, noise):
            return form
    return None


def _fused_norm(module: Any, x: torch.Tensor, *, eps: float, offset: float) -> torch.Tensor:
    result: torch.Tensor = RmsNorm.apply(x, module.weight, eps, offset)
    return result


def _takes_tensor(module: torch.nn.Module) -> bool:
    """Returns True if nothing but the states goes in: no gate, no residual."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def _agrees(module: Any, form: _Form, noise: torch.Tensor) -> bool:
    """Returns True if a form gives what the module does, for small inputs and for large ones."""
    forward, settings = form
    for scale in _SCALES:
        expected = module(noise * scale)
        if not isinstance(expected, torch.Tensor):
            return False
        if not is_close(forward(module, noise * scale, **settings), expected):
            return False
    return True


def _is_gated_mlp(module: torch.nn.Module) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    is_plain = all(isinstance(part, torch.nn.Module) and plain_class(part) is torch.nn.Linear for part in parts)
    return is_plain and all(part.bias is None for part in parts) and _takes_tensor(module)  # type: ignore[union-attr]


def _gated_mlp(module: Any) -> _Form | None:
    """Returns the fused form of a gated MLP, None if its activation is another, or drops something."""
    weight = module.gate_proj.weight
    noise = torch.randn(1, 3, weight.shape[1], dtype=weight.dtype)
    for activation in (SILU, GELU_TANH, GELU):
        form = _fused_mlp, {"activation": activation}
        if _agrees(module, form, noise):
            return form
    return None


def _fused_mlp(module: Any, x: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    result: torch.Tensor = GatedMlp.apply(x, *weights, activation)
    return result


_TRIED = {"norms": (_is_rms_norm, _rms_norm), "mlps": (_is_gated_mlp, _gated_mlp)}
"""Parts whose form is tried with weights: which modules come into question, and what finds their form."""


def _linear(module: torch.nn.Module) -> _Form | None:
    """Returns the form of a linear layer by oneDNN, None where that is not much the faster library."""
    if plain_class(module) is not torch.nn.Linear:
        return None
    weight: Any = module.weight
    return (_onednn_product, {}) if prefers_onednn_for_gradient(weight, weight.numel()) else None


def _onednn_product(module: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, module.weight, module.bias)
    result: torch.Tensor = Linear.apply(x, module.weight, module.bias)
    return result


def _gelu(module: torch.nn.Module) -> _Form | None:
    """Returns the form of a GELU by one kernel, None if the module is none; some write out its formula."""
    if "GELU" not in type(module).__name__ or isinstance(module, torch.nn.GELU) or not _takes_tensor(module):
        return None
    if next(module.parameters(), None) is not None:
        return None
    for approximate in ("tanh", "none"):
        form = _fused_gelu, {"approximate": approximate}
        if _agrees(module, form, torch.linspace(-4, 4, 256)):
            return form
    return None


def _fused_gelu(_: Any, x: torch.Tensor, *, approximate: str) -> torch.Tensor:
    return F.gelu(x, approximate=approximate)


def _rotation(module: torch.nn.Module) -> _Form | None:
    """Returns the form of an attention that calls `rotate` where its module's code calls its own rotation.

    The module keeps its function: it belongs to all models of the class, and to those made later.
    """
    forward = inspect.unwrap(type(module).forward)
    rotation = getattr(forward, "__globals__", {}).get(_ROTATE)
    if _ROTATE not in forward.__code__.co_names or not callable(rotation) or not _turns_halves(rotation):
        return None
    return _with_own_rotation(forward), {}


@cache
def _with_own_rotation(forward: FunctionType) -> FunctionType:
    names = {**forward.__globals__, _ROTATE: rotate}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


@cache
def _turns_halves(rotation: Any) -> bool:
    """Returns True if a model's rotation turns the two halves of each head, as ours does."""
    numbers = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        angles = scale * torch.randn(1, 3, 4, generator=numbers).repeat(1, 1, 2)
        heads = (scale * torch.randn(1, count, 3, 8, generator=numbers) for count in (2, 1))
        inputs = (*heads, angles.cos(), angles.sin())
        try:
            turned = rotation(*inputs)
        except (TypeError, ValueError, RuntimeError):  # it takes something else
            return False
        if len(turned) != 2 or not all(is_close(a, b) for a, b in zip(rotate(*inputs), turned, strict=True)):
            return False
    return True
