# SPDX-License-Identifier: Apache-2.0
"""Train language models from one YAML file. Names are imported on first use."""

from importlib import import_module
from typing import Any

__version__ = "1.0.0.dev0"

_PUBLIC = {"train": "oumi.core.train:train"}

__all__ = ["__version__", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'oumi' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)
