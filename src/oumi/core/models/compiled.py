# SPDX-License-Identifier: Apache-2.0
"""Compiles the layers of a model, one by one."""

from __future__ import annotations

from typing import Any

from oumi.core.errors import ConfigError


def compile_layers(model: Any) -> None:
    """Lets each layer of the model's stack be compiled when it is first run.

    Layers share what is compiled, and it holds for batches of any length: the compiler is told that lengths
    change, and attention within documents stands outside of it.

    Raises:
        ConfigError: The model does not say what its layers are.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = set(base._no_split_modules or ())
    layers = [module for module in base.get_decoder().modules() if type(module).__name__ in kinds]
    if not layers:
        raise ConfigError(f"training.compile: {base.config.model_type} does not say what its layers are; leave it out")
    for layer in layers:
        layer.compile(dynamic=True)
