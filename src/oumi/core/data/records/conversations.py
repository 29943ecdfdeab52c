# SPDX-License-Identifier: Apache-2.0
"""A list of turns, as people write them, as a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oumi.core.data.records.fields import UnusableValue, kind_of, says_nothing
from oumi.core.data.records.images import image_item
from oumi.core.errors import did_you_mean
from oumi.core.types.conversation import (
    ContentItem,
    Conversation,
    FunctionCall,
    Message,
    Role,
    ToolCall,
    ToolDefinition,
    Type,
)

_ROLES = {
    "system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "human": Role.USER,
    "assistant": Role.ASSISTANT, "gpt": Role.ASSISTANT, "model": Role.ASSISTANT, "chatgpt": Role.ASSISTANT,
    "bot": Role.ASSISTANT, "function_call": Role.ASSISTANT,
    "tool": Role.TOOL, "function": Role.TOOL, "observation": Role.TOOL, "ipython": Role.TOOL,
}  # fmt: skip
_PLAIN_ROLES = {name: role for name, role in _ROLES.items() if name != "function_call"}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_FLAGS = ("train", "weight", "loss")
_UNBUILT = ("images", "videos", "audios")
"""What would change the text of a turn, and is not built."""


def chat_of(turns: Sequence[Any], record: Mapping[str, Any]) -> Conversation:
    """Returns turns as a conversation, with the tools and images that stand beside them in the record.

    A turn names its speaker and its words by `role` and `content`, or by `from` and `value`.
    """
    if not turns:
        raise UnusableValue("the conversation is empty")
    images = _Images(record)
    messages = [_message(turn, i, images) for i, turn in enumerate(turns)]
    images.check_used()
    systems = [i for i, message in enumerate(messages) if message.role == Role.SYSTEM]
    if len(systems) > 1:
        raise UnusableValue(f"turn {systems[1]}: a second turn of the system")
    conversation_id = record.get("conversation_id")
    return Conversation(
        messages=messages,
        tools=tools_of(record.get("tools")),
        conversation_id=str(conversation_id) if conversation_id is not None else None,
    )


def role_of(name: Any) -> Role | None:
    """Returns the role that a name means, None if it means none."""
    return _ROLES.get(name) if isinstance(name, str) else None


def taught(chat: Conversation) -> Conversation:
    """Returns a chat of which something can be learned; raises Unusable for any other."""
    answers = [answer for answer in chat.messages if answer.role == Role.ASSISTANT]
    if not answers:
        raise UnusableValue("no turn of the assistant, so there is nothing to learn")
    if not any(answer.text or answer.tool_calls for answer in answers):
        raise UnusableValue("the assistant says nothing, so there is nothing to learn")
    return chat


def tools_of(value: Any) -> list[ToolDefinition] | None:
    """Returns the functions that a row offers: a list of schemas, or such a list as JSON text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise UnusableValue(f"'tools' is text, but not JSON: {value[:40]}") from None
    if says_nothing(value):
        return None
    if not isinstance(value, list):
        raise UnusableValue(f"'tools' must be a list of functions, got {kind_of(value)}")
    return [_tool(tool) for tool in value]


def _tool(value: Any) -> ToolDefinition:
    if isinstance(value, str):
        value = _parsed(value, "a tool")
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableValue(f"a tool must be an object with a 'name', got {str(value)[:40]}")
    return ToolDefinition(function=dict(function))


def _message(turn: Any, index: int, images: _Images) -> Message:
    if not isinstance(turn, Mapping):
        raise UnusableValue(f"turn {index}: must be an object, got {kind_of(turn)}")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    if len(turn) == 2 and images.is_empty and isinstance(turn.get(content_key), str):
        name = turn.get(role_key)
        plain = _PLAIN_ROLES.get(name) if isinstance(name, str) else None  # most turns are no more than that
        if plain is not None:
            return Message(role=plain, content=turn[content_key])
    calls = _calls(turn, index)
    for key in (role_key,) if calls else (role_key, content_key):
        if key not in turn:
            raise UnusableValue(f"turn {index}: has no '{key}'{did_you_mean(key, map(str, turn))}")
    name = turn[role_key]
    role = role_of(name)
    if role is None:
        raise UnusableValue(f"turn {index}: unknown role {name!r}{did_you_mean(str(name), _ROLES)}")
    for key in _UNBUILT:
        if not says_nothing(turn.get(key)):
            raise UnusableValue(f"turn {index}: has '{key}', which stands beside the turns: 'images' of the row")
    content = turn.get(content_key)
    if name == "function_call":
        content, calls = None, [_call(call, index) for call in _as_list(_parsed(content, f"turn {index}"))]
    if calls and role != Role.ASSISTANT:
        raise UnusableValue(f"turn {index}: 'tool_calls' of {role}; only the assistant calls tools")
    if content is None and not calls:
        raise UnusableValue(f"turn {index}: the content must be text, got null")
    return Message(
        role=role,
        content=None if content is None else _content(content, index, role, images),
        name=_optional_text(turn, "name", index),
        tool_calls=calls or None,
        tool_call_id=_optional_text(turn, "tool_call_id", index),
        reasoning_content=next(filter(None, (_optional_text(turn, key, index) for key in _THOUGHTS)), None),
        train=_flag(turn, index),
    )


