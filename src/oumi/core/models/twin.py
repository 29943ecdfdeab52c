# SPDX-License-Identifier: Apache-2.0
"""A twin of a model: the same classes with few layers and small sizes, on which faster implementations are verified.

A model on the meta device, or one with sharded weights, cannot run where it is built. What its classes compute does not
depend on their sizes, so an implementation that is equivalent on the twin is equivalent on the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from oumi.core.log import logger
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import trial
from oumi.core.models.twin_config import levels_of, pattern_length, shrunken, size_of, special_tokens

_MAX_LAYERS, _MAX_WEIGHTS, _MAX_TOKENS = 32, 20_000_000, 256
_PROBE = 48
"""Tokens of the forward pass that every new twin must complete."""
_GAINS = (1.0, 3.0)
"""Scales of the random weights: typical activations, and large ones, where softcaps and clipping take effect."""
_LIBRARIES = ("torch.", "torchao.", "peft.", "bitsandbytes.")
_BUILD_ERRORS = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)


class NoTrialError(Exception):
    """No model can verify a faster implementation; the message says why."""


def trial_models(model: Any) -> Iterator[Any]:
    """Yields models that compute as `model` does, to verify a faster implementation: its twin with two sets of weights.

    If no twin can be built, yields only `model` itself.

    Raises:
        NoTrialError: No twin can be built, and the model is on the meta device or sharded.
    """
    try:
        twin = build_twin(model)
    except NoTrialError as error:
        if any(weight.is_meta or isinstance(weight, DTensor) for weight in model.parameters()):
            raise
        logger.debug("faster implementations are verified on the model itself: %s", error)
        yield model
        return
    for seed, gain in enumerate(_GAINS):
        _draw_weights(twin, gain, seed)
        yield twin


def build_twin(model: Any) -> Any:
    """Returns a small model on the CPU with every kind of module that `model` has, in float64 if the model supports it.

    Raises:
        NoTrialError: The sizes of the config are inconsistent, or have names that `SIZES` does not list.
    """
    base = below_adapter(model)
    if not isinstance(base, PreTrainedModel):
        raise NoTrialError(f"{type(base).__name__} is not a transformers model")
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        raise NoTrialError("the adapter adds tokens")
    kind, text = base.config.model_type, base.config.get_text_config()
    # Bounds the time of a trial: no pattern of layer types is longer.
    num_layers = min(size_of(text, "layers") or 1, _MAX_LAYERS)
    depth = pattern_length(text, num_layers)
    try:
        # Some kinds of layers appear only from a certain depth on, so double the depth until no kind is missing.
        while True:
            config = shrunken(base.config, depth)
            # On the meta device first: its modules and size are enough to decide, and take no memory.
            with torch.device("meta"):
                skeleton = _build(base, config, torch.float64)
            missing = _missing_kinds(base, skeleton)
            if not missing:
                break
            if depth >= num_layers:
                raise NoTrialError(f"the twin of {kind} has no {missing[0]}")
            depth = min(2 * depth, num_layers)
        if sum(weight.numel() for weight in skeleton.parameters()) > _MAX_WEIGHTS:
            raise NoTrialError(f"the twin of {kind} is too large: its config has sizes of unknown names")
        # In float64 an exact difference stands out from rounding. A few models use float32 inside, which raises.
        with suppress(RuntimeError):
            return _build_on_cpu(base, config, torch.float64)
        return _build_on_cpu(base, config, torch.float32)
    except _BUILD_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise NoTrialError(f"the twin of {kind} cannot be built: {reason}") from error


def kind_of(name: str, module: torch.nn.Module) -> tuple[str, type, frozenset[tuple[str, Any]]]:
    """Returns what modules with the same computation share: path without layer numbers, class, and switches.

    Of a number, such as a window or a dropout rate, only whether it is zero is a switch.
    """
    switches = set()
    if not isinstance(module, PreTrainedModel):  # whose attributes also tell how it was loaded
        for key, value in vars(module).items():
            if key.startswith("_") or "idx" in key or key in ("training", "gradient_checkpointing"):
                continue
            if value is None or isinstance(value, str | bool):
                switches.add((key, value))
            elif isinstance(value, int | float):
                switches.add((key, "not zero" if value else "zero"))
    return re.sub(r"\d+", "*", name), plain_class(module), frozenset(switches)


def plain_class(module: torch.nn.Module) -> type:
    """Returns the class of a module, without the subclass that FSDP2 puts in its place."""
    # fully_shard sets `module.__class__` to a new class with the bases (FSDPModule, original class).
    return type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)


def ordinary_tokens(model: Any) -> list[int]:
    """Returns at most 256 token ids of plain text, those that no config names as special tokens."""
    vocabulary = min(len(model.get_input_embeddings().weight), _MAX_TOKENS)
    special = set(special_tokens(levels_of(model.config)))
    return [token for token in range(vocabulary) if token not in special]


def _build_on_cpu(base: Any, config: Any, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        twin = _build(base, config, dtype)
    num_tokens = min(getattr(config.get_text_config(), "max_position_embeddings", 0) or _PROBE, _PROBE)
    tokens = torch.tensor([ordinary_tokens(twin)[:num_tokens]])
    with trial(twin):  # inconsistent sizes fail only in a forward pass
        twin(input_ids=tokens, use_cache=False)
    if any(weight.dtype != dtype for weight in twin.parameters()):
        raise RuntimeError("some weights stay in float32")
    return twin.eval()


def _build(base: Any, config: Any, dtype: torch.dtype) -> Any:
    own = base.config._attn_implementation
    return plain_class(base)._from_config(
        config,
        dtype=dtype,
        # GPU kernels for attention and experts support neither the CPU nor float64.
        attn_implementation=own if own in ("sdpa", "eager") else "eager",
        experts_implementation="eager",
    )


def _missing_kinds(base: Any, skeleton: Any) -> list[str]:
    """Returns the modules of the model for which the twin has none of the same path, class and switches."""
    kinds = {kind_of(*named) for named in skeleton.named_modules()}
    missing = []
    for name, module in base.named_modules():
        place, cls, switches = kind_of(name, module)
        # Adapters and quantization replace single linear layers, on which no faster implementation depends.
        is_own = not cls.__module__.startswith(_LIBRARIES)
        if is_own and not any((a, b) == (place, cls) and c <= switches for a, b, c in kinds):
            missing.append(f"{name} ({cls.__name__})")
    return missing


@torch.no_grad()
def _draw_weights(twin: Any, gain: float, seed: int) -> None:
    """Sets random weights of a scale at which every part of a model affects its logits."""
    # With the initialization of transformers, weights are so small that softcaps and gates hardly matter.
    generator = torch.Generator().manual_seed(seed)
    tables = {id(module.weight) for module in twin.modules() if isinstance(module, torch.nn.Embedding)}
    for weight in twin.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        if weight.ndim < 2:  # scales of norms stay near one
            weight.add_(0.3 * noise)
        else:
            weight.copy_(noise * gain * (1.0 if id(weight) in tables else max(weight.shape[-2:]) ** -0.5))
