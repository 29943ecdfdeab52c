# SPDX-License-Identifier: Apache-2.0
"""Replaces modules of a model by fused implementations, after verifying that these give the same numbers."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from oumi.core.errors import ConfigError
from oumi.core.log import logger
from oumi.core.models.acceleration.cpu_ops import (
    GELU,
    GELU_TANH,
    SILU,
    Activation,
    AdaptedLinear,
    GatedMlp,
    Linear,
    RmsNorm,
    rotate,
)
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import first_difference, gradients_of, is_close, logits_of, trial
from oumi.core.models.quantization import is_quantized, quantized_product
from oumi.core.models.twin import NoTrialError, kind_of, ordinary_tokens, plain_class, trial_models
from oumi.core.system.matmul import prefers_onednn_for_gradient

_ROTATE = "apply_rotary_pos_emb"
_SCALES = (0.0, 1e-6, 1e-3, 1.0, 30.0, 1e4)
"""Scales of the inputs of a trial: small ones show where a norm adds its epsilon, large ones what saturates."""
_OUTLIER = 1e4
"""Scale of one channel, far above the others, as in the hidden states of large models."""
_SMOOTH = {
    "add", "addmm", "div", "erf", "exp", "gelu", "linalg_vector_norm", "linear", "mean", "mm", "mul", "neg", "pow",
    "reciprocal", "rms_norm", "rsqrt", "sigmoid", "silu", "sqrt", "square", "sub", "sum", "tanh", "_fused_rms_norm",
    "_to_copy", "_unsafe_view", "alias", "cat", "clone", "expand", "permute", "reshape", "select", "slice", "split",
    "squeeze", "stack", "t", "transpose", "unsqueeze", "view",
}  # fmt: skip
"""Names of torch's operations without a kink, and of those that only move numbers."""
_Form = tuple[Any, dict[str, Any]]
"""A function that replaces a module's forward, and its keyword arguments."""
_Forms = dict[tuple[str, Any], _Form | None]
"""Forms by part and kind of module, None if a kind has no equal form."""
_NUM_TOKENS = 32


def fuse_layers(model: Any) -> Counter[str]:
    """Replaces the norms, gated MLPs, rotations and GELUs of a model by fused forms that give the same numbers.

    Norms and MLPs are verified on the models that `trial_models` yields. Linear layers use oneDNN where it is much
    faster than torch's default. Modules, weights and their names do not change.

    Returns:
        The number of replaced modules by kind.
    """
    replaced = Counter(part for part, _ in _replace(model, _verified_forms(model)))
    logger.info("fused forms: %s", ", ".join(f"{count} {part}" for part, count in replaced.items()) or "none")
    return replaced


def _replace(model: Any, forms: _Forms | None) -> list[tuple[str, torch.nn.Module]]:
    """Sets the forward pass of modules to their fused forms, and returns these modules with the kind of their form."""
    replaced: list[tuple[str, torch.nn.Module]] = []
    for name, module in below_adapter(model).named_modules() if forms is not None else ():
        candidates = {part: forms.get((part, kind_of(name, module))) for part in _parts_of(module)}
        candidates["rotations"] = _rotation(inspect.unwrap(type(module).forward))
        candidates["GELUs"] = _gelu(module)
        candidates["adapters"] = _adapter(module)
        weight: Any = getattr(module, "weight", None)
        if plain_class(module) is torch.nn.Linear and prefers_onednn_for_gradient(weight, weight.numel()):
            candidates["products"] = _onednn_product, {}
        if is_quantized(module):
            candidates["products of quantized weights"] = quantized_product, {}
        for part, form in candidates.items():
            if form is not None:
                forward, settings = form
                # On the instance, not the class: other models of the process keep their own.
                module.forward = MethodType(partial(forward, **settings) if settings else forward, module)
                replaced.append((part, module))
    return replaced