def _calls(turn: Mapping[str, Any], index: int) -> list[ToolCall]:
    calls = turn.get("tool_calls")
    if says_nothing(calls):
        calls = [] if says_nothing(turn.get("function_call")) else [turn["function_call"]]
    if isinstance(calls, str):
        calls = _as_list(_parsed(calls, f"turn {index}: 'tool_calls'"))
    if not isinstance(calls, list):
        raise UnusableValue(f"turn {index}: 'tool_calls' must be a list, got {kind_of(calls)}")
    return [_call(call, index) for call in calls]


def _call(value: Any, index: int) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableValue(f"turn {index}: a tool call must be an object with a 'name', got {str(value)[:40]}")
    call_id = value.get("id")
    arguments = function.get("arguments", function.get("parameters"))
    return ToolCall(
        id=str(call_id) if call_id is not None else None,
        function=FunctionCall(name=function["name"], arguments=arguments),
    )


def _flag(turn: Mapping[str, Any], index: int) -> bool | None:
    for key in _FLAGS:
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # false and true, too
            raise UnusableValue(f"turn {index}: '{key}' must be true or false, 1 or 0, got {value!r}")
        return bool(value)
    return None


def _content(content: Any, index: int, role: Role, images: _Images) -> str | list[ContentItem]:
    if isinstance(content, str):
        return images.placed(content) if role == Role.USER else content
    if not isinstance(content, list):
        raise UnusableValue(f"turn {index}: the content must be text, got {kind_of(content)}")
    items = [_part(part, index, images) for part in content]
    if all(item.is_text() for item in items):
        return "".join(item.content or "" for item in items)
    return items


def _part(part: Any, index: int, images: _Images) -> ContentItem:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        text = next((candidate for candidate in (part.get("text"), part.get("content")) if candidate is not None), None)
        if isinstance(text, str):
            return ContentItem(type=Type.TEXT, content=text)
    elif isinstance(kind, str) and kind.startswith("image"):
        values = [part.get(key) for key in (kind, "image", "url", "path", "content", "binary", "bytes")]
        image = next((candidate for candidate in values if not says_nothing(candidate)), None)
        return images.take(part.get("index")) if image is None else image_item(image, kind)
    raise UnusableValue(f"turn {index}: a part of kind {kind!r} without text; there are text and images")


def _optional_text(turn: Mapping[str, Any], key: str, index: int) -> str | None:
    value = turn.get(key)
    if says_nothing(value):
        return None
    if not isinstance(value, str):
        raise UnusableValue(f"turn {index}: '{key}' must be text, got {kind_of(value)}")
    return value


def _parsed(value: Any, where: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise UnusableValue(f"{where}: wanted JSON, got {value[:40]}") from None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Images:
    """The images that stand beside the turns, each taken by its place in the text."""

    _MARK = "<image>"

    def __init__(self, record: Mapping[str, Any]) -> None:
        value = record.get("images") if not says_nothing(record.get("images")) else record.get("image")
        values = [] if says_nothing(value) else _as_list(value)
        self._all = [image_item(image) for image in values]
        self._next = 0

    @property
    def is_empty(self) -> bool:
        """Returns True if the row has none beside its turns."""
        return not self._all

    def take(self, index: Any = None) -> ContentItem:
        """Returns the image at an index, else the next one."""
        at = index if isinstance(index, int) else self._next
        if not 0 <= at < len(self._all):
            raise UnusableValue(f"names image {at}, but the row has {len(self._all)}")
        self._next = max(self._next, at + 1)
        return self._all[at]

    def placed(self, text: str) -> str | list[ContentItem]:
        """Returns a text with the images that it marks; without marks, the row's images come first."""
        if not self._all:
            return text
        if self._MARK not in text:
            rest = [self.take() for _ in self._all[self._next :]]
            return [*rest, ContentItem(type=Type.TEXT, content=text)] if rest else text
        return list(self._split(text))

    def _split(self, text: str) -> Iterator[ContentItem]:
        for i, part in enumerate(text.split(self._MARK)):
            if i:
                yield self.take()
            if part:
                yield ContentItem(type=Type.TEXT, content=part)

    def check_used(self) -> None:
        """Raises Unusable if an image has no place in the chat."""
        if self._next < len(self._all):
            raise UnusableValue(f"has {len(self._all)} images, of which the turns name {self._next}")
