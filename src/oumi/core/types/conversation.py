# SPDX-License-Identifier: Apache-2.0
"""Conversations: messages in order, each with the role of its speaker."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import Base64Bytes, BaseModel, ConfigDict, field_serializer, field_validator, model_validator


class Role(StrEnum):
    """Role of the speaker of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Type(StrEnum):
    """Type of a part of a message."""

    TEXT = "text"
    IMAGE_PATH = "image_path"
    IMAGE_URL = "image_url"
    IMAGE_BINARY = "image_binary"

    @property
    def is_image(self) -> bool:
        """Returns True for an image, given by path, URL or bytes."""
        return self != Type.TEXT


class ContentItem(BaseModel):
    """A part of a message: text, or an image given by path, URL or bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Type
    content: str | None = None
    """The text, the path or the URL."""
    binary: bytes | None = None
    """Bytes of an image, base64 in JSON."""

    # Not `Base64Bytes` itself: it decodes bytes too, so those of an image could not be passed as they are.
    @field_validator("binary", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        return _FromBase64(data=value.encode()).data if isinstance(value, str) else value

    @field_serializer("binary", when_used="json-unless-none")
    def _encode(self, value: bytes) -> str:
        from base64 import b64encode

        return b64encode(value).decode()

    @model_validator(mode="after")
    def _check(self) -> ContentItem:
        # An image given by path or URL may have its bytes too.
        if self.type == Type.TEXT and (self.content is None or self.binary is not None):
            raise ValueError("a part of type text must have 'content' and no 'binary'")
        if self.type == Type.IMAGE_BINARY and not self.binary:
            raise ValueError("a part of type image_binary must have a 'binary' that is not empty")
        if self.type in (Type.IMAGE_PATH, Type.IMAGE_URL) and not self.content and not self.binary:
            raise ValueError(f"a part of type {self.type} must have a 'content' that is not empty")
        return self

    def is_text(self) -> bool:
        """Returns True for text."""
        return self.type == Type.TEXT

    def is_image(self) -> bool:
        """Returns True for an image."""
        return self.type.is_image


class _FromBase64(BaseModel):
    data: Base64Bytes


class FunctionCall(BaseModel):
    """The function of a tool call, and its arguments as JSON text."""

    model_config = ConfigDict(frozen=True, extra="allow")  # OpenAI and others add keys, which templates may read

    name: str
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _to_json(cls, value: Any) -> Any:
        # Rows have arguments as text, as OpenAI does, or as an object, as many templates do.
        if value is None:
            return "{}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def values(self) -> Any:
        """Returns the arguments as values, or as text if they are not JSON."""
        try:
            return json.loads(self.arguments)
        except ValueError:
            return self.arguments


class ToolCall(BaseModel):
    """A tool call of the assistant."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str | None = None
    type: str = "function"
    function: FunctionCall


class ToolDefinition(BaseModel):
    """A function that the assistant may call, in the format of the OpenAI API."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = "function"
    function: dict[str, Any]


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")  # a misspelled key must not be dropped silently

    role: Role
    content: str | list[ContentItem] | None = None
    id: str | None = None
    name: str | None = None
    """Name of the speaker, or of the tool that returned this result."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    """Id of the tool call that returned this result."""
    reasoning_content: str | None = None
    """Reasoning of the assistant before its answer."""
    train: bool | None = None
    """Whether the message is trained on; None leaves it to the run."""

    @model_validator(mode="after")
    def _check(self) -> Message:
        if self.content is None and not self.tool_calls:  # an assistant that calls tools may say nothing
            raise ValueError("a message must have 'content' or 'tool_calls'")
        return self

    @property
    def text(self) -> str:
        """Returns the text of the message; its text parts are joined without a separator."""
        if isinstance(self.content, list):
            return "".join(item.content or "" for item in self.content if item.is_text())
        return self.content or ""

    @property
    def content_items(self) -> list[ContentItem]:
        """Returns the parts of the message; plain text is one part."""
        if isinstance(self.content, list):
            return self.content
        return [] if self.content is None else [ContentItem(type=Type.TEXT, content=self.content)]

    @property
    def text_content_items(self) -> list[ContentItem]:
        """Returns the parts that are text."""
        return [item for item in self.content_items if item.is_text()]

    @property
    def image_content_items(self) -> list[ContentItem]:
        """Returns the parts that are images."""
        return [item for item in self.content_items if item.is_image()]

    def contains_images(self) -> bool:
        """Returns True if a part is an image."""
        # Not `content_items`, which would build a part for each plain text.
        return isinstance(self.content, list) and any(item.is_image() for item in self.content)

    def contains_text(self) -> bool:
        """Returns True if a part is text."""
        return bool(self.text_content_items)

    def compute_flattened_text_content(self, separator: str = " ") -> str:
        """Returns the text parts of the message, joined by a separator."""
        return separator.join(item.content or "" for item in self.text_content_items)


class Conversation(BaseModel):
    """A conversation."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message]
    conversation_id: str | None = None
    metadata: dict[str, Any] = {}  # pydantic copies the default for each instance
    tools: list[ToolDefinition] | None = None
    """Functions that the assistant may call."""

    def __getitem__(self, index: int) -> Message:
        return self.messages[index]

    def first_message(self, role: Role | None = None) -> Message | None:
        """Returns the first message, that of `role` if set; None if there is none."""
        return next(iter(self.filter_messages(role)), None)

    def last_message(self, role: Role | None = None) -> Message | None:
        """Returns the last message, that of `role` if set; None if there is none."""
        return next(reversed(self.filter_messages(role)), None)

    def filter_messages(
        self, role: Role | None = None, filter_fn: Callable[[Message], bool] | None = None
    ) -> list[Message]:
        """Returns the messages of `role` for which `filter_fn` returns True; None accepts all."""
        return [
            message
            for message in self.messages
            if role in (None, message.role) and (filter_fn is None or filter_fn(message))
        ]

    def contains_images(self) -> bool:
        """Returns True if a message contains an image."""
        return any(message.contains_images() for message in self.messages)

    def append_id_to_string(self, text: str) -> str:
        """Returns the text, followed by `_` and the id of the conversation if it has one."""
        return f"{text}_{self.conversation_id}" if self.conversation_id else text

    def to_dict(self) -> dict[str, Any]:
        """Returns the conversation as plain values, without fields that are None."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=False)

    def to_json(self) -> str:
        """Returns the conversation as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Conversation:
        """Returns a conversation from plain values; raises pydantic's ValidationError if they are invalid."""
        return cls.model_validate(data)

    @classmethod
    def from_json(cls, data: str) -> Conversation:
        """Returns a conversation from JSON text; raises pydantic's ValidationError if it is invalid."""
        return cls.model_validate_json(data)
