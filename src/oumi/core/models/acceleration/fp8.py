# SPDX-License-Identifier: Apache-2.0
"""Matrix products of a model's layers in 8-bit floating point, through torchao (arXiv 2209.05433)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter
from oumi.core.plan.choices import NO_LARGE_LAYER, gains_by_fp8


def use_fp8(model: Any, recipe: str) -> None:
    """Makes each linear layer that is large enough to gain multiply in 8 bits; weights and gradients keep their dtype.

    The head and adapters are not changed. Without a GPU the rounding is emulated, without any gain in speed.

    Args:
        model: A transformers model, with or without an adapter.
        recipe: Recipe of torchao; `rowwise_with_gw_hp` computes the gradients of weights in bfloat16.

    Raises:
        ConfigError: torchao is not installed, or no layer is large enough.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError("training.fp8_recipe: needs: pip install 'oumi[narrow]'") from error
    # The inner dimension of a weight gradient is the number of tokens, which need not be a multiple of 16.
    settings = replace(
        Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True, emulate=model.device.type != "cuda"
    )
    # Without the head: its rounding would directly change the loss.
    decoder = below_adapter(model).get_decoder()

    def gains(module: torch.nn.Module, name: str) -> bool:
        is_linear = isinstance(module, torch.nn.Linear) and "lora_" not in name
        return is_linear and gains_by_fp8(module.weight.shape, recipe)

    if not any(gains(module, name) for name, module in decoder.named_modules()):
        raise ConfigError(NO_LARGE_LAYER)
    convert_to_float8_training(decoder, config=settings, module_filter_fn=gains)
