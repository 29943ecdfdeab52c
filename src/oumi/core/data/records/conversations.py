# SPDX-License-Identifier: Apache-2.0
"""Turns a list of turns, in any common spelling, into a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oumi.core.data.records.fields import UnusableValue, json_of, kind_of, says_nothing
from oumi.core.data.records.images import image_item
from oumi.core.data.sources.jsonl import DECODER, LAST_VALUE_DECODER
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
# A turn of role `function_call` has the call as its content, so it is never plain.
_PLAIN_ROLES = {name: role for name, role in _ROLES.items() if name != "function_call"}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TRAIN_KEYS = ("train", "weight", "loss")
_TOOL_KEYS = ("tools", "functions", "tool_defs", "tool_definitions", "available_tools")
"""Names of the definitions of functions, in a row or in its system turn: OpenAI's, its older ones, and others'."""
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")
"""Keys of a function's definition with the schema of its arguments: OpenAI's, Anthropic's and that of MCP."""
_TEXT_COLUMNS = (
    "messages", "conversations", "conversation", "prompt", "question", "completion", "response", "chosen", "rejected",
    "instruction", "input", "output", "system", "history", "text",
)  # fmt: skip
_TEXT_KEYS = ("role", "from", "content", "value", "name", *_REASONING_KEYS)
_CALL_KEYS = ("tool_calls", "function_call")
_READ_KEYS = frozenset((*_TEXT_COLUMNS, *_TEXT_KEYS, *_CALL_KEYS))
"""Keys of rows and turns that are read, in whose text definitions and calls of functions are words."""
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_HAS_ARGUMENTS = re.compile(rf'"(?:{"|".join((*_SCHEMA_KEYS, *_ARGUMENT_KEYS, "description"))})"')
"""Keys of a call with its arguments: OpenAI's, and those of Llama's templates, LangChain and Anthropic."""
IMAGE_COLUMNS = ("images", "image")
"""Columns of the images of a row."""
UNREAD_MEDIA = ("video", "videos", "audio", "audios")
"""Keys of a row or a turn that would change its text, and are rejected rather than ignored."""
CHAT_COLUMNS = (*_TOOL_KEYS, *IMAGE_COLUMNS, "conversation_id")
"""Columns that belong to the turns of a row."""
_IMAGE_MARK = re.compile(r"<image(?:[ _](\d{1,4}))?>")
"""Stands for the next image of a row in the text of a turn, or for the one with this number."""
_MAX_ITEMS = 3
"""Items of a list that are examined: they are of one kind."""


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
        _check_no_tools_elsewhere(record, turns)
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


def tools_of_row(record: Mapping[str, Any], first_turn: Mapping[str, Any]) -> list[ToolDefinition] | None:
    """Returns the tools of a row: from a column, or from its first turn; None if there are none.

    Raises:
        UnusableValue: A tool is invalid, or there are several lists of tools that differ.
    """
    definitions = dict[str, list[ToolDefinition] | None]()
    for place, owner in (("", record), (" of the first turn", first_turn)):
        for key in _TOOL_KEYS:
            # Columns with the other names may hold something else, such as names of functions that were called.
            if key == "tools" or _contains(owner.get(key), _is_named_function, 0):
                definitions[f"'{key}'{place}"] = _tools(owner.get(key), key)
    by_place = {place: tools for place, tools in definitions.items() if tools}
    places = list(by_place)
    if any(tools != by_place[places[0]] for tools in by_place.values()):
        raise UnusableValue(f"has tools in {' and in '.join(places)}, and they differ")
    return by_place[places[0]] if by_place else None


def defines_tools(record: Mapping[str, Any]) -> bool:
    """Returns True if a row has definitions of functions under one of the names of tools."""
    return any(_contains(record.get(key), _is_definition, 0) for key in _TOOL_KEYS)


def _check_no_tools_elsewhere(record: Mapping[str, Any], turns: Sequence[Any]) -> None:
    """Raises UnusableValue if definitions of functions stand under a key that is not read."""
    # Most turns have a role and text, and no more.
    for place in (record, *(turn for turn in turns if len(turn) > 2)):
        for key, value in place.items():
            if key not in _READ_KEYS and _contains(value, _is_definition):
                raise UnusableValue(f"has definitions of functions in '{key}', which is not read: name it 'tools'")


def _contains(value: Any, is_wanted: Callable[[Mapping[str, Any]], bool], depth: int = 2) -> bool:
    """Returns True for an object that is wanted, and for a list, an object or JSON text that holds one.

    Args:
        value: The value.
        is_wanted: Judges the function of an object, or the object itself.
        depth: How many objects deep to search.
    """
    if isinstance(value, str):
        value = _json_or_text(value) if '"name"' in value and _HAS_ARGUMENTS.search(value) else None
    if isinstance(value, list):
        return any(_contains(item, is_wanted, depth) for item in value[:_MAX_ITEMS])
    if not isinstance(value, Mapping):
        return False
    function = value.get("function", value)
    if isinstance(function, Mapping) and isinstance(function.get("name"), str) and is_wanted({**value, **function}):
        return True
    return depth > 0 and any(_contains(item, is_wanted, depth - 1) for item in value.values())


