# SPDX-License-Identifier: Apache-2.0
"""Named data sets, reached through `oumi.core.datasets.DATASETS` or by their classes."""

from importlib import import_module
from typing import Any

_CLASSES = {
    "AlpacaDataset": "oumi.datasets.sft.alpaca",
    "QuickstartDataset": "oumi.datasets.sft.quickstart",
    "TextSftDataset": "oumi.datasets.sft.text",
    "TextSftJsonLinesDataset": "oumi.datasets.sft.text",
}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'oumi.datasets' has no attribute {name!r}")
    return getattr(import_module(_CLASSES[name]), name)
