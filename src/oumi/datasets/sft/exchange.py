# SPDX-License-Identifier: Apache-2.0
"""Data sets with a question and an answer per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import text_of
from oumi.core.datasets import BaseSftDataset
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.datasets.sft.turns import named_by


class ExchangeDataset(BaseSftDataset):
    """A column of questions and one of answers; a row without an answer becomes a question alone."""

    def __init__(self, *, prompt_column: str = "instruction", response_column: str = "output", **named: Any) -> None:
        """Sets the names of the columns."""
        super().__init__(**named)
        self.prompt_column = prompt_column
        self.response_column = response_column

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a row as a question and an answer."""
        question = Message(role=Role.USER, content=text_of(example, self.prompt_column))
        # Null is no answer; a missing column is an error, which `text_of` reports.
        if example.get(self.response_column, "") is None:
            return Conversation(messages=[question])
        answer = text_of(example, self.response_column)
        return Conversation(messages=[question, *([Message(role=Role.ASSISTANT, content=answer)] if answer else [])])


class PromptResponseDataset(ExchangeDataset):
    """Any data set on the Hub with such columns."""

    def __init__(self, *, hf_dataset_path: str = "O1-OPEN/OpenO1-SFT", **named: Any) -> None:
        """Sets the id on the Hub; see ExchangeDataset for the other arguments."""
        super().__init__(**named_by(hf_dataset_path, named))
