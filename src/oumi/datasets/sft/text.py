# SPDX-License-Identifier: Apache-2.0
"""Chats in a local file, of any known shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oumi.core.datasets import ShapedDataset
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.types.example import BadRow, Row

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
    """A `.jsonl`, `.json` or `.parquet` file; the shape is that of its first row, or `format`."""

    def __init__(self, *, format: str | None = None, **named: Any) -> None:
        """Takes the name of the shape, if it is not to be found out."""
        super().__init__(**named)
        if format is not None and format not in _FORMATS:
            hint = did_you_mean(format, _FORMATS) or f"; known: {', '.join(_FORMATS)}"
            raise ConfigError(f"dataset_kwargs.format: unknown format '{format}'{hint}")
        self.shape = _FORMATS[format] if format else None

    def raw_rows(self) -> Iterator[Row | BadRow]:
        """Yields the rows of the file."""
        if self.dataset_path is None:
            raise ConfigError(f"data set '{self.dataset_name}': needs dataset_path, a .jsonl, .json or .parquet file")
        return super().raw_rows()


TextSftJsonLinesDataset = TextSftDataset
