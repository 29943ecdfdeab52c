# SPDX-License-Identifier: Apache-2.0
"""Swaps parts of a model's layers for ones that compute the same in fewer passes, once these are proven."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.log import logger
from oumi.core.models.acceleration.cpu_ops import GELU, GELU_TANH, SILU, Activation, GatedMlp, Linear, RmsNorm, rotate
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import is_close, trial
from oumi.core.models.twin import NoTrialError, kind_of, plain_class, trial_models
from oumi.core.system.matmul import prefers_onednn_for_gradient

_ROTATE = "apply_rotary_pos_emb"
_SCALES = (1.0, 30.0)
"""Of the inputs of a trial: some activations are cut off far from zero."""
_Form = tuple[Any, dict[str, Any]]
"""A function in place of a module's forward, and its settings."""


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
        candidates = {part: forms.get((part, kind_of(name, module))) for part in _parts_of(module)}
        candidates["rotations"] = _rotation(module)
        candidates["GELUs"] = _gelu(module)
        weight: Any = getattr(module, "weight", None)
        if plain_class(module) is torch.nn.Linear and prefers_onednn_for_gradient(weight, weight.numel()):
            candidates["products"] = _onednn_product, {}
        for part, form in candidates.items():
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
        for candidate in trial_models(model):
            # Dropout stays on: a fused form has none, so it must not take the place of what drops.
            with trial(candidate, training=True):
                for name, module in below_adapter(candidate).named_modules():
                    for part in _parts_of(module):
                        weight: Any = module.weight if part == "norms" else module.gate_proj.weight  # type: ignore[union-attr]
                        noise = torch.randn(1, 3, weight.shape[-1], dtype=weight.dtype)
                        key, form = (part, kind_of(name, module)), _first_equal(module, _FORMS[part], noise)
                        forms[key] = form if forms.get(key, form) == form else None
    except NoTrialError as error:
        logger.info("norms and MLPs stay as they are: %s", error)
    return forms


def _first_equal(module: torch.nn.Module, forms: Sequence[_Form], noise: torch.Tensor) -> _Form | None:
    """Returns the first form that gives what the module does, for small inputs and for large ones."""
    samples = [noise * scale for scale in _SCALES]
    expected = [module(sample) for sample in samples]
    if not all(isinstance(result, torch.Tensor) for result in expected):
        return None
    for forward, settings in forms:
        results = (forward(module, sample, **settings) for sample in samples)
        if all(is_close(*pair) for pair in zip(results, expected, strict=True)):
            return forward, settings
    return None


def _parts_of(module: torch.nn.Module) -> list[str]:
    """Returns as what a module may have a fused form, by its class and what it holds."""
    if not _takes_tensor(module):
        return []
    weight, cls = getattr(module, "weight", None), type(module)
    is_other_of_torch = cls.__module__.startswith("torch.nn") and not isinstance(module, torch.nn.RMSNorm)
    has_scale = isinstance(weight, torch.nn.Parameter) and weight.ndim == 1 and isinstance(_eps(module), float)
    if has_scale and "Norm" in cls.__name__ and not is_other_of_torch:
        return ["norms"]
    # An adapter on one of them, or narrow weights, make it a layer of another class.
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear) and plain_class(layer) is torch.nn.Linear]
    return ["mlps"] if len(linear) == 3 and all(layer.bias is None for layer in linear) else []


def _takes_tensor(module: torch.nn.Module) -> bool:
    """Returns True if nothing but the states goes in: no gate, no residual."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _fused_norm(module: Any, x: torch.Tensor, *, offset: float) -> torch.Tensor:
    result: torch.Tensor = RmsNorm.apply(x, module.weight, _eps(module), offset)
    return result


def _fused_mlp(module: Any, x: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    result: torch.Tensor = GatedMlp.apply(x, *weights, activation)
    return result


def _fused_gelu(_: Any, x: torch.Tensor, *, approximate: str) -> torch.Tensor:
    return F.gelu(x, approximate=approximate)


_FORMS: dict[str, Sequence[_Form]] = {
    "norms": [(_fused_norm, {"offset": offset}) for offset in (0.0, 1.0)],  # some add one to their weight
    "mlps": [(_fused_mlp, {"activation": activation}) for activation in (SILU, GELU_TANH, GELU)],
    "GELUs": [(_fused_gelu, {"approximate": approximate}) for approximate in ("tanh", "none")],
}


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
    # Without weights it can be tried itself, wherever the model is; the two formulas differ most about 2.
    return _first_equal(module, _FORMS["GELUs"], torch.linspace(-4, 4, 256))


def _rotation(module: torch.nn.Module) -> _Form | None:
    """Returns the form of an attention that calls `rotate` where its code calls a rotation of its own."""
    forward = inspect.unwrap(type(module).forward)
    rotation = getattr(forward, "__globals__", {}).get(_ROTATE)
    if _ROTATE not in forward.__code__.co_names or not callable(rotation) or not _turns_halves(rotation):
        return None
    return _with_our_rotation(forward), {}


@cache
def _with_our_rotation(forward: FunctionType) -> FunctionType:
    # A copy: the function itself belongs to all models of the class, also to those that are made later.
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
