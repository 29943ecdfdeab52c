# SPDX-License-Identifier: Apache-2.0
"""Data sets of documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.datasets.base import BaseIterableDataset
from oumi.core.data.pipeline.concatenate import Concatenation
from oumi.core.data.sources.tabular import SAMPLES
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.types.example import Text

_SHORTEST_ROW = 2
"""Tokens of a row: one that is read, and one that is learned."""


class BasePretrainingDataset(BaseIterableDataset):
    """Documents, all of which are learned."""

    holds = "texts"
    dataset_text_field = "text"
    """Column that holds the text."""

    def __init__(
        self,
        *,
        tokenizer: Any = None,
        dataset_text_field: str | None = None,
        sample_by: str = "document",
        seq_length: int | None = None,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
        skip_last: bool = True,
        **named: Any,
    ) -> None:
        """Takes where the texts are, and how they are joined.

        Args:
            tokenizer: Taken for the sake of old code; a run has its own.
            dataset_text_field: Column that holds the text; None takes that of the class, else `text`.
            sample_by: What is one row of a text file, one of SAMPLES.
            seq_length: Tokens of a row that is cut from documents end to end; None keeps each document by itself.
            append_concat_token: The token that ends a text stands after each document.
            add_special_tokens: What the tokenizer puts around a text stands around each document.
            skip_last: What is left at the end, shorter than a row, is dropped.
            **named: What every data set takes.
        """
        super().__init__(**named)
        if sample_by not in SAMPLES:
            hint = did_you_mean(sample_by, SAMPLES) or f"; known: {', '.join(SAMPLES)}"
            raise ConfigError(f"dataset_kwargs.sample_by: unknown '{sample_by}'{hint}")
        if seq_length is not None and (not isinstance(seq_length, int) or seq_length < _SHORTEST_ROW):
            raise ConfigError(f"dataset_kwargs.seq_length: got {seq_length!r}, must be a whole number, 2 or more")
        self.tokenizer = tokenizer
        self.dataset_text_field = dataset_text_field or type(self).dataset_text_field
        self.sample_by = sample_by
        self.concatenation = None if seq_length is None else Concatenation(seq_length, skip_last)
        self._has_end = append_concat_token
        self._has_specials = add_special_tokens

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a document."""
        text = sample[self.dataset_text_field]
        if not isinstance(text, str) or not text:
            raise ValueError(f"'{self.dataset_text_field}' must be text, and not empty")
        return Text(text, self._has_end, self._has_specials)
