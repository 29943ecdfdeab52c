# SPDX-License-Identifier: Apache-2.0
"""The common shapes of rows, and the conversion of each: to a chat, a text, a preference and so on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from oumi.core.data.records.conversations import (
    CHAT_COLUMNS,
    IMAGE_COLUMNS,
    UNREAD_MEDIA,
    chat_of,
    has_media,
    role_of,
    taught,
)
from oumi.core.data.records.fields import UnusableValue, field_of, kind_of, list_of, says_nothing, text_of
from oumi.core.data.records.tools import defines_tools
from oumi.core.data.sources.jsonl import shown
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Completion, Judged, Preference, Prompt, RejectedRow, Row, Text

Value = Conversation | Completion | Text | Preference | Judged | Prompt

_SCHEMAS_IN_WORDS = "messages; conversations; instruction, output; prompt, completion; chosen, rejected; text; prompt"

_TURN_KEYS = (("role", "from"), ("content", "value"))
"""The keys of a turn, in either spelling."""

_WEAK = ("text", "prompt")
"""Shapes that are detected by one common key, which rows of other shapes may have too."""
_LOOKS_LIKE = {"kto": ("prompt_completion",), "prompt": ("prompt_completion", "kto", "preference")}
"""Shapes that are detected for a row of this shape if a field is invalid, or if it has further fields."""


def detect_shape(record: Any) -> str | None:
    """Returns the name of a record's shape, None if it has no known shape."""
    if not isinstance(record, Mapping):
        return None
    # The most specific shapes first: a preference may also have `messages` or `prompt`.
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


def fits(shape: str, schema: str | None) -> bool:
    """Returns True if a row whose shape was detected as `schema` can be read with a shape."""
    return schema in (None, *_WEAK, *_LOOKS_LIKE.get(shape, ())) or SHAPES[shape] is SHAPES[str(schema)]


def to_value(row: Row, shape: str | None, schema: str | None = None) -> Row | RejectedRow:
    """Returns a row converted from its stored shape, or the reason why it cannot be.

    Args:
        row: The stored row.
        shape: Shape of the data set; None rejects the row.
        schema: Shape that was detected for this row, if it is to be compared with that of the data set.
    """
    record = row.value
    try:
        if not isinstance(record, Mapping):
            raise UnusableValue(f"a row must be an object, got {kind_of(record)}")
        if shape is None:
            keys = ", ".join(map(str, record)) or "none"
            raise UnusableValue(f"no known shape: its keys are {keys}; known are {_SCHEMAS_IN_WORDS}")
        # A mixture of shapes is more likely a mistake than meant. Shapes that share a converter are the same.
        if not fits(shape, schema):
            hint = ": its 'label' is true or false, and theirs is not" if schema == "kto" else ""
            raise UnusableValue(f"has the shape '{schema}', the rows before it '{shape}'{hint}")
        for key in UNREAD_MEDIA:
            if shape != "text" and has_media(record.get(key)):
                raise UnusableValue(f"has '{key}', which is not built yet")
        if shape != "alpaca" and not says_nothing(record.get("history")):
            raise UnusableValue(f"has 'history', which is only read with instruction and output; this is '{shape}'")
        return Row(led_by_system(SHAPES[shape](record), record), row.source)
    except (UnusableValue, ValueError, TypeError) as error:  # pydantic raises ValueErrors
        return RejectedRow(row.source, str(error), shown(record))


def led_by_system(value: Any, record: Mapping[str, Any]) -> Any:
    """Returns the value with the text of a column `system` as its first turn."""
    # A document has no turns. A prompt keeps its columns for the reward, and `system` may be one.
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
        raise UnusableValue("has 'system', but a prompt of plain text has no system turn")
    first = value.messages[0]
    if first.role != Role.SYSTEM:
        messages = [Message(role=Role.SYSTEM, content=system), *value.messages]
        return value.model_copy(update={"messages": messages})
    if first.content != system:
        raise UnusableValue("has a column 'system' and a system turn, and they differ")
    return value


def _chat(key: str, record: Mapping[str, Any]) -> Conversation:
    return taught(chat_of(list_of(record, key), record))


_conversations = partial(_chat, "conversations")


