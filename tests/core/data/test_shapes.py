# SPDX-License-Identifier: Apache-2.0
"""Every shape in which people keep chats becomes the same conversation."""

from __future__ import annotations

from typing import Any

import pytest

from oumi.core.data.shapes import detect_shape, to_conversations
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import BadRow, Completion, Row, Source

USER, ASSISTANT, SYSTEM = ("user", "Hi?"), ("assistant", "Yo."), ("system", "Be kind.")


def turns(*pairs: tuple[str, str], role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: who, content: what} for who, what in pairs]


SHAPES: dict[str, tuple[str, Any, list[tuple[str, str]]]] = {
    "messages": ("messages", {"messages": turns(SYSTEM, USER, ASSISTANT)}, [SYSTEM, USER, ASSISTANT]),
    "parts": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": part} for part in ("Hi", "", "?")]},
                {"role": "assistant", "content": "Yo."},
            ]
        },
        [USER, ASSISTANT],
    ),
    "conversation": ("conversation", {"conversation": {"messages": turns(USER, ASSISTANT)}}, [USER, ASSISTANT]),
    "conversation, a list": ("conversation", {"conversation": turns(USER, ASSISTANT)}, [USER, ASSISTANT]),
    "conversations": ("conversations", {"conversations": turns(USER, ASSISTANT)}, [USER, ASSISTANT]),
    "ShareGPT": (
        "sharegpt",
        {"conversations": turns(("human", "Hi?"), ("gpt", "Yo."), role="from", content="value")},
        [USER, ASSISTANT],
    ),
    "ShareGPT with system": (
        "sharegpt",
        {"system": "Be kind.", "conversations": turns(("human", "Hi?"), ("gpt", "Yo."), role="from", content="value")},
        [SYSTEM, USER, ASSISTANT],
    ),
    "Alpaca": ("alpaca", {"instruction": "Hi?", "output": "Yo."}, [USER, ASSISTANT]),
    "Alpaca, empty input": ("alpaca", {"instruction": "Hi?", "input": "", "output": "Yo."}, [USER, ASSISTANT]),
    "Alpaca with input": (
        "alpaca",
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        [("user", "Add.\n\n1, 2"), ("assistant", "3")],
    ),
    "prompt and completion, chats": (
        "prompt_completion",
        {"prompt": turns(SYSTEM, USER), "completion": turns(ASSISTANT)},
        [SYSTEM, USER, ASSISTANT],
    ),
}


def convert(*records: Any, shape: str | None = None) -> list[Row | BadRow]:
    rows = [Row(record, Source("set", "x.jsonl", i + 1)) for i, record in enumerate(records)]
    return list(to_conversations(rows, shape))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_is_found_and_read(kind: str) -> None:
    shape, record, wanted = SHAPES[kind]
    assert detect_shape(record) == shape
    (row,) = convert(record)
    assert isinstance(row, Row)
    assert isinstance(row.value, Conversation)
    assert [(str(one.role), one.content) for one in row.value.messages] == wanted


@pytest.mark.parametrize("key", ["completion", "response"])
def test_prompt_and_completion_stay_plain_text(key: str) -> None:
    (row,) = convert({"prompt": "Hi? ", key: "Yo."})
    assert isinstance(row, Row)
    assert row.value == Completion("Hi? ", "Yo.")


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("gpt", "assistant"), ("model", "assistant"), ("developer", "system"), ("function", "tool")],
)
def test_a_role_is_known_by_its_other_names(name: str, role: str) -> None:
    (row,) = convert({"messages": turns(USER, (name, "x"), ASSISTANT)})
    assert isinstance(row, Row)
    assert str(row.value.messages[1].role) == role


