# SPDX-License-Identifier: Apache-2.0
"""Turns a list of turns, in any common spelling, into a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from oumi.core.data.records.fields import UnusableValue, as_list, json_of, kind_of, says_nothing
from oumi.core.data.records.images import image_item
from oumi.core.data.records.tools import (
    REASONING_KEYS,
    TOOL_KEYS,
    call_of,
    calls_of,
    check_no_tools_elsewhere,
    tools_of_row,
)
from oumi.core.errors import did_you_mean
from oumi.core.types.conversation import ContentItem, Conversation, Message, Role, Type

_ROLES = {
    "system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "human": Role.USER,
    "assistant": Role.ASSISTANT, "gpt": Role.ASSISTANT, "model": Role.ASSISTANT, "chatgpt": Role.ASSISTANT,
    "bot": Role.ASSISTANT, "function_call": Role.ASSISTANT,
    "tool": Role.TOOL, "function": Role.TOOL, "observation": Role.TOOL, "ipython": Role.TOOL,
}  # fmt: skip
# A turn of role `function_call` has the call as its content, so it is never plain.
_PLAIN_ROLES = {name: role for name, role in _ROLES.items() if name != "function_call"}
_TRAIN_KEYS = ("train", "weight", "loss")
IMAGE_COLUMNS = ("images", "image")
"""Columns of the images of a row."""
UNREAD_MEDIA = ("video", "videos", "audio", "audios")
"""Keys of a row or a turn that would change its text, and are rejected rather than ignored."""
CHAT_COLUMNS = (*TOOL_KEYS, *IMAGE_COLUMNS, "conversation_id")
"""Columns that belong to the turns of a row."""
_IMAGE_MARK = re.compile(r"<image(?:[ _](\d{1,4}))?>")
"""Stands for the next image of a row in the text of a turn, or for the one with this number."""


def chat_of(turns: Sequence[Any], record: Mapping[str, Any]) -> Conversation:
    """Returns turns as a conversation, with the tools and images of the record.

    The keys of a turn are `role` and `content`, or `from` and `value`.

    Raises:
        UnusableValue: A turn, a tool or an image is invalid.
    """
    if not turns:
        raise UnusableValue("the conversation is empty")
    images = _Images(record, turns)
    messages = [_message(turn, i, images) for i, turn in enumerate(turns)]
    if len(images.used) < len(images.items):
        raise UnusableValue(f"has {len(images.items)} images, but the turns refer to {len(images.used)}")
    tools = tools_of_row(record, turns[0])
    if tools is None:
        check_no_tools_elsewhere(record, turns)
    systems = [i for i, message in enumerate(messages) if message.role == Role.SYSTEM]
    if len(systems) > 1:
        raise UnusableValue(f"turn {systems[1]}: a second system turn")
    conversation_id = record.get("conversation_id")
    return Conversation(
        messages=messages,
        tools=tools,
        conversation_id=str(conversation_id) if conversation_id is not None else None,
    )


def role_of(name: Any) -> Role | None:
    """Returns the role of a name, None if it is unknown."""
    return _ROLES.get(name) if isinstance(name, str) else None  # a list cannot be looked up


def taught(chat: Conversation) -> Conversation:
    """Returns a chat that has something to train on, and raises UnusableValue for any other."""
    answers = [answer for answer in chat.messages if answer.role == Role.ASSISTANT]
    if not answers:
        raise UnusableValue("no turn of the assistant, so there is nothing to learn")
    if not any(answer.text or answer.tool_calls for answer in answers):
        raise UnusableValue("the assistant says nothing, so there is nothing to learn")
    return chat


def _message(turn: Any, index: int, images: _Images) -> Message:
    """Returns a turn as a message."""
    if not isinstance(turn, Mapping):
        raise UnusableValue(f"turn {index}: must be an object, got {kind_of(turn)}")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    # Most turns have only a role and text. They skip the checks below, which all turns of a data set would pay for.
    if len(turn) == 2 and not images.has_column and isinstance(turn.get(content_key), str):
        name = turn.get(role_key)
        plain_role = _PLAIN_ROLES.get(name) if isinstance(name, str) else None
        if plain_role is not None:
            return Message(role=plain_role, content=turn[content_key])
    calls = calls_of(turn, index)
    for key in (role_key,) if calls else (role_key, content_key):  # a turn that calls a tool may have no content
        if key not in turn:
            raise UnusableValue(f"turn {index}: has no '{key}'{did_you_mean(key, map(str, turn))}")
    name = turn[role_key]
    role = role_of(name)
    if role is None:
        raise UnusableValue(f"turn {index}: unknown role {name!r}{did_you_mean(str(name), _ROLES)}")
    for key in (*IMAGE_COLUMNS, *UNREAD_MEDIA):
        if has_media(turn.get(key)):
            raise UnusableValue(f"turn {index}: has '{key}'; only images are read, from 'images' of the row")
    content = turn.get(content_key)
    if name == "function_call":
        content, calls = None, [call_of(call, index) for call in as_list(json_of(content, f"turn {index}"))]
    if calls and role != Role.ASSISTANT:
        raise UnusableValue(f"turn {index}: 'tool_calls' of {role}; only the assistant calls tools")
    if content is None and not calls:
        raise UnusableValue(f"turn {index}: the content must be text, got null")
    flag_key = next((key for key in _TRAIN_KEYS if turn.get(key) is not None), None)
    if flag_key is not None and turn[flag_key] not in (0, 1):  # False and True are equal to these
        raise UnusableValue(f"turn {index}: '{flag_key}' must be true or false, 1 or 0, got {turn[flag_key]!r}")
    return Message(
        role=role,
        content=None if content is None else _content(content, index, role, images),
        name=_optional_text(turn, "name", index),
        tool_calls=calls or None,
        tool_call_id=_optional_text(turn, "tool_call_id", index),
        reasoning_content=next(filter(None, (_optional_text(turn, key, index) for key in REASONING_KEYS)), None),
        train=None if flag_key is None else bool(turn[flag_key]),
    )


def _content(content: Any, index: int, role: Role, images: _Images) -> str | list[ContentItem]:
    """Returns the content of a turn: text, or parts if there is an image among them."""
    if not isinstance(content, str | list):
        raise UnusableValue(f"turn {index}: the content must be text, got {kind_of(content)}")
    items = images.unplaced() if role == Role.USER else []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        items += _part(part, index, role, images)
    if all(item.is_text() for item in items):
        return "".join(item.content or "" for item in items)
    if role == Role.ASSISTANT:
        raise UnusableValue(f"turn {index}: an image in an answer; models read images, and do not write them")
    return items


def _part(part: Any, index: int, role: Role, images: _Images) -> list[ContentItem]:
    """Returns a part of a content: text with its images, an image, or the image of the row that the part refers to."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        text = part.get("text") if part.get("text") is not None else part.get("content")
        if isinstance(text, str):
            return images.placed(text, role)
    elif isinstance(kind, str) and kind.startswith("image"):
        # OpenAI, Transformers, Oumi and others each use another key.
        values = [part.get(key) for key in (kind, "image", "url", "path", "content", "binary", "bytes")]
        image = next((candidate for candidate in values if not says_nothing(candidate)), None)
        return [images.take(part.get("index")) if image is None else image_item(image, kind)]
    raise UnusableValue(f"turn {index}: a part of type {kind!r} without text; expected text or an image")


