# SPDX-License-Identifier: Apache-2.0
"""Compiles each layer of a model on its own, so that all layers share one compilation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter
from oumi.core.plan.choices import NUM_RECOMPUTED

_NORMS_BEHIND = ("post_feedforward", "post_mlp")


def compile_layers(model: Any, recompute: Mapping[str, Any] | None = None) -> None:
    """Makes each decoder layer compile on its first call, with dynamic shapes.

    The compiled code is valid for batches of any length: attention within documents runs uncompiled.

    Args:
        model: A transformers model, with or without an adapter.
        recompute: Arguments of gradient checkpointing, for the layers that have it.

    Raises:
        ConfigError: The model does not name the class of its layers.
    """
    base = below_adapter(model)
    # transformers names the layers in the list of modules that must not be split among devices. get_decoder() leaves
    # out those of a vision part.
    kinds = set(base._no_split_modules or ())
    layers = [module for module in base.get_decoder().modules() if type(module).__name__ in kinds]
    if not layers:
        raise ConfigError(f"training.compile: {base.config.model_type} does not name its layers; leave it out")
    settings = {name: value for name, value in (recompute or {}).items() if name != NUM_RECOMPUTED}
    for layer in layers:
        if not getattr(layer, "gradient_checkpointing", False):
            layer.compile(dynamic=True)
            continue
        _keep_last_product_out(layer, base.get_input_embeddings().weight.shape[1])
        forward = type(layer).forward
        if forward.__code__.co_name == "forward_with_checkpointing":  # the wrapper of transformers >= 5.18
            forward = forward.__wrapped__  # type: ignore[attr-defined]
        # The compiler does not trace into the checkpointing of transformers, so `checkpoint` replaces it.
        layer.gradient_checkpointing = False  # type: ignore[assignment]  # a flag, of modules of transformers
        layer.forward = partial(checkpoint, torch.compile(MethodType(forward, layer), dynamic=True), **settings)


def _keep_last_product_out(layer: torch.nn.Module, width: int) -> None:
    """Leaves the last linear layer of an MLP uncompiled, if its output is added to the residual stream unchanged.

    No gradient depends on that output. Recomputation stops early as soon as all saved tensors exist, but a compiled
    graph always runs to its end, so this layer would be recomputed: a quarter of the recomputation in Llama 8B.
    Excluded are mixtures of experts, MLPs followed by a norm, adapters, and weights in 8 bits or in 32 bits, of which
    mixed precision would keep 16-bit copies.
    """
    named = [(name, module) for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    name, last = named[-1] if named else ("", None)
    has_norm_behind = any(child.startswith(_NORMS_BEHIND) for child, _ in layer.named_children())
    has_experts = any(parameter.ndim > 2 for parameter in layer.parameters())
    if type(last) is not torch.nn.Linear or has_norm_behind or has_experts or "lora" in name or "attn" in name:
        return
    if last.out_features == width and last.weight.dtype in (torch.bfloat16, torch.float16):
        last.forward = torch.compiler.disable(last.forward)  # type: ignore[method-assign]
