# SPDX-License-Identifier: Apache-2.0
"""The plan's means of speed, put to a model in the one order that works."""

from __future__ import annotations

from typing import Any

from oumi.core.models.acceleration.compile import compile_layers
from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.acceleration.fp8 import use_fp8
from oumi.core.models.acceleration.liger import use_liger
from oumi.core.models.language_model import LanguageModel
from oumi.core.plan.parts import Plan


def accelerate(model: Any, plan: Plan) -> LanguageModel:
    """Returns the model as it is trained: on flat batches if it may take them, with faster layers in place of its own.

    Raises:
        ConfigError: A package is missing, or the model has no place for what the plan names.
    """
    if plan.speed.liger:
        use_liger(model)
    if plan.speed.fused_layers:
        fuse_layers(model)
    language_model = make_flat(model, plan.model.attention, plan.speed)  # tried before products are rounded to 8 bits
    if plan.speed.fused_layers:
        language_model.tie()
    if plan.precision.fp8 is not None:
        use_fp8(model, plan.precision.fp8)
    # The compiler last: what it compiled would not notice a later exchange.
    if plan.speed.compile:
        compile_layers(model, plan.gradient_checkpointing)
    return language_model