def _conversation(record: Mapping[str, Any]) -> Conversation:
    inner = field_of(record, "conversation")
    if isinstance(inner, Mapping):  # a whole conversation as `Conversation.to_dict` writes it
        return taught(chat_of(list_of(inner, "messages"), {**record, **inner}))
    return _chat("conversation", record)


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    # `history`, as LLaMA-Factory writes it, has the exchanges before this one.
    history = [] if says_nothing(record.get("history")) else record["history"]
    if not isinstance(history, list):
        raise UnusableValue(f"'history' must be a list of pairs, got {kind_of(history)}")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise UnusableValue("'history' must be a list of pairs of text: question, answer")
    turns = [
        {"role": role, "content": text}
        for exchange in [*history, (_instruction(record), text_of(record, "output"))]
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return taught(chat_of(turns, record))


def _instruction(record: Mapping[str, Any]) -> str:
    text = text_of(record, "input") if record.get("input") else ""
    return f"{text_of(record, 'instruction')}\n\n{text}".strip()


def _prompt_completion(record: Mapping[str, Any]) -> Conversation | Completion:
    key = "response" if "response" in record and "completion" not in record else "completion"
    prompt, completion = field_of(record, "prompt"), field_of(record, key)
    # Turns pass through the chat template; plain text is trained without one.
    if isinstance(prompt, list) and isinstance(completion, list):
        return taught(chat_of(_joined(prompt, completion), record))
    if not text_of(record, key):
        raise UnusableValue(f"'{key}' is empty, so there is nothing to learn")
    _check_plain(record)
    return Completion(text_of(record, "prompt"), text_of(record, key))


def _kto(record: Mapping[str, Any]) -> Judged:
    key = "kto_tag" if "label" not in record and "kto_tag" in record else "label"  # as LLaMA-Factory calls it
    label = judgement_of(field_of(record, key))
    if label is None:
        raise UnusableValue(f"'{key}' must be true or false, got {kind_of(record[key])}")
    turns_key = next(
        (name for name in ("messages", "conversations") if name in record and "prompt" not in record), None
    )
    return Judged(_prompt_completion(record) if turns_key is None else _chat(turns_key, record), label)


def judgement_of(label: Any) -> bool | None:
    """Returns a label as a bool: true or false, 1 or 0, as a value or as text; None for anything else."""
    if isinstance(label, str):  # CSV has no other type
        return {"true": True, "1": True, "false": False, "0": False}.get(label.strip().lower())
    return bool(label) if isinstance(label, (bool, int)) and label in (0, 1) else None


def _text(record: Mapping[str, Any]) -> Text:
    text = text_of(record, "text")
    if not text:
        raise UnusableValue("'text' is empty, so there is nothing to learn")
    _check_plain(record)
    return Text(text)


def _check_plain(record: Mapping[str, Any]) -> None:
    """Raises UnusableValue if a row of plain text has images or tools, which only a chat template writes."""
    if column := next((name for name in IMAGE_COLUMNS if has_media(record.get(name))), None):
        raise UnusableValue(f"has '{column}', but plain text contains no images; write the text as turns")
    if defines_tools(record):
        raise UnusableValue("has tools, but plain text contains none; write the text as turns, or leave the tools out")


def _prompt(record: Mapping[str, Any]) -> Prompt:
    turns = turns_of(field_of(record, "prompt"), "user", "prompt")
    others = {key: value for key, value in record.items() if key != "prompt"}
    # The other columns are for the reward, and may hold anything.
    chat = chat_of(turns, {key: record[key] for key in CHAT_COLUMNS if key in record})
    if chat.tools:
        raise UnusableValue("has tools, which prompts without answers do not support yet")
    return Prompt(tuple(chat.messages), others)


def _preference(record: Mapping[str, Any]) -> Preference:
    chosen = turns_of(field_of(record, "chosen"), "assistant", "chosen")
    rejected = turns_of(field_of(record, "rejected"), "assistant", "rejected")
    # The turns before both answers; none if each of them is a whole chat.
    keys = ("prompt", "conversations", "messages", "question")
    prompt_key = next((key for key in keys if not says_nothing(record.get(key))), None)
    prompt: list[Any] = []
    if prompt_key is not None:
        prompt = turns_of(record[prompt_key], "user", prompt_key)
    elif "instruction" in record:
        prompt = [{"role": "user", "content": _instruction(record)}]
    elif isinstance(record["chosen"], str) and isinstance(record["rejected"], str):
        return _text_preference(record)
    pair = [taught(chat_of(_joined(prompt, answer), record)) for answer in (chosen, rejected)]
    if pair[0].messages == pair[1].messages:
        raise UnusableValue("'chosen' and 'rejected' are the same, so there is nothing to learn")
    if any(len(chat.messages) < 2 for chat in pair):
        raise UnusableValue(
            "no prompt before an answer: expected text in 'prompt', or all turns in 'chosen' and 'rejected'"
        )
    return Preference(*pair)


def _text_preference(record: Mapping[str, Any]) -> Preference:
    """Returns a preference of plain texts, whose prompt may stand before both answers."""
    _check_plain(record)
    chosen, rejected = text_of(record, "chosen"), text_of(record, "rejected")
    prompt = "" if says_nothing(record.get("prompt")) else text_of(record, "prompt")
    if not prompt:
        differs = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
        # The space before a word is part of its token, so it belongs to the answer.
        prompt = chosen[: next(differs, min(len(chosen), len(rejected)))].removesuffix(" ")
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt:
            raise UnusableValue(
                "no prompt before an answer: expected text in 'prompt', or 'chosen' and 'rejected' that begin alike"
            )
    if chosen == rejected:
        raise UnusableValue("'chosen' and 'rejected' are the same, so there is nothing to learn")
    if empty := [name for name, answer in (("chosen", chosen), ("rejected", rejected)) if not answer]:
        raise UnusableValue(f"'{empty[0]}' is empty after the prompt, so there is no answer to compare")
    return Preference(Completion(prompt, chosen), Completion(prompt, rejected))


def turns_of(value: Any, role: str, key: str) -> list[Any]:
    """Returns a list of turns: from text, a turn, a list of turns, or an object with `messages`.

    Args:
        value: The field.
        role: Role of the turn if the field is text.
        key: Name of the field, for messages.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        return list_of(value, "messages") if "messages" in value else [value]
    if isinstance(value, list):
        return value
    raise UnusableValue(f"'{key}' must be text or turns, got {kind_of(value)}")


def _joined(prompt: list[Any], answer: list[Any]) -> list[Any]:
    """Returns the turns of a prompt and an answer; the answer may repeat the prompt, with or without a system turn."""
    prompt_turns, answer_turns = ([_normalized(turn) for turn in turns] for turns in (prompt, answer))
    if not prompt_turns:
        return answer
    # The answer begins with the whole prompt, perhaps after a system turn that the prompt lacks.
    first = int(bool(answer_turns) and answer_turns[0][0] == Role.SYSTEM)
    if prompt_turns in (answer_turns[: len(prompt)], answer_turns[first : first + len(prompt)]):
        return answer
    # The answer begins with all of the prompt but its system turn.
    has_system = prompt_turns[0][0] == Role.SYSTEM
    if has_system and len(prompt) > 1 and answer_turns[: len(prompt) - 1] == prompt_turns[1:]:
        return [prompt[0], *answer]
    # The answer does not repeat the prompt, so a question in it would be another one.
    num_before = next((i for i, (role, _) in enumerate(answer_turns) if role == Role.ASSISTANT), len(answer_turns))
    if any(role == Role.USER for role, _ in answer_turns[:num_before]):
        raise UnusableValue("an answer begins with a question that is not the prompt")
    return [*prompt, *answer]


def _normalized(turn: Any) -> tuple[Any, Any]:
    """Returns the role and the content of a turn in either spelling, without surrounding white space."""
    if not isinstance(turn, Mapping):
        return None, turn  # `chat_of` reports it with its index
    role, content = (next((turn[key] for key in keys if key in turn), None) for keys in _TURN_KEYS)
    return role_of(role), content.strip() if isinstance(content, str) else content


SHAPES: dict[str, Callable[[Mapping[str, Any]], Value]] = {
    "messages": partial(_chat, "messages"),
    "conversation": _conversation,
    "conversations": _conversations,
    "sharegpt": _conversations,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "text_preference": _text_preference,
    "kto": _kto,
    "text": _text,
    "prompt": _prompt,
}
