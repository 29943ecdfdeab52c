# SPDX-License-Identifier: Apache-2.0
"""Dolly, in the version curated by Argilla."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of, text_of
from oumi.core.datasets import BaseSftDataset
from oumi.core.types.conversation import Conversation, Message, Role


class DollyDataset(BaseSftDataset):
    """Instructions with answers, some of them with a context."""

    default_dataset = "argilla/databricks-dolly-15k-curated-en"

    def __init__(self, *, use_new_fields: bool = True, **named: Any) -> None:
        """Sets whether the curated or the original columns are read."""
        super().__init__(**named)
        self._prefix = "new" if use_new_fields else "original"

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a row as a question and an answer; a context follows the instruction."""
        question, answer = (self._text(example, name) for name in ("instruction", "response"))
        if f"{self._prefix}-context" in example and (context := self._text(example, "context")):
            question = f"{question}\n\nContext: {context}"
        if not answer:
            raise UnusableValue(f"'{self._prefix}-response' is empty, so there is nothing to learn")
        return Conversation(
            messages=[Message(role=Role.USER, content=question), Message(role=Role.ASSISTANT, content=answer)]
        )

    def _text(self, example: Mapping[str, Any], name: str) -> str:
        """Returns the text of a column; curated columns have a list of annotations, of which the first is taken."""
        key = f"{self._prefix}-{name}"
        value = field_of(example, key)
        if isinstance(value, Mapping):
            values = field_of(value, "value")
            value = (values[0] if values else "") if isinstance(values, list) else values
        # A context may be null; for any other column, `text_of` reports it.
        return text_of({key: "" if value is None and name == "context" else value}, key)
