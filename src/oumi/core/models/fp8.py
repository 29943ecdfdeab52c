# SPDX-License-Identifier: Apache-2.0
"""Matrix products of a model's layers in 8-bit floating point, by torchao (arXiv 2209.05433)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter


def use_fp8(model: Any, recipe: str) -> None:
    """Lets each layer that is large enough to gain multiply in 8 bits; weights and gradients stay what they were.

    The head and adapters are left alone. Without a GPU the rounding is the same, and nothing is faster.

    Args:
        model: Of transformers, with or without an adapter.
        recipe: Of torchao; `rowwise_with_gw_hp` leaves the gradients of weights in bfloat16.

    Raises:
        ConfigError: torchao is not installed, or no layer is large enough.
    """
    try:
        from torchao.float8 import Float8LinearConfig, _auto_filter_for_recipe, convert_to_float8_training
        from torchao.float8.float8_linear import Float8Linear
    except ImportError as error:
        raise ConfigError("training.fp8_recipe: needs: pip install 'oumi[gpu]'") from error
    # The inner dimension of a weight's gradient is the number of tokens, which need be no multiple of 16.
    settings = replace(
        Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True, emulate=model.device.type != "cuda"
    )
    scaling = recipe.removesuffix("_with_gw_hp")  # torchao measured sizes for these alone
    decoder = below_adapter(model).get_decoder()
    convert_to_float8_training(
        decoder, config=settings, module_filter_fn=_auto_filter_for_recipe(scaling, filter_fqns=["lora_"])
    )
    if not any(isinstance(module, Float8Linear) for module in decoder.modules()):
        raise ConfigError("training.fp8_recipe: no layer of this model is large enough to gain by it; leave it out")
