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
    """Chats in a column, each turn with `role` and `content`, or `from` and `value`, of any role that is known."""

    def __init__(
        self, *, messages_column: str = "messages", exclude_final_assistant_message: bool = False, **named: Any
    ) -> None:
        """Takes the column, and whether the last answer is left out, as it is to be asked for."""
        super().__init__(**named)
        self.messages_column = messages_column
        self.exclude_final_assistant_message = exclude_final_assistant_message

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the turns as a conversation; a turn without content is an empty one."""
        turns = [_filled(turn) for turn in list_of(example, self.messages_column)]
        chat = led_by_system(chat_of(turns, example), example)
        if not self.exclude_final_assistant_message:
            return taught(chat)
        if chat.messages[-1].role == Role.ASSISTANT:
            chat.messages.pop()
        return chat


class HuggingFaceDataset(TurnsDataset):
    """Any data set of the Hub with a column of turns."""

    def __init__(self, *, hf_dataset_path: str = "", **named: Any) -> None:
        """Takes its id on the Hub; the rest as TurnsDataset does."""
        super().__init__(**named_by(hf_dataset_path, named))


def named_by(hf_dataset_path: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a data set with an id of the Hub as its name; raises ConfigError if none is given."""
    is_here = named.get("dataset_path") or named.get("data") is not None
    if not hf_dataset_path and not is_here:
        raise ConfigError("dataset_kwargs.hf_dataset_path: required: the id of a data set on the Hub")
    return {**named, "dataset_name": hf_dataset_path} if hf_dataset_path else dict(named)


def _filled(turn: Any) -> Any:
    is_empty = isinstance(turn, Mapping) and "content" in turn and turn["content"] is None
    return {**turn, "content": ""} if is_empty and not turn.get("tool_calls") else turn
