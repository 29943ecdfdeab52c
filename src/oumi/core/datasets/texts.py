# SPDX-License-Identifier: Apache-2.0
"""Data sets of documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.readers import SAMPLES
from oumi.core.datasets.rows import BaseIterableDataset
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.types.example import Text


class BasePretrainingDataset(BaseIterableDataset):
    """Documents, all of which are learned."""

    holds = "texts"

    def __init__(self, *, dataset_text_field: str = "text", sample_by: str = "document", **named: Any) -> None:
        """Takes the column that holds the text, and what is one row of a text file."""
        super().__init__(**named)
        if sample_by not in SAMPLES:
            hint = did_you_mean(sample_by, SAMPLES) or f"; known: {', '.join(SAMPLES)}"
            raise ConfigError(f"dataset_kwargs.sample_by: unknown '{sample_by}'{hint}")
        self.dataset_text_field = dataset_text_field
        self.sample_by = sample_by

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a document."""
        text = sample[self.dataset_text_field]
        if not isinstance(text, str) or not text:
            raise ValueError(f"'{self.dataset_text_field}' must be text, and not empty")
        return Text(text)
