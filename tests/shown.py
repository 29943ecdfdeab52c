# SPDX-License-Identifier: Apache-2.0
"""What rows stand for, in words that a test can compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from oumi.core.datasets import ShapedDataset
from oumi.core.types.conversation import Conversation, Message
from oumi.core.types.example import Completion, Judged, Preference, Prompt, RejectedRow, Row, Text


def shown(value: Any) -> Any:
    """Returns a value in words."""
    match value:
        case Conversation():
            return [text_of(message) for message in value.messages]
        case Completion():
            return f"{value.prompt}|{value.completion}"
        case Preference():
            return shown(value.chosen), shown(value.rejected)
        case Judged():
            return shown(value.value), value.is_good
        case Prompt():
            return [text_of(message) for message in value.messages], dict(value.columns)
    assert isinstance(value, Text)
    return value.text


def text_of(message: Message) -> str:
    parts = [
        item.content if item.is_text() else f"[{item.type} {item.content or str(item.binary)[2:-1]}]"
        for item in message.content_items
    ]
    return f"{message.role}: {''.join(map(str, parts))}"


def to_values(rows: Iterable[Row | RejectedRow], shape: str | None = None) -> Iterator[Row | RejectedRow]:
    """Yields rows as a data set converts them whose shape is `shape`, else that of the first row."""
    dataset = ShapedDataset(data=[])
    dataset.shape = shape
    return map(dataset.value_of, rows)
