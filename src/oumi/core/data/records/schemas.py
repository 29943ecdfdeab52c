# SPDX-License-Identifier: Apache-2.0
"""The shapes in which people keep chats, texts and preferences, and what each becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from oumi.core.data.records.conversations import chat_of, role_of, taught
from oumi.core.data.records.fields import UnusableValue, field_of, kind_of, list_of, says_nothing, text_of
from oumi.core.data.sources.jsonl import shown
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Completion, Judged, Preference, Prompt, RejectedRow, Row, Text

Value = Conversation | Completion | Text | Preference | Judged | Prompt

_SCHEMAS_IN_WORDS = "messages; conversations; instruction, output; prompt, completion; chosen, rejected; text; prompt"

_NAMES = (("role", "from"), ("content", "value"))
"""How turns call their speaker and their words."""

_WEAK = ("text", "prompt")
"""Shapes of one key, which may stand in a row of another shape."""
_LOOKS_LIKE = {"kto": ("prompt_completion",), "prompt": ("prompt_completion", "kto", "preference")}
"""What a row of a shape is taken for when a field is wrong, or when it has more of them."""


def detect_shape(record: Any) -> str | None:
    """Returns the name of the record's shape, None if it has none that is known."""
    if not isinstance(record, Mapping):
        return None
    if "chosen" in record and "rejected" in record:
        return "preference"
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
        return "kto" if judgement_of(record.get("label")) is not None else "prompt_completion"
    return next((name for name in ("text", "prompt") if name in record), None)


def to_values(rows: Iterable[Row | RejectedRow], shape: str | None = None) -> Iterator[Row | RejectedRow]:
    """Yields the rows with their records as conversations, completions, texts, preferences or prompts.

    The shape is that of the first row unless one is named; a row of another shape is a bad row.
    """
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
            continue
        schema = detect_shape(row.value)
        shape = shape or schema
        yield to_value(row, shape, schema)


def to_value(row: Row, shape: str | None, schema: str | None = None) -> Row | RejectedRow:
    """Returns one row of a shape as what it stands for, or why it is not of that shape."""
    try:
        return Row(_value(row.value, shape, schema), row.source)
    except (UnusableValue, ValueError, TypeError) as error:  # of pydantic, too
        return RejectedRow(row.source, str(error), shown(row.value))


def _value(record: Any, shape: str | None, schema: str | None) -> Value:
    if not isinstance(record, Mapping):
        raise UnusableValue(f"a row is an object with keys, got {kind_of(record)}")
    if shape is None:
        keys = ", ".join(map(str, record)) or "none"
        raise UnusableValue(f"no known shape: its keys are {keys}; known are {_SCHEMAS_IN_WORDS}")
    may_be = schema in (None, *_WEAK) or SHAPES[shape] is SHAPES[str(schema)] or schema in _LOOKS_LIKE.get(shape, ())
    if not may_be:
        raise UnusableValue(f"has the shape '{schema}', the rows before it '{shape}'")
    for key in ("videos", "audios"):
        if not says_nothing(record.get(key)):
            raise UnusableValue(f"the row: has '{key}', which is not built yet")
    if shape != "alpaca" and not says_nothing(record.get("history")):
        raise UnusableValue(f"has 'history', which only stands beside instruction and output; this is '{shape}'")
    return led_by_system(SHAPES[shape](record), record)


def led_by_system(value: Any, record: Mapping[str, Any]) -> Any:
    """Returns the value with what a column `system` says as its first turn."""
    if says_nothing(record.get("system")) or isinstance(value, (Text, Prompt)):
        return value
    system = text_of(record, "system")
    if isinstance(value, Preference):
        return Preference(_led_by(value.chosen, system), _led_by(value.rejected, system))
    if isinstance(value, Judged):
        return Judged(_led_by(value.value, system), value.is_good)
    return _led_by(value, system)


def _led_by(value: Conversation | Completion, system: str) -> Conversation:
    if isinstance(value, Completion):
        raise UnusableValue("has 'system', for which a prompt of plain text has no place")
    first = value.messages[0]
    if first.role != Role.SYSTEM:
        return value.model_copy(
            update={"messages": [Message(role=Role.SYSTEM, content=system), *value.messages]},
        )
    if first.content != system:
        raise UnusableValue("has a column 'system' and a first turn of the system, and they differ")
    return value


def _messages(record: Mapping[str, Any]) -> Conversation:
    return taught(chat_of(list_of(record, "messages"), record))


def _conversation(record: Mapping[str, Any]) -> Conversation:
    inside = field_of(record, "conversation")
    if isinstance(inside, Mapping):
        return taught(chat_of(list_of(inside, "messages"), {**record, **inside}))
    return taught(chat_of(list_of(record, "conversation"), record))


def _conversations(record: Mapping[str, Any]) -> Conversation:
    return taught(chat_of(list_of(record, "conversations"), record))


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    exchanges = [*_history(record), (_instruction(record), text_of(record, "output"))]
    return taught(
        chat_of(
            [
                {"role": role, "content": text}
                for exchange in exchanges
                for role, text in zip(("user", "assistant"), exchange, strict=True)
            ],
            record,
        )
    )


