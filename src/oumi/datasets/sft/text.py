# SPDX-License-Identifier: Apache-2.0
"""Chats in a local file, of any known shape."""

from __future__ import annotations

from typing import Any

from oumi.core.datasets import ShapedDataset
from oumi.core.errors import ConfigError, did_you_mean

_FORMATS = {
    "oumi": "messages",
    "messages": "messages",
    "conversation": "conversation",
    "conversations": None,
    "sharegpt": "sharegpt",
    "alpaca": "alpaca",
    "prompt_completion": "prompt_completion",
}


class TextSftDataset(ShapedDataset):
    """Local files; the shape is that of the first row, or `format`."""

    def __init__(self, *, format: str | None = None, **named: Any) -> None:
        """Takes the name of the shape, if it is not to be found out."""
        super().__init__(**named)
        if format is not None and format not in _FORMATS:
            hint = did_you_mean(format, _FORMATS) or f"; known: {', '.join(_FORMATS)}"
            raise ConfigError(f"dataset_kwargs.format: unknown format '{format}'{hint}")
        self.shape = _FORMATS[format] if format else None
        if self.dataset_path is None:
            raise ConfigError(f"data set '{self.dataset_name}': needs dataset_path, a file, a directory or a pattern")


TextSftJsonLinesDataset = TextSftDataset
