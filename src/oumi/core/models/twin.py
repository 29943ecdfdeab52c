# SPDX-License-Identifier: Apache-2.0
"""A shrunken twin of a model: the same classes with few layers and small sizes, on which faster forms are tried.

A model on the meta device, or one whose weights are sharded, cannot run where it is built. What its classes compute
does not depend on their sizes, so a faster form that holds on the twin holds on the model.
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

_MAX_LAYERS, _MAX_WEIGHTS, _MAX_TOKENS = 32, 16_000_000, 256
_PROBE = 48
"""Tokens that a twin must take, to be one."""
_GAINS = (1.0, 3.0)
"""Of the weights: numbers as a layer mostly sees them, and large ones, where caps and cuts show."""
_LIBRARIES = ("torch.", "torchao.", "peft.", "bitsandbytes.")
_BUILD_ERRORS = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)


class NoTrialError(Exception):
    """There is no model on which a faster form could be tried; the message says why."""


def trial_models(model: Any) -> Iterator[Any]:
    """Yields models that compute as `model` does, to try a faster form on each: its twin, with two draws of weights.

    Where no twin can be built, `model` itself is the only one, unless its weights are elsewhere.

    Raises:
        NoTrialError: No twin can be built, and the model is on the meta device or sharded.
    """
    try:
        twin = build_twin(model)
    except NoTrialError as error:
        if any(weight.is_meta or isinstance(weight, DTensor) for weight in model.parameters()):
            raise
        logger.debug("faster forms are tried on the model itself: %s", error)
        yield model
        return
    for seed, gain in enumerate(_GAINS):
        _draw_weights(twin, gain, seed)
        yield twin


def build_twin(model: Any) -> Any:
    """Returns a small model on the CPU that has every kind of module that `model` has; in float64, if it can be.

    Raises:
        NoTrialError: The sizes of the config contradict each other, or have names that `SIZES` does not list.
    """
    base = below_adapter(model)
    if not isinstance(base, PreTrainedModel):
        raise NoTrialError(f"{type(base).__name__} is no model of transformers")
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        raise NoTrialError("the adapter adds tokens")
    kind, text = base.config.model_type, base.config.get_text_config()
    # More layers than in any pattern would only take time.
    num_layers = min(size_of(text, "layers") or 1, _MAX_LAYERS)
    depth = pattern_length(text, num_layers)
    try:
        while True:
            config = shrunken(base.config, depth)
            # Without memory first, to see its modules and how large it would be.
            with torch.device("meta"):
                skeleton = _build(base, config, torch.float64)
            missing = _missing_kinds(base, skeleton)
            if not missing:
                break
            if depth >= num_layers:
                raise NoTrialError(f"a small {kind} has no {missing[0]}")
            depth = min(2 * depth, num_layers)
        if sum(weight.numel() for weight in skeleton.parameters()) > _MAX_WEIGHTS:
            raise NoTrialError(f"a small {kind} is not small: its config has sizes of other names")
        with suppress(RuntimeError):  # a few models mix float32 into what they compute
            return _build_on_cpu(base, config, torch.float64)
        return _build_on_cpu(base, config, torch.float32)
    except _BUILD_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise NoTrialError(f"a small {kind} cannot be built: {reason}") from error


def kind_of(name: str, module: torch.nn.Module) -> tuple[str, type, frozenset[tuple[str, Any]]]:
    """Returns what modules that compute alike share: their place in a layer, their class, and their switches.

    A number counts as a switch by being zero or not: how far a window reaches, how much is dropped.
    """
    switches = set()
    if not isinstance(module, PreTrainedModel):  # those also remember how they were loaded
        for key, value in vars(module).items():
            if key.startswith("_") or "idx" in key or key in ("training", "gradient_checkpointing"):
                continue
            if value is None or isinstance(value, str | bool):
                switches.add((key, value))
            elif isinstance(value, int | float):
                switches.add((key, "not zero" if value else "zero"))
    return re.sub(r"\d+", "*", name), plain_class(module), frozenset(switches)


def plain_class(module: torch.nn.Module) -> type:
    """Returns the class of a module, below the one that FSDP2 gives it."""
    return type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)


def ordinary_tokens(model: Any) -> list[int]:
    """Returns token ids of plain text, at most 256: those that no config names as special tokens."""
    vocabulary = min(model.get_input_embeddings().num_embeddings, _MAX_TOKENS)
    special = set(special_tokens(levels_of(model.config)))
    return [token for token in range(vocabulary) if token not in special]


def _build_on_cpu(base: Any, config: Any, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        twin = _build(base, config, dtype)
    num_tokens = min(getattr(config.get_text_config(), "max_position_embeddings", 0) or _PROBE, _PROBE)
    tokens = torch.tensor([ordinary_tokens(twin)[:num_tokens]])
    with trial(twin):  # sizes that contradict each other show when it computes
        twin(input_ids=tokens, use_cache=False)
    if any(weight.dtype != dtype for weight in twin.parameters()):
        raise RuntimeError("it keeps some weights in float32")
    return twin.eval()


def _build(base: Any, config: Any, dtype: torch.dtype) -> Any:
    own = base.config._attn_implementation
    return plain_class(base)._from_config(
        config,
        dtype=dtype,
        # Kernels of a GPU, for attention and for experts, take neither the CPU nor float64.
        attn_implementation=own if own in ("sdpa", "eager") else "eager",
        experts_implementation="eager",
    )


def _missing_kinds(base: Any, skeleton: Any) -> list[str]:
    """Returns the modules of the model to which the twin has none of the same place, class and switches."""
    kinds = {kind_of(*named) for named in skeleton.named_modules()}
    missing = []
    for name, module in base.named_modules():
        place, cls, switches = kind_of(name, module)
        # Adapters and narrow weights exchange single matrices; what is tried does not depend on these.
        is_own = not cls.__module__.startswith(_LIBRARIES)
        if is_own and not any((a, b) == (place, cls) and c <= switches for a, b, c in kinds):
            missing.append(f"{name} ({cls.__name__})")
    return missing


@torch.no_grad()
def _draw_weights(twin: Any, gain: float, seed: int) -> None:
    """Gives a model weights of a size at which every part of it shows in its logits."""
    # As transformers draws them, weights are so small that caps and gates hardly show in the logits.
    generator = torch.Generator().manual_seed(seed)
    tables = {id(module.weight) for module in twin.modules() if isinstance(module, torch.nn.Embedding)}
    for weight in twin.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        if weight.ndim < 2:  # scales of norms stay about one
            weight.add_(0.3 * noise)
        else:
            weight.copy_(noise * gain * (1.0 if id(weight) in tables else max(weight.shape[-2:]) ** -0.5))
