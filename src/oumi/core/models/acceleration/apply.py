# SPDX-License-Identifier: Apache-2.0
"""Applies the optimizations of a plan to a model, in the only order that works."""

from __future__ import annotations

from typing import Any

from oumi.core.log import logger
from oumi.core.models.acceleration.compile import compile_layers
from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.acceleration.fp8 import use_fp8
from oumi.core.models.acceleration.liger import use_liger
from oumi.core.models.build import router_loss_coefficient
from oumi.core.models.custom import CustomModel
from oumi.core.models.language_model import LanguageModel
from oumi.core.plan.parts import Plan


def accelerate(model: Any, plan: Plan) -> LanguageModel:
    """Returns the model for training, with faster layers, on flat batches if its attention supports them.

    Raises:
        ConfigError: A package is missing, or the model does not support an optimization of the plan.
    """
    if isinstance(model, CustomModel):
        return LanguageModel(model, is_flat=False)
    if router_loss_coefficient(model):
        # It is one number for all tokens of a batch, so it would depend on how a step is cut.
        logger.warning("the router's auxiliary loss, which the model's config asks for, is not part of the loss")
    if plan.speed.liger:
        use_liger(model)
    if plan.speed.fused_layers:
        fuse_layers(model)
    # Before fp8, whose rounding would hide whether flat batches give the same numbers.
    language_model = make_flat(model, plan.model.attention, plan.speed, plan.method.spec.documents_per_row > 1)
    if plan.speed.fused_layers:
        language_model.tie()
    if plan.precision.fp8 is not None:
        use_fp8(model, plan.precision.fp8)
    # Last: compiled code would not see a module that is replaced later.
    if plan.speed.compile:
        compile_layers(model, plan.gradient_checkpointing)
    return language_model
