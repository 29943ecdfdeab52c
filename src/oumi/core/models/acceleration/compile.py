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

_NORMS_BEHIND = ("post_feedforward", "post_mlp")


def compile_layers(model: Any, recompute: Mapping[str, Any] | None = None) -> None:
    """Lets each layer of the model's stack be compiled when it is first run.

    Layers share what is compiled, and it holds for batches of any length: it is compiled for
    lengths that change, and attention within documents is left out of it.

    Args:
        model: Of transformers, with or without an adapter.
        recompute: Arguments of gradient checkpointing, where layers have it.

    Raises:
        ConfigError: The model does not say what its layers are.
    """
    base = below_adapter(model)
    # What must stay on one device is a layer of the stack; the decoder leaves out those of images.
    kinds = set(base._no_split_modules or ())
    layers = [module for module in base.get_decoder().modules() if type(module).__name__ in kinds]
    if not layers:
        raise ConfigError(f"training.compile: {base.config.model_type} does not say what its layers are; leave it out")
    settings = {name: value for name, value in (recompute or {}).items() if name != NUM_RECOMPUTED}
    for layer in layers:  # one by one, so that they share what is compiled
        if not getattr(layer, "gradient_checkpointing", False):
            layer.compile(dynamic=True)
            continue
        _keep_last_product_out(layer, base.get_input_embeddings().weight.shape[1])
        forward = type(layer).forward
        if (
            forward.__code__.co_name == "forward_with_checkpointing"
        ):  # around the layer's own, from transformers 5.18 on
            forward = forward.__wrapped__  # type: ignore[attr-defined]
        # The compiler does not see into the checkpointing of transformers, so ours takes its place.
        layer.gradient_checkpointing = False  # type: ignore[assignment]  # a flag, of modules of transformers
        layer.forward = partial(checkpoint, torch.compile(MethodType(forward, layer), dynamic=True), **settings)


def _keep_last_product_out(layer: torch.nn.Module, width: int) -> None:
    """Leaves the last matrix of a layer's MLP uncompiled, if what it gives goes to the stream as it is.

    Nothing needs that product to be computed again, and what is not compiled stops once the rest is there: in a Llama
    of 8B, a quarter of what would be computed again. Left as they are: MLPs of experts or with a norm behind, adapters,
    8 bits, and 32 bits, of which mixed precision would keep narrow copies.
    """
    named = [(name, module) for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    name, last = named[-1] if named else ("", None)
    has_norm_behind = any(child.startswith(_NORMS_BEHIND) for child, _ in layer.named_children())
    has_experts = any(parameter.ndim > 2 for parameter in layer.parameters())
    if type(last) is not torch.nn.Linear or has_norm_behind or has_experts or "lora" in name or "attn" in name:
        return
    if last.out_features == width and last.weight.dtype in (torch.bfloat16, torch.float16):
        last.forward = torch.compiler.disable(last.forward)  # type: ignore[method-assign]
