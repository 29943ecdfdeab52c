# SPDX-License-Identifier: Apache-2.0
"""Data sets with a column of turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.conversations import chat_of, taught
from oumi.core.data.records.fields import list_of
from oumi.core.data.records.schemas import led_by_system
from oumi.core.datasets import BaseSftDataset
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import Conversation, Role


class TurnsDataset(BaseSftDataset):
    """A column of conversations, whose turns have `role` and `content`, or `from` and `value`."""

    def __init__(
        self, *, messages_column: str = "messages", exclude_final_assistant_message: bool = False, **named: Any
    ) -> None:
        """Sets the column, and whether the last answer is removed, so that a model can be asked for it."""
        super().__init__(**named)
        self.messages_column = messages_column
        self.exclude_final_assistant_message = exclude_final_assistant_message

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the turns as a conversation; a turn whose content is null becomes an empty one."""
        turns = []
        for turn in list_of(example, self.messages_column):
            is_null = isinstance(turn, Mapping) and "content" in turn and turn["content"] is None
            # The content of a turn that calls a tool may stay null.
            turns.append({**turn, "content": ""} if is_null and not turn.get("tool_calls") else turn)
        chat = led_by_system(chat_of(turns, example), example)
        if not self.exclude_final_assistant_message:
            return taught(chat)
        if chat.messages[-1].role == Role.ASSISTANT:  # `chat_of` rejects a chat without turns
            chat.messages.pop()
        return chat


class HuggingFaceDataset(TurnsDataset):
    """Any data set on the Hub with a column of turns."""

    def __init__(self, *, hf_dataset_path: str = "", **named: Any) -> None:
        """Sets the id on the Hub; see TurnsDataset for the other arguments."""
        super().__init__(**named_by(hf_dataset_path, named))


def named_by(hf_dataset_path: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments with the id on the Hub as the name; raises ConfigError without an id, a path or rows."""
    is_here = named.get("dataset_path") or named.get("data") is not None
    if not hf_dataset_path and not is_here:
        raise ConfigError("dataset_kwargs.hf_dataset_path: required: the id of a data set on the Hub")
    return {**named, "dataset_name": hf_dataset_path} if hf_dataset_path else dict(named)
