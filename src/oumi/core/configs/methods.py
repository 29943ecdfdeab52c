# SPDX-License-Identifier: Apache-2.0
"""Arguments of the methods of our own trainer, which `training.trainer_kwargs` holds by the names that TRL has."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from oumi.core.configs.base import Params


class NoSettings(Params):
    """Of a method without arguments of its own."""


class DpoSettings(Params):
    """Arguments of direct preference optimization."""

    beta: PositiveFloat = 0.1
    """How strongly the model is held to the reference: the larger, the closer it stays."""

    loss_type: Literal["sigmoid"] = "sigmoid"
    """`sigmoid` is the loss of the paper, the logistic loss of the margin."""
