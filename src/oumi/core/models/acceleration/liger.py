# SPDX-License-Identifier: Apache-2.0
"""Replaces the norms and MLPs of a model by Liger's GPU kernels (arXiv 2410.10989)."""

from __future__ import annotations

import sys
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter


def check_liger(model: Any) -> None:
    """Raises ConfigError if Liger is not installed, or has no kernels for this model type."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KINDS
    except ImportError as error:
        raise ConfigError("model.enable_liger_kernel: needs: pip install 'oumi[gpu]'") from error
    kind = model.config.model_type
    if kind not in KINDS:
        raise ConfigError(f"model.enable_liger_kernel: Liger has no kernels for {kind}; leave it out")


def use_liger(model: Any) -> None:
    """Replaces the norms and MLPs of this model only; the loss is not changed.

    Raises:
        ConfigError: See `check_liger`.
    """
    check_liger(model)
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    base = below_adapter(model)
    namespace = vars(sys.modules[type(base).__module__])
    original = dict(namespace)
    # Not rope: its function is global, so all models of the process would change.
    _apply_liger_kernel_to_instance(model=base, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    namespace.update(original)  # Liger also replaces classes in the module, for models that are built later