def _verified_forms(model: Any) -> _Forms | None:
    """Returns the fused forms of norms and MLPs by kind of module, None if no form is right for all of a kind.

    Returns None instead if the twin with all fused forms has other logits or gradients.
    """
    forms: _Forms = {}
    try:
        for i, candidate in enumerate(trial_models(model)):
            # With dropout, since fused forms have none: a module that applies dropout must fail the comparison.
            with trial(candidate, training=True):
                for name, module in below_adapter(candidate).named_modules():
                    for part in _parts_of(module):
                        weight: Any = module.weight if part == "norms" else module.gate_proj.weight  # type: ignore[union-attr]
                        noise = torch.randn(1, 3, weight.shape[-1], dtype=weight.dtype)
                        key, form = (part, kind_of(name, module)), _first_equal(module, _FORMS[part], noise)
                        # Modules of a kind must agree on one form, in every trial.
                        forms[key] = form if forms.get(key, form) == form else None
            if i == 0 and candidate is not model and (difference := _difference(candidate, forms)):
                logger.warning("no layer is fused: fused layers change %s of %s", difference, model.config.model_type)
                return None
    except NoTrialError as error:
        logger.info("norms and MLPs are not fused: %s", error)
    return forms


def _difference(twin: Any, forms: _Forms) -> str | None:
    """Returns what the fused forms change on a twin: the logits, or the gradient of a weight; None if nothing."""
    tokens = torch.tensor([ordinary_tokens(twin)[:_NUM_TOKENS]])

    def numbers() -> dict[str, torch.Tensor]:
        logits = logits_of(twin, tokens)
        return {"the logits": logits.detach(), **gradients_of(twin, logits)}

    with trial(twin, gradients=True):
        expected = numbers()
        replaced = _replace(twin, forms)
        try:
            return first_difference(numbers(), expected, num_eps=256)
        except (ConfigError, RuntimeError) as error:  # a forward or a backward pass that fails
            return str(error).partition("\n")[0]
        finally:
            for module in {id(module): module for _, module in replaced}.values():
                del module.forward


def _first_equal(module: torch.nn.Module, forms: Sequence[_Form], noise: torch.Tensor) -> _Form | None:
    """Returns the first form with the same results as the module at all scales of `noise`, None if there is none.

    `noise` is [1, N, d]. A module must also compute by smooth operations alone: a clamp, a threshold or dropout may act
    on no input of the trial. Smooth functions, too, can differ at the ends of the range only, so the trial reaches
    beyond what layers see.
    """
    outlier = noise.clone()
    outlier[..., 0] *= _OUTLIER
    samples = torch.cat([*(noise * scale for scale in _SCALES), outlier], dim=1)
    try:
        with _Operations() as operations:
            expected = module(samples)
    except (RuntimeError, ValueError, TypeError, LookupError):  # the module takes a tensor of another shape
        return None
    if not isinstance(expected, torch.Tensor) or expected.shape[:2] != samples.shape[:2] or not operations.are_smooth():
        return None
    for forward, settings in forms:
        result = forward(module, samples, **settings)
        pairs = zip(*(y.split(noise.shape[1], dim=1) for y in (result, expected)), strict=True)
        if all(is_close(*pair) for pair in pairs):
            return forward, settings
    return None


class _Operations(TorchDispatchMode):
    """Collects the names of the operations that run in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def are_smooth(self) -> bool:
        """Returns True if all of them are smooth, in place or not."""
        return {name.removesuffix("_") for name in self.names} <= _SMOOTH


def _parts_of(module: torch.nn.Module) -> list[str]:
    """Returns the keys of `_FORMS` that apply to a module by its class and its submodules: `norms`, `mlps` or none."""
    if not _takes_tensor(module):
        return []
    weight, cls = getattr(module, "weight", None), type(module)
    # LayerNorm and the like of torch have kernels of their own.
    is_other_of_torch = cls.__module__.startswith("torch.nn") and not isinstance(module, torch.nn.RMSNorm)
    has_scale = isinstance(weight, torch.nn.Parameter) and weight.ndim == 1 and isinstance(_eps(module), float)
    if has_scale and "Norm" in cls.__name__ and not is_other_of_torch:
        return ["norms"]
    # A layer with an adapter or with quantized weights has another class.
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear) and plain_class(layer) is torch.nn.Linear]
    return ["mlps"] if len(linear) == 3 and all(layer.bias is None for layer in linear) else []


def _takes_tensor(module: torch.nn.Module) -> bool:
    """Returns True if the forward pass has the hidden states as its only argument: no gate, no residual."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def _eps(module: Any) -> Any:
    # transformers calls it variance_epsilon, or eps as torch does.
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
    "norms": [(_fused_norm, {"offset": offset}) for offset in (0.0, 1.0)],  # Gemma's norms add 1 to their weight
    "mlps": [(_fused_mlp, {"activation": activation}) for activation in (SILU, GELU_TANH, GELU)],
    "GELUs": [(_fused_gelu, {"approximate": approximate}) for approximate in ("tanh", "none")],
}


