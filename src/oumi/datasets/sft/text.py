# SPDX-License-Identifier: Apache-2.0
"""Conversations of any known shape, in local files."""

from __future__ import annotations

from typing import Any

from oumi.core.datasets import ShapedDataset
from oumi.core.errors import ConfigError, did_you_mean

_FORMATS = {
    "oumi": "messages",
    "messages": "messages",
    "conversation": "conversation",
    "conversations": None,  # detected: turns may have either spelling
    "sharegpt": "sharegpt",
    "alpaca": "alpaca",
    "prompt_completion": "prompt_completion",
}


class TextSftDataset(ShapedDataset):
    """Local files, or rows in memory; their shape is `format`, or that of the first row."""

    is_local = True

    def __init__(self, *, format: str | None = None, **named: Any) -> None:
        """Sets the name of the shape; None detects it."""
        super().__init__(**named)
        if format is not None and format not in _FORMATS:
            hint = did_you_mean(format, _FORMATS) or f"; known: {', '.join(_FORMATS)}"
            raise ConfigError(f"dataset_kwargs.format: unknown format '{format}'{hint}")
        self.shape = _FORMATS[format] if format else None


TextSftJsonLinesDataset = TextSftDataset
