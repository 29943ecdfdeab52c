# SPDX-License-Identifier: Apache-2.0
"""The shapes in which people keep chats, and how each becomes a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from oumi.core.data.readers import excerpt
from oumi.core.errors import did_you_mean
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import BadRow, Completion, Row

Value = Conversation | Completion

_ROLES = {
    "system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "human": Role.USER,
    "assistant": Role.ASSISTANT, "gpt": Role.ASSISTANT, "model": Role.ASSISTANT, "chatgpt": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "tool": Role.TOOL, "function": Role.TOOL, "observation": Role.TOOL,
}  # fmt: skip

_OF_A_CHAT = ("tools", "images", "videos", "audios")
_OF_A_TURN = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "weight", "train", "loss")
"""What would change the text or what of it is trained, and is not built yet."""


class Unusable(Exception):  # noqa: N818  it says what a row is
    """A record that does not have the shape."""


def detect_shape(record: Any) -> str | None:
    """Returns the name of the record's shape, None if it has none that is known."""
    if not isinstance(record, Mapping):
        return None
    if "messages" in record:
        return "messages"
    if "conversation" in record:
        return "conversation"
    if "conversations" in record:
        turns = record["conversations"]
        is_sharegpt = isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "from" in turns[0]
        return "sharegpt" if is_sharegpt else "conversations"
    if "instruction" in record and "output" in record:
        return "alpaca"
    if "prompt" in record and ("completion" in record or "response" in record):
        return "prompt_completion"
    return None


def to_conversations(rows: Iterable[Row | BadRow], shape: str | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows with their values as conversations, or as prompt and completion.

    The shape is that of the first row unless one is named; a row of another shape is a bad row.
    """
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        found = detect_shape(row.value)
        shape = shape or found
        yield _convert(row, shape, found)


def _convert(row: Row, shape: str | None, found: str | None) -> Row | BadRow:
    try:
        return Row(_value(row.value, shape, found), row.source)
    except Unusable as error:
        return BadRow(row.source, str(error), excerpt(str(row.value)))


def _value(record: Any, shape: str | None, found: str | None) -> Value:
    if not isinstance(record, Mapping):
        raise Unusable(f"a row is an object with keys, got {_kind(record)}")
    if shape is None:
        keys = ", ".join(map(str, record)) or "none"
        known = "messages; conversations; instruction, output; prompt, completion"
        raise Unusable(f"no known shape; its keys are {keys}; known are {known}")
    if found not in (None, shape) and record.get("conversations") != []:  # an empty chat has either shape
        raise Unusable(f"has the shape '{found}', the rows before it '{shape}'")
    _refuse_unbuilt(record, _OF_A_CHAT, "the row")
    if shape != "alpaca" and not _says_nothing(record.get("history")):
        raise Unusable(f"has 'history', which only stands beside instruction and output; this is '{shape}'")
    return _with_system(SHAPES[shape](record), record)


def _with_system(value: Value, record: Mapping[str, Any]) -> Value:
    """Returns the value with what a column `system` says as its first turn."""
    if _says_nothing(record.get("system")):
        return value
    system = _text(record, "system")
    if isinstance(value, Completion):
        raise Unusable("has 'system', for which a prompt of plain text has no place")
    first = value.messages[0]
    if first.role != Role.SYSTEM:
        return Conversation(messages=[Message(role=Role.SYSTEM, content=system), *value.messages])
    if first.content != system:
        raise Unusable("has a column 'system' and a first turn of the system, and they differ")
    return value


def _messages(record: Mapping[str, Any]) -> Conversation:
    return _chat(_list(record, "messages"), "role", "content")


def _conversation(record: Mapping[str, Any]) -> Conversation:
    inside = _field(record, "conversation")
    turns = _list(inside, "messages") if isinstance(inside, Mapping) else _list(record, "conversation")
    return _chat(turns, "role", "content")


def _conversations(record: Mapping[str, Any]) -> Conversation:
    return _chat(_list(record, "conversations"), "role", "content")


def _sharegpt(record: Mapping[str, Any]) -> Conversation:
    return _chat(_list(record, "conversations"), "from", "value")


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    question = f"{_text(record, 'instruction')}\n\n{_text(record, 'input') if record.get('input') else ''}".strip()
    exchanges = [*_history(record), (question, _text(record, "output"))]
    messages = [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return _chat(messages, "role", "content")


def _history(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the exchanges of question and answer that came before."""
    history = record.get("history")
    if _says_nothing(history):
        return []
    if not isinstance(history, list):
        raise Unusable(f"'history' must be a list of pairs, got {_kind(history)}")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Unusable("'history' must be a list of pairs of text: question, answer")
    return [(question, answer) for question, answer in history]


def _prompt_completion(record: Mapping[str, Any]) -> Value:
    key = "response" if "response" in record and "completion" not in record else "completion"
    prompt, completion = _field(record, "prompt"), _field(record, key)
    if isinstance(prompt, list) and isinstance(completion, list):
        return _chat([*prompt, *completion], "role", "content")
    if not _text(record, key):
        raise Unusable(f"'{key}' is empty, so there is nothing to learn")
    return Completion(_text(record, "prompt"), _text(record, key))


SHAPES: dict[str, Callable[[Mapping[str, Any]], Value]] = {
    "messages": _messages,
    "conversation": _conversation,
    "conversations": _conversations,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


def _chat(turns: list[Any], role_key: str, content_key: str) -> Conversation:
    if not turns:
        raise Unusable("the conversation is empty")
    messages = [_message(turn, i, role_key, content_key) for i, turn in enumerate(turns)]
    answers = [one for one in messages if one.role == Role.ASSISTANT]
    if not answers:
        raise Unusable("no turn of the assistant, so there is nothing to learn")
    if not any(one.content for one in answers):
        raise Unusable("the assistant says nothing, so there is nothing to learn")
    return Conversation(messages=messages)


def _message(turn: Any, index: int, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable(f"turn {index}: must be an object, got {_kind(turn)}")
    for key in (role_key, content_key):
        if key not in turn:
            raise Unusable(f"turn {index}: has no '{key}'{did_you_mean(key, map(str, turn))}")
    name = turn[role_key]
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Unusable(f"turn {index}: unknown role {name!r}{did_you_mean(str(name), _ROLES)}")
    _refuse_unbuilt(turn, _OF_A_TURN, f"turn {index}")
    return Message(role=role, content=_content(turn[content_key], index))


def _refuse_unbuilt(record: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        value = record.get(key)
        if not _says_nothing(value) and value != 1:  # as a weight, and as True
            raise Unusable(f"{where}: has '{key}', which is not built yet")


def _says_nothing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, list) and not value)


def _content(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable(f"turn {index}: the content must be text, got {_kind(content)}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        found = [part.get(key) for key in ("text", "content")] if isinstance(part, Mapping) else []
        text = next((one for one in found if one is not None), None)
        if kind != "text" or not isinstance(text, str):
            raise Unusable(f"turn {index}: a part of kind {kind!r}; text only, images are not built yet")
        texts.append(text)
    return "".join(texts)


def _field(record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        raise Unusable(f"has no '{key}'{did_you_mean(key, map(str, record))}")
    return record[key]


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = _field(record, key)
    if not isinstance(value, list):
        raise Unusable(f"'{key}' must be a list of turns, got {_kind(value)}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value = _field(record, key)
    if not isinstance(value, str):
        raise Unusable(f"'{key}' must be text, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
    }
    return names.get(type(value), "an object")
