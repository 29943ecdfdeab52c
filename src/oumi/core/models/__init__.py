# SPDX-License-Identifier: Apache-2.0
"""Models. The class that users subclass is imported on first use, since it needs torch."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "BaseModel":
        raise AttributeError(f"module 'oumi.core.models' has no attribute {name!r}")
    from oumi.core.models.base_model import BaseModel

    return BaseModel