def _instruction(record: Mapping[str, Any]) -> str:
    text = text_of(record, "input") if record.get("input") else ""
    return f"{text_of(record, 'instruction')}\n\n{text}".strip()


def _history(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the exchanges of question and answer that came before."""
    history = record.get("history")
    if says_nothing(history):
        return []
    if not isinstance(history, list):
        raise UnusableValue(f"'history' must be a list of pairs, got {kind_of(history)}")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise UnusableValue("'history' must be a list of pairs of text: question, answer")
    return [(question, answer) for question, answer in history]


def _prompt_completion(record: Mapping[str, Any]) -> Conversation | Completion:
    key = "response" if "response" in record and "completion" not in record else "completion"
    prompt, completion = field_of(record, "prompt"), field_of(record, key)
    if isinstance(prompt, list) and isinstance(completion, list):
        return taught(chat_of(_joined(prompt, completion), record))
    if not text_of(record, key):
        raise UnusableValue(f"'{key}' is empty, so there is nothing to learn")
    return Completion(text_of(record, "prompt"), text_of(record, key))


def _kto(record: Mapping[str, Any]) -> Judged:
    label = judgement_of(field_of(record, "label"))
    if label is None:
        raise UnusableValue(f"'label' must be true or false, got {kind_of(record['label'])}")
    return Judged(_prompt_completion(record), label)


def judgement_of(label: Any) -> bool | None:
    """Returns what a label says: true or false, 1 or 0, as a value or, from a table, as text; None if nothing."""
    if isinstance(label, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(label.strip().lower())
    return bool(label) if isinstance(label, (bool, int)) and label in (0, 1) else None


def _text(record: Mapping[str, Any]) -> Text:
    text = text_of(record, "text")
    if not text:
        raise UnusableValue("'text' is empty, so there is nothing to learn")
    return Text(text)


def _prompt(record: Mapping[str, Any]) -> Prompt:
    turns = turns_of(field_of(record, "prompt"), "user", "prompt")
    others = {key: value for key, value in record.items() if key != "prompt"}
    return Prompt(tuple(chat_of(turns, record).messages), others)


def _preference(record: Mapping[str, Any]) -> Preference:
    chosen = turns_of(field_of(record, "chosen"), "assistant", "chosen")
    rejected = turns_of(field_of(record, "rejected"), "assistant", "rejected")
    begins = _beginning(record)
    pair = [taught(chat_of(_joined(begins, end), record)) for end in (chosen, rejected)]
    if pair[0].messages == pair[1].messages:
        raise UnusableValue("'chosen' and 'rejected' are the same, so there is nothing to learn")
    if pair[0].messages[0] != pair[1].messages[0]:
        raise UnusableValue("'chosen' and 'rejected' begin differently, so they do not answer the same")
    return Preference(*pair)


def _beginning(record: Mapping[str, Any]) -> list[Any]:
    """Returns the turns that both answers follow; none where each of them is a whole chat."""
    for key in ("prompt", "conversations", "messages", "question"):
        if not says_nothing(record.get(key)):
            return turns_of(record[key], "user", key)
    return [{"role": "user", "content": _instruction(record)}] if "instruction" in record else []


def turns_of(value: Any, role: str, key: str) -> list[Any]:
    """Returns what may be a text, one turn, a list of turns or an object that holds such a list."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        return list_of(value, "messages") if "messages" in value else [value]
    if isinstance(value, list):
        return value
    raise UnusableValue(f"'{key}' must be text or turns, got {kind_of(value)}")


def _joined(begins: list[Any], end: list[Any]) -> list[Any]:
    """Returns the turns of a beginning and an end that may itself repeat the beginning, with its system or without."""
    begins_spoken, end_spoken = ([_spoken(turn) for turn in turns] for turns in (begins, end))
    if not begins_spoken:
        return end
    has_system, leads = begins_spoken[0][0] == Role.SYSTEM, bool(end_spoken) and end_spoken[0][0] == Role.SYSTEM
    if end_spoken[: len(begins_spoken)] == begins_spoken or (
        leads and end_spoken[1 : 1 + len(begins_spoken)] == begins_spoken
    ):
        return end
    if has_system and len(begins_spoken) > 1 and end_spoken[: len(begins_spoken) - 1] == begins_spoken[1:]:
        return [begins[0], *end]
    before = next((i for i, (role, _) in enumerate(end_spoken) if role == Role.ASSISTANT), len(end_spoken))
    if any(role == Role.USER for role, _ in end_spoken[:before]):
        raise UnusableValue("an answer begins with a question that is not the prompt")
    return [*begins, *end]


def _spoken(turn: Any) -> tuple[Any, Any]:
    """Returns who speaks in a turn, and what, without white space around it."""
    if not isinstance(turn, Mapping):
        return None, turn
    role, content = (next((turn[key] for key in keys if key in turn), None) for keys in _NAMES)
    return role_of(role), content.strip() if isinstance(content, str) else content


SHAPES: dict[str, Callable[[Mapping[str, Any]], Value]] = {
    "messages": _messages,
    "conversation": _conversation,
    "conversations": _conversations,
    "sharegpt": _conversations,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "kto": _kto,
    "text": _text,
    "prompt": _prompt,
}