def test_a_row_of_another_shape_than_the_first_is_refused() -> None:
    first, second, third = convert({"messages": turns(USER, ASSISTANT)}, SHAPES["Alpaca"][1], SHAPES["messages"][1])
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert isinstance(second, BadRow)
    assert second.reason == "has the shape 'alpaca', the rows before it 'messages'"
    assert second.source.line == 2


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ([1], "a row is an object with keys, got a list"),
        ("text", "a row is an object with keys, got text"),
        ({"question": "a", "answer": "b"}, "no known shape; its keys are question, answer"),
        ({}, "no known shape; its keys are none"),
        ({"messages": "Hi"}, "'messages' must be a list of turns, got text"),
        ({"messages": None}, "'messages' must be a list of turns, got null"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": ["Hi"]}, "turn 0: must be an object, got text"),
        ({"messages": [{"role": "user"}]}, "turn 0: has no 'content'"),
        ({"messages": turns(USER)}, "no turn of the assistant"),
        ({"messages": turns(USER, ("assistant", ""))}, "the assistant says nothing"),
        ({"messages": [{"role": 3, "content": "x"}]}, "turn 0: unknown role 3"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "turn 0: a part of kind 'image'; text only"),
        (
            {"messages": turns(USER, ASSISTANT), "tools": [{"name": "f"}]},
            "the row: has 'tools', which is not built yet",
        ),
        ({"messages": [*turns(USER), {**turns(ASSISTANT)[0], "train": False}]}, "turn 1: has 'train'"),
        ({"messages": [*turns(USER), {**turns(ASSISTANT)[0], "tool_calls": [{}]}]}, "turn 1: has 'tool_calls'"),
        ({"instruction": "Hi?", "output": None}, "'output' must be text, got null"),
        ({"instruction": "Hi?", "input": 5, "output": "x"}, "'input' must be text, got a number"),
        ({"prompt": "Hi?", "completion": ""}, "'completion' is empty"),
        ({"prompt": True, "completion": "x"}, "'prompt' must be text, got true or false"),
        ({"prompt": turns(USER), "completion": "x"}, "'prompt' must be text, got a list"),
        ({"prompt": "Hi?", "completion": turns(ASSISTANT)}, "'completion' must be text, got a list"),
        ({"conversation": "Hi"}, "'conversation' must be a list of turns, got text"),
        ({"conversation": {"mesages": []}}, "has no 'messages', did you mean 'mesages'?"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "turn 0: a part of kind 'text'"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "turn 0: a part of kind None"),
        ({"messages": [{"role": "User", "content": "x"}]}, "turn 0: unknown role 'User', did you mean 'user'?"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(record: Any, told: str) -> None:
    (row,) = convert(record)
    assert isinstance(row, BadRow)
    assert row.reason.startswith(told)


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "parts"])
def test_a_later_row_without_the_keys_of_its_shape_is_a_bad_row(kind: str) -> None:
    shape, record, _ = SHAPES[kind]
    first, second, third = convert(record, {"text": "Hi?"}, record)
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert isinstance(second, BadRow)
    key = {"sharegpt": "conversations", "alpaca": "instruction", "prompt_completion": "prompt"}.get(shape, shape)
    assert second.reason == f"has no '{key}'"


def test_an_empty_chat_among_those_of_sharegpt_is_told_as_empty() -> None:
    _, empty, _ = convert(SHAPES["ShareGPT"][1], {"conversations": []}, SHAPES["ShareGPT"][1])
    assert isinstance(empty, BadRow)
    assert empty.reason == "the conversation is empty"


def test_a_row_of_another_shape_in_the_same_column_is_refused() -> None:
    _, other = convert(SHAPES["ShareGPT"][1], SHAPES["conversations"][1])
    assert isinstance(other, BadRow)
    assert other.reason == "has the shape 'conversations', the rows before it 'sharegpt'"


def test_what_says_nothing_new_of_a_turn_is_no_obstacle() -> None:
    answer = {**turns(ASSISTANT)[0], "tool_calls": None, "train": True, "weight": 1, "id": "7"}
    (row,) = convert({"messages": [*turns(USER), answer], "tools": None, "source": "web"})
    assert isinstance(row, Row)


def test_a_named_shape_is_not_guessed() -> None:
    both = {"messages": turns(USER, ASSISTANT), "instruction": "Other", "output": "Another"}
    (row,) = convert({"instruction": "Hi?", "output": "Yo."}, shape="messages")
    assert isinstance(row, BadRow)
    (row,) = convert(both, shape="messages")
    assert isinstance(row, Row)


def read(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns role and text of each turn of a record."""
    (row,) = to_conversations([Row(record, Source("d", "f", 1))])
    assert isinstance(row, Row), row
    return [(str(message.role), message.content) for message in row.value.messages]


CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
OF_CHAT = [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT},
        {"conversation": CHAT},
        {"conversations": CHAT},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"instruction": "Q", "output": "A"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
    ],
)
def test_a_column_of_the_system_is_the_first_turn_of_every_chat(record: dict[str, Any]) -> None:
    assert read({**record, "system": "S"}) == [("system", "S"), *OF_CHAT]
    assert read({**record, "system": ""}) == read({**record, "system": None}) == OF_CHAT


def test_a_history_comes_before_the_instruction() -> None:
    record = {"instruction": "Q", "input": "", "output": "A", "system": "S", "history": [["q", "a"], ["r", "b"]]}
    before = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    assert read(record) == [("system", "S"), *before, *OF_CHAT]
    assert read({**record, "system": None, "history": []}) == OF_CHAT


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"messages": CHAT, "system": {"a": 1}}, "'system' must be text, got an object"),
        ({"messages": [{"role": "system", "content": "T"}, *CHAT], "system": "S"}, "and they differ"),
        ({"messages": CHAT, "history": [["q", "a"]]}, "has 'history', which only stands beside instruction and output"),
        ({"prompt": "Q", "completion": "A", "system": "S"}, "'system', for which a prompt of plain text has no place"),
        ({"prompt": "Q", "completion": "A", "history": [["q", "a"]]}, "has 'history'"),
        ({"instruction": "Q", "output": "A", "history": ["q"]}, "'history' must be a list of pairs of text"),
        ({"instruction": "Q", "output": "A", "history": "q"}, "'history' must be a list of pairs, got text"),
        ({"instruction": "Q", "output": "A", "history": [["q", 1]]}, "'history' must be a list of pairs of text"),
    ],
)
def test_a_system_or_history_that_has_no_place_makes_a_bad_row(record: dict[str, Any], told: str) -> None:
    (row,) = to_conversations([Row(record, Source("d", "f", 1))])
    assert isinstance(row, BadRow)
    assert told in row.reason
