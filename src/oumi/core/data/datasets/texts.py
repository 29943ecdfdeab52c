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
"""Tokens of a row: one to read, and one to predict."""


class BasePretrainingDataset(BaseIterableDataset):
    """A data set of documents, which are trained on completely."""

    holds = Text
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
        """Sets the column of the texts, and how documents are joined.

        Args:
            tokenizer: Not used, kept for compatibility: a run has its own.
            dataset_text_field: Column of the text; None uses that of the class, `text` by default.
            sample_by: Unit of a text file that is one row, one of SAMPLES.
            seq_length: Tokens of a row. Documents are joined end to end and cut; None keeps them apart.
            append_concat_token: Add the end token after each document.
            add_special_tokens: Add the special tokens of the tokenizer to each document.
            skip_last: Drop the last row if it is shorter than `seq_length`.
            **named: Arguments of BaseIterableDataset.

        Raises:
            ConfigError: `sample_by` is unknown, or `seq_length` too small.
        """
        super().__init__(**named)
        if sample_by not in SAMPLES:
            hint = did_you_mean(sample_by, SAMPLES) or f"; known: {', '.join(SAMPLES)}"
            raise ConfigError(f"dataset_kwargs.sample_by: unknown '{sample_by}'{hint}")
        if seq_length is not None and (not isinstance(seq_length, int) or seq_length < _SHORTEST_ROW):
            raise ConfigError(f"dataset_kwargs.seq_length: got {seq_length!r}, must be a whole number, 2 or more")
        self.tokenizer = tokenizer
        # A subclass may set the column as a class attribute.
        self.dataset_text_field = dataset_text_field or type(self).dataset_text_field
        self.sample_by = sample_by
        self.concatenation = None if seq_length is None else Concatenation(seq_length, skip_last)
        self._has_end = append_concat_token
        self._has_specials = add_special_tokens

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a document; raises ValueError if it has no text."""
        text = sample[self.dataset_text_field]
        if not isinstance(text, str) or not text:
            raise ValueError(f"'{self.dataset_text_field}' must be text, and not empty")
        return Text(text, self._has_end, self._has_specials)