def _optional_text(turn: Mapping[str, Any], key: str, index: int) -> str | None:
    value = turn.get(key)
    if says_nothing(value):
        return None
    if not isinstance(value, str):
        raise UnusableValue(f"turn {index}: '{key}' must be text, got {kind_of(value)}")
    return value


class _Images:
    """The images of a row, and which of them its turns refer to: by marks in their text, or by parts of type image."""

    def __init__(self, record: Mapping[str, Any], turns: Sequence[Any]) -> None:
        """Reads the columns of a row; raises UnusableValue for an image that cannot be used."""
        columns = [record[key] for key in IMAGE_COLUMNS if not says_nothing(record.get(key))]
        if len(columns) > 1:
            raise UnusableValue("has 'images' and 'image'; expected one of them")
        self.items = [image_item(image) for value in columns for image in as_list(value)]
        self.used = set[int]()
        self._next = 0
        self.has_column = any(key in record for key in IMAGE_COLUMNS)
        """False if the row cannot have images beside its turns, so that what looks like a mark is text."""
        # If any turn says where an image stands, the first question does not get all of them.
        self._is_placed = not self.items or any(_refers_to_images(turn) for turn in turns)
        # Some rows count their images from 0.
        marks = _IMAGE_MARK.findall(str(turns)) if self.items else ()
        self._first_number = int("0" not in marks)

    def take(self, index: Any = None) -> ContentItem:
        """Returns the image at an index, or the next one; raises UnusableValue if the row has no such image."""
        if index is not None and type(index) is not int:
            raise UnusableValue(f"the index of an image must be a whole number, got {index!r}")
        position = self._next if index is None else index
        if not 0 <= position < len(self.items):
            raise UnusableValue(f"refers to image {position}, but the row has {len(self.items)}")
        self.used.add(position)
        self._next = position + 1
        return self.items[position]

    def unplaced(self) -> list[ContentItem]:
        """Returns all images for the first turn that asks for them if the row does not say where they stand."""
        if self._is_placed:
            return []
        self._is_placed = True
        return [self.take() for _ in self.items]

    def placed(self, text: str, role: Role) -> list[ContentItem]:
        """Returns a text with an image of the row in place of each mark."""
        parts, start = list[ContentItem](), 0
        for mark in _IMAGE_MARK.finditer(text) if self.has_column else ():
            # With a number, an answer speaks of an image, and a row without images of something else.
            if mark[1] is not None and (role == Role.ASSISTANT or not self.items):
                continue
            if mark.start() > start:
                parts.append(ContentItem(type=Type.TEXT, content=text[start : mark.start()]))
            parts.append(self.take(None if mark[1] is None else int(mark[1]) - self._first_number))
            start = mark.end()
        if start < len(text) or not parts:
            parts.append(ContentItem(type=Type.TEXT, content=text[start:]))
        return parts


def has_media(value: Any) -> bool:
    """Returns True unless a column of images, videos or audio says that a row has none."""
    return not (says_nothing(value) or value is False or value == {})


def _refers_to_images(turn: Any) -> bool:
    """Returns True if a turn contains a part of type image, or an image mark that stands for one."""
    if not isinstance(turn, Mapping):
        return False
    content = turn.get("content", turn.get("value"))
    is_answer = role_of(turn.get("role", turn.get("from"))) == Role.ASSISTANT
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        if isinstance(part, Mapping):
            text = part.get("text") or part.get("content")
            marks = _IMAGE_MARK.finditer(text) if isinstance(text, str) else ()
            if str(part.get("type")).startswith("image") or any(not (is_answer and mark[1]) for mark in marks):
                return True
    return False
