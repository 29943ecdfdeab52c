# SPDX-License-Identifier: Apache-2.0
"""Data sets whose rows tell themselves what they are."""

from __future__ import annotations

from typing import Any

from oumi.core.data.datasets.base import VALUES
from oumi.core.data.datasets.chats import BaseSftDataset
from oumi.core.data.records.schemas import detect_shape, to_value
from oumi.core.types.example import RejectedRow, Row

_HELD = {"preference": "preferences", "kto": "judged completions", "prompt": "prompts", "text": "texts"}


class ShapedDataset(BaseSftDataset):
    """Rows whose shape is found by looking at them: that of the first row is the shape of all."""

    shape: str | None = None

    def value_of(self, row: Row | RejectedRow) -> Row | RejectedRow:
        """Returns a row as what it stands for, or as one that cannot be used."""
        if isinstance(row, RejectedRow) or isinstance(row.value, VALUES):
            return row
        schema = detect_shape(row.value)
        self.shape = self.shape or schema
        return to_value(row, self.shape, schema)

    @property
    def holds(self) -> str:  # type: ignore[override]  # found out, not declared
        """Returns which kind of value the rows stand for; from here on all must be of it."""
        if self.shape is None:
            rows = (row for row in self.raw_rows() if isinstance(row, Row))
            self.shape = next(filter(None, (detect_shape(row.value) for row in rows)), None)
        return _HELD.get(self.shape or "", "chats")

    def transform_conversation(self, example: Any) -> Any:
        """Returns the row itself: its shape says what it is."""
        return example
