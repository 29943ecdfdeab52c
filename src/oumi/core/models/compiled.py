# SPDX-License-Identifier: Apache-2.0
"""Compiles the layers of a model, one by one."""

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


def compile_layers(model: Any, recompute: Mapping[str, Any] | None = None) -> None:
    """Lets each layer of the model's stack be compiled when it is first run.

    Layers share what is compiled, and it holds for batches of any length: the compiler is told that lengths
    change, and attention within documents stands outside of it.

    Args:
        model: Of transformers, with or without an adapter.
        recompute: Arguments of gradient checkpointing, where layers have it.

    Raises:
        ConfigError: The model does not say what its layers are.
    """
    base = below_adapter(model)
    kinds = set(base._no_split_modules or ())
    layers = [module for module in base.get_decoder().modules() if type(module).__name__ in kinds]
    if not layers:
        raise ConfigError(f"training.compile: {base.config.model_type} does not say what its layers are; leave it out")
    settings = {name: value for name, value in (recompute or {}).items() if name != NUM_RECOMPUTED}
    for layer in layers:
        if getattr(layer, "gradient_checkpointing", False):
            _keep_last_product_out(layer, base.get_input_embeddings().weight.shape[1])
            _compile_within(layer, settings)
        else:
            layer.compile(dynamic=True)


def _keep_last_product_out(layer: torch.nn.Module, width: int) -> None:
    """Leaves a layer's last matrix uncompiled, if it writes to the stream, and no adapter or 8-bit form has changed it.

    Nothing of a layer needs that product to be computed again, and what is not compiled stops once the rest is there:
    in a Llama of 8B, a quarter of what would be computed again.
    """
    named = [(name, module) for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    if not named:
        return
    name, last = named[-1]
    if type(last) is torch.nn.Linear and last.out_features == width and "lora" not in name:
        last.forward = torch.compiler.disable(last.forward)  # type: ignore[method-assign]


def _compile_within(layer: torch.nn.Module, settings: Mapping[str, Any]) -> None:
    """Compiles what a layer computes again; the compiler does not see into the checkpointing of transformers."""
    forward = type(layer).forward
    if forward.__code__.co_name == "forward_with_checkpointing":  # around the layer's own, from transformers 5.18 on
        forward = forward.__wrapped__  # type: ignore[attr-defined]
    layer.gradient_checkpointing = False  # type: ignore[assignment]  # a flag, of modules of transformers
    layer.forward = partial(checkpoint, torch.compile(MethodType(forward, layer), dynamic=True), **settings)