def _is_definition(function: Mapping[str, Any]) -> bool:
    schemas = [function[key] for key in _SCHEMA_KEYS if isinstance(function.get(key), Mapping)]
    # The arguments of a call, or settings of a program, may have such a key, too, but are no schema.
    return any(schema.get("type") == "object" or isinstance(schema.get("properties"), Mapping) for schema in schemas)


def _is_named_function(function: Mapping[str, Any]) -> bool:
    return "description" in function or any(key in function for key in _SCHEMA_KEYS)


def _is_call(function: Mapping[str, Any]) -> bool:
    return any(key in function for key in _ARGUMENT_KEYS) and not _is_definition(function)


def _json_or_text(value: Any) -> Any:
    try:
        is_json = isinstance(value, str) and value.lstrip().startswith(("[", "{"))
        return json_of(value, "") if is_json else value
    except UnusableValue:
        return value


def _tools(value: Any, key: str) -> list[ToolDefinition] | None:
    """Returns the tools of a row: a list of function schemas, or such a list as JSON text; None if there are none."""
    if says_nothing(value) or (isinstance(value, str) and not value.strip()):
        return None
    value = json_of(value, f"'{key}'")
    if says_nothing(value):
        return None
    if not isinstance(value, list):
        raise UnusableValue(f"'{key}' must be a list of functions, got {kind_of(value)}")
    definitions = []
    for tool in value:
        schema = json_of(tool, "a tool")
        # Some rows have the function itself, without the `{"type": "function"}` around it.
        function = schema.get("function", schema) if isinstance(schema, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UnusableValue(f"a tool must be an object with a 'name', got {str(schema)[:40]}")
        definitions.append(ToolDefinition(function=dict(function)))
    return definitions


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
    calls = _calls(turn, index)
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
        content, calls = None, [_call(call, index) for call in _as_list(json_of(content, f"turn {index}"))]
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
        reasoning_content=next(filter(None, (_optional_text(turn, key, index) for key in _REASONING_KEYS)), None),
        train=None if flag_key is None else bool(turn[flag_key]),
    )


def _calls(turn: Mapping[str, Any], index: int) -> list[ToolCall]:
    """Returns the tool calls of a turn: a list, the same as JSON text, or the older single `function_call`."""
    calls, older_call = turn.get("tool_calls"), turn.get("function_call")
    if says_nothing(calls):
        calls = [] if says_nothing(older_call) else [older_call]
    elif not says_nothing(older_call):
        raise UnusableValue(f"turn {index}: has 'tool_calls' and 'function_call'; expected one of them")
    if isinstance(calls, str):
        calls = _as_list(json_of(calls, f"turn {index}: 'tool_calls'"))
    if not isinstance(calls, list):
        raise UnusableValue(f"turn {index}: 'tool_calls' must be a list, got {kind_of(calls)}")
    for key, value in turn.items() if not calls else ():
        if key not in _READ_KEYS and _contains(value, _is_call):
            raise UnusableValue(f"turn {index}: has calls in '{key}', which is not read: name it 'tool_calls'")
    return [_call(call, index) for call in calls]


def _call(value: Any, index: int) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableValue(f"turn {index}: a tool call must be an object with a 'name', got {str(value)[:40]}")
    fields = {**value, **function}
    key = next((key for key in _ARGUMENT_KEYS if fields.get(key) is not None), None)
    others = [name for name in fields if name not in ("name", "id", "type", "index", "function", *_ARGUMENT_KEYS)]
    if unread := next((name for name in others if key is None and not says_nothing(fields[name])), None):
        raise UnusableValue(f"turn {index}: a tool call has no 'arguments', but '{unread}', which is not read")
    call_id = value.get("id")
    return ToolCall(
        id=str(call_id) if call_id is not None else None,
        function=FunctionCall(
            name=function["name"], arguments=_arguments(fields[key], f"turn {index}") if key else "{}"
        ),
    )


def _arguments(arguments: Any, where: str) -> str:
    """Returns the arguments of a call as the JSON text of an object."""
    where = f"{where}: arguments of a tool call"
    if isinstance(arguments, Mapping):
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    if not isinstance(arguments, str):
        raise UnusableValue(f"{where} must be an object, got {kind_of(arguments)}")
    # An empty text stands for no arguments. Any other text must be an object, as the template may read it.
    if arguments.strip() in ("", "null"):
        return "{}"
    values = json_of(arguments, where, LAST_VALUE_DECODER)
    if not isinstance(values, Mapping):
        raise UnusableValue(f"{where}: expected a JSON object, got {arguments[:40]}")
    try:
        DECODER.decode(arguments)
    except ValueError:  # of two equal keys, templates read the last; the text should say no more than they read
        return json.dumps(values, ensure_ascii=False)
    return arguments


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


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Images:
    """The images of a row, and which of them its turns refer to: by marks in their text, or by parts of type image."""

    def __init__(self, record: Mapping[str, Any], turns: Sequence[Any]) -> None:
        """Reads the columns of a row; raises UnusableValue for an image that cannot be used."""
        columns = [record[key] for key in IMAGE_COLUMNS if not says_nothing(record.get(key))]
        if len(columns) > 1:
            raise UnusableValue("has 'images' and 'image'; expected one of them")
        self.items = [image_item(image) for value in columns for image in _as_list(value)]
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