def _onednn_product(module: Any, x: torch.Tensor) -> torch.Tensor:
    # A custom autograd function is not autocast, and oneDNN is the faster one for float32 only.
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, module.weight, module.bias)
    result: torch.Tensor = Linear.apply(x, module.weight, module.bias)
    return result


def _adapter(module: Any) -> _Form | None:
    """Returns the fused form of a linear layer with one LoRA adapter; None for all other modules."""
    if not type(module).__module__.startswith("peft."):  # which takes long to import
        return None
    from peft.tuners.lora import Linear as LoraLinear

    if type(module) is not LoraLinear or plain_class(module.base_layer) is not torch.nn.Linear:
        return None
    # Without what changes the input or the output beside: dropout, biases, and variants such as DoRA.
    (name,) = module.active_adapters if len(module.active_adapters) == 1 else ("",)
    if name not in module.lora_A or name in module.lora_variant or module.fan_in_fan_out:
        return None
    parts = (module.lora_A[name], module.lora_B[name])
    is_plain = isinstance(module.lora_dropout[name], torch.nn.Identity) and module.base_layer.bias is None
    has_biases = any(part.bias is not None for part in parts)
    dtypes = {layer.weight.dtype for layer in (module.base_layer, *parts)}
    is_frozen = not module.base_layer.weight.requires_grad
    return (_adapted, {"name": name}) if is_plain and is_frozen and not has_biases and len(dtypes) == 1 else None


def _adapted(module: Any, x: torch.Tensor, *rest: Any, name: str, **named: Any) -> torch.Tensor:
    weight = module.base_layer.weight
    # Disabled for the reference of preferences, merged for an export, or with another adapter in its place.
    is_usual = not (rest or named or module.disable_adapters or module.merged) and module.active_adapters == [name]
    if not is_usual or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        result: torch.Tensor = type(module).forward(module, x, *rest, **named)
        return result
    pair = module.lora_A[name].weight, module.lora_B[name].weight
    result = AdaptedLinear.apply(x, weight, *pair, module.scaling[name])
    return result


def _gelu(module: torch.nn.Module) -> _Form | None:
    """Returns the fused form of a GELU that a model computes by its formula; None for all other modules."""
    if "GELU" not in type(module).__name__ or isinstance(module, torch.nn.GELU) or not _takes_tensor(module):
        return None
    if next(module.parameters(), None) is not None:
        return None
    # Without weights, the module itself runs on any machine. The exact formula and that by tanh differ most near 2.
    return _first_equal(module, _FORMS["GELUs"], torch.linspace(-4, 4, 256)[None, None])


@cache
def _rotation(forward: FunctionType) -> _Form | None:
    """Returns an attention's forward with `rotate` in place of its own rotary embedding; None if it has no equal one.

    Cached, so that all layers of a class share one copy.
    """
    rotation = forward.__globals__.get(_ROTATE)
    if _ROTATE not in forward.__code__.co_names or not callable(rotation) or not _rotates_halves(rotation):
        return None
    # A copy with its own globals: the original belongs to all models of the class, also to later ones.
    names = {**forward.__globals__, _ROTATE: rotate}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy, {}


@cache
def _rotates_halves(rotation: Any) -> bool:
    """Returns True if a model's rotary embedding pairs the two halves of each head, as `rotate` does."""
    generator = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        angles = scale * torch.randn(1, 3, 4, generator=generator).repeat(1, 1, 2)
        heads = (scale * torch.randn(1, count, 3, 8, generator=generator) for count in (2, 1))
        inputs = (*heads, angles.cos(), angles.sin())
        try:
            with _Operations() as operations:
                rotated = rotation(*inputs)
        except (TypeError, ValueError, RuntimeError):  # other parameters, such as one tensor of complex numbers
            return False
        if len(rotated) != 2 or not operations.are_smooth():
            return False
        if not all(is_close(a, b) for a, b in zip(rotate(*inputs), rotated, strict=True)):
            return False
    return True
