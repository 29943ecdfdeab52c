# SPDX-License-Identifier: Apache-2.0
"""Data sets whose shape is detected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from oumi.core.data.datasets.base import VALUES
from oumi.core.data.datasets.chats import BaseSftDataset
from oumi.core.data.records.schemas import detect_shape, fits, to_value
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Judged, Preference, Prompt, RejectedRow, Row, Text

_TYPES: Mapping[str, type] = {"kto": Judged, "preference": Preference, "prompt": Prompt, "text": Text}


class ShapedDataset(BaseSftDataset):
    """Rows of any known shape. The shape of the first row is that of the data set."""

    shape: str | None = None

    def value_of(self, row: Row | RejectedRow) -> Row | RejectedRow:
        """Returns a row converted, or the reason why it cannot be used."""
        if isinstance(row, RejectedRow) or isinstance(row.value, VALUES):
            return row
        schema = detect_shape(row.value)  # of each row: one of another shape is rejected
        self.shape = self.shape or schema
        return to_value(row, self.shape, schema)

    @property
    def holds(self) -> type:  # type: ignore[override]  # detected, not declared
        """Returns the type of the converted rows; reading it fixes the shape of the data set."""
        if self.shape is None:
            # Broken rows have no shape. No more rows are read than it takes to find one.
            rows = (row for row in self.raw_rows() if isinstance(row, Row))
            self.shape = next(filter(None, (detect_shape(row.value) for row in rows)), None)
        return _TYPES.get(self.shape or "", Conversation)

    def read_as(self, types: Collection[type]) -> None:
        """Sets the shape to that of one of the types, if the rows can be read so; a method accepts these types."""
        if self.holds not in types:
            # A text is detected by its only key, so no row of another shape is one.
            shapes = (shape for shape, type_ in _TYPES.items() if type_ in types and type_ is not Text)
            self.shape = next((shape for shape in shapes if fits(shape, self.shape)), self.shape)

    def transform_conversation(self, example: Any) -> Any:
        """Returns the row itself, which is converted by its shape."""
        return example
