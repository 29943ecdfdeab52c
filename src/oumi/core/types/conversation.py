# SPDX-License-Identifier: Apache-2.0
"""A chat: messages in order, each with the role that speaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Message(BaseModel):
    """What one of them says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str
    id: str | None = None


class Conversation(BaseModel):
    """A chat."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message]
    conversation_id: str | None = None
    metadata: dict[str, Any] = {}

    def first_message(self, role: Role | None = None) -> Message | None:
        """Returns the first message, of `role` if one is named."""
        return next(iter(self.filter_messages(role)), None)

    def last_message(self, role: Role | None = None) -> Message | None:
        """Returns the last message, of `role` if one is named."""
        return next(reversed(self.filter_messages(role)), None)

    def filter_messages(
        self, role: Role | None = None, filter_fn: Callable[[Message], bool] | None = None
    ) -> list[Message]:
        """Returns the messages of a role that a function accepts."""
        return [one for one in self.messages if role in (None, one.role) and (filter_fn is None or filter_fn(one))]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=False)

    def to_json(self) -> str:
        """Returns JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Conversation:
        """Returns the conversation in plain values."""
        return cls.model_validate(data)

    @classmethod
    def from_json(cls, data: str) -> Conversation:
        """Returns the conversation in JSON text."""
        return cls.model_validate_json(data)
