# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing: layers that recompute their activations in the backward pass instead of storing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter
from oumi.core.plan.choices import NUM_RECOMPUTED


def recompute_layers(model: Any, settings: Mapping[str, Any]) -> None:
    """Enables gradient checkpointing (arXiv 1604.06174) in all layers or in the first ones.

    With the first ones, the activations of the last layers are freed before the first layers recompute theirs, so the
    two are never in memory together.

    Args:
        model: A transformers model, with or without an adapter.
        settings: Arguments of torch.utils.checkpoint, and the number of checkpointed layers unless it is all of them.

    Raises:
        ConfigError: The model does not support gradient checkpointing, or not for a part of its layers.
    """
    arguments = dict(settings)
    count = arguments.pop(NUM_RECOMPUTED, None)
    base = below_adapter(model)
    layers = [module for module in base.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not base.supports_gradient_checkpointing or (count and not layers):
        raise ConfigError(
            f"training.enable_gradient_checkpointing: {base.config.model_type} does not support it; leave it out"
        )
    # transformers enables it for all layers, so it is disabled again in the others.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    if count:
        for module in base.modules():
            if isinstance(module, GradientCheckpointingLayer):  # including the layers of a vision part
                module.gradient_checkpointing = any(module is layer for layer in layers[:count])
