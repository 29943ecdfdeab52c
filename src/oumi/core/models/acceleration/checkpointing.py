# SPDX-License-Identifier: Apache-2.0
"""Layers that compute their activations again in the backward pass rather than keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter
from oumi.core.plan.choices import NUM_RECOMPUTED


def recompute_layers(model: Any, settings: Mapping[str, Any]) -> None:
    """Turns gradient checkpointing on (arXiv 1604.06174), in all layers or in the first ones.

    What the last layers keep is freed before the first ones compute again, so the two are never in memory together.

    Args:
        model: Of transformers, with or without an adapter.
        settings: Arguments of torch.utils.checkpoint, and how many layers compute again if not all do.

    Raises:
        ConfigError: The model cannot, or not by layers.
    """
    arguments = dict(settings)
    count = arguments.pop(NUM_RECOMPUTED, None)
    base = below_adapter(model)
    layers = [module for module in base.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not base.supports_gradient_checkpointing or (count and not layers):
        raise ConfigError(f"training.enable_gradient_checkpointing: {base.config.model_type} cannot; leave it out")
    # transformers turns it on for all layers alike, so what is to be left out is turned off again.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    if count:
        for module in base.modules():
            if isinstance(module, GradientCheckpointingLayer):  # those of images keep what they compute
                module.gradient_checkpointing = any(module is layer for layer in layers[:count])
