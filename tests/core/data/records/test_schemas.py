# SPDX-License-Identifier: Apache-2.0
"""Every shape in which people keep chats becomes the same conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oumi.core.data.records.schemas import detect_shape
from oumi.core.types.conversation import ContentItem, Conversation, Type
from oumi.core.types.example import Completion, Judged, Preference, RejectedRow, Row, Source, Text
from tests.shown import to_values

USER, ASSISTANT, SYSTEM = ("user", "Hi?"), ("assistant", "Yo."), ("system", "Be kind.")


def turns(*pairs: tuple[str, str], role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: who, content: text} for who, text in pairs]


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


def convert(*records: Any, shape: str | None = None) -> list[Row | RejectedRow]:
    rows = [Row(record, Source("set", "x.jsonl", i + 1)) for i, record in enumerate(records)]
    return list(to_values(rows, shape))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_is_found_and_read(kind: str) -> None:
    shape, record, expected = SHAPES[kind]
    assert detect_shape(record) == shape
    (row,) = convert(record)
    assert isinstance(row, Row)
    assert isinstance(row.value, Conversation)
    assert [(str(message.role), message.content) for message in row.value.messages] == expected


@pytest.mark.parametrize("key", ["completion", "response"])
def test_prompt_and_completion_stay_plain_text(key: str) -> None:
    (row,) = convert({"prompt": "Hi? ", key: "Yo."})
    assert isinstance(row, Row)
    assert row.value == Completion("Hi? ", "Yo.")


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("gpt", "assistant"), ("model", "assistant"), ("developer", "system"), ("function", "tool")],
)
def test_a_role_is_recognized_by_its_other_names(name: str, role: str) -> None:
    (row,) = convert({"messages": turns(USER, (name, "x"), ASSISTANT)})
    assert isinstance(row, Row)
    assert str(row.value.messages[1].role) == role


def test_a_row_of_another_shape_than_the_first_is_refused() -> None:
    first, second, third = convert({"messages": turns(USER, ASSISTANT)}, SHAPES["Alpaca"][1], SHAPES["messages"][1])
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert isinstance(second, RejectedRow)
    assert second.reason == "has the shape 'alpaca', the rows before it 'messages'"
    assert second.source.line == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "a row must be an object, got a list"),
        ("text", "a row must be an object, got text"),
        ({"question": "a", "answer": "b"}, "no known shape: its keys are question, answer"),
        ({}, "no known shape: its keys are none"),
        ({"messages": "Hi"}, "'messages' must be a list of turns, got text"),
        ({"messages": None}, "'messages' must be a list of turns, got null"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": ["Hi"]}, "turn 0: must be an object, got text"),
        ({"messages": [{"role": "user"}]}, "turn 0: has no 'content'"),
        ({"messages": turns(USER)}, "no turn of the assistant"),
        ({"messages": turns(USER, ("assistant", ""))}, "the assistant says nothing"),
        ({"messages": [{"role": 3, "content": "x"}]}, "turn 0: unknown role 3"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "refers to image 0, but the row has 0"),
        ({"messages": turns(ASSISTANT), "images": ["a.png"]}, "has 1 images, but the turns refer to 0"),
        ({"messages": turns(USER, ASSISTANT), "images": [3]}, "an image must be a path, a URL or bytes, got int"),
        (
            {"messages": turns(USER, ASSISTANT), "images": [{"x": 1}]},
            "an image must have bytes, a path or a url, got x",
        ),
        (
            {"messages": turns(USER, ASSISTANT), "images": ["data:image/png;base64,*"]},
            "an image in base64 that cannot",
        ),
        ({"messages": turns(USER, ASSISTANT), "videos": ["a.mp4"]}, "has 'videos', which is not built yet"),
        ({"messages": turns(USER, ASSISTANT), "tools": [{"f": 1}]}, "a tool must be an object with a 'name'"),
        ({"messages": turns(USER, ASSISTANT), "tools": "{nope"}, "'tools': expected JSON, got {nope"),
        ({"messages": turns(USER, ASSISTANT), "tools": 3}, "'tools' must be a list of functions, got a number"),
        ({"messages": [*turns(USER), {**turns(ASSISTANT)[0], "train": 0.5}]}, "turn 1: 'train' must be true or false"),
        ({"messages": [*turns(USER), {**turns(ASSISTANT)[0], "tool_calls": [{}]}]}, "turn 1: a tool call must be an"),
        ({"messages": [{**turns(USER)[0], "tool_calls": [{"name": "f"}]}]}, "turn 0: 'tool_calls' of user; only the"),
        ({"messages": [*turns(USER), {"role": "assistant", "content": None}]}, "turn 1: the content must be text, got"),
        ({"messages": turns(SYSTEM, USER, SYSTEM, ASSISTANT)}, "turn 2: a second system turn"),
        ({"chosen": "a", "rejected": "b"}, "no prompt before an answer: expected text in 'prompt'"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "q", "chosen": 3, "rejected": "a"}, "'chosen' must be text or turns, got a number"),
        ({"prompt": "q", "chosen": [], "rejected": "a"}, "no turn of the assistant"),
        ({"text": ""}, "'text' is empty"),
        ({"text": None}, "'text' must be text, got null"),
        ({"prompt": None}, "'prompt' must be text or turns, got null"),
        ({"instruction": "Hi?", "output": None}, "'output' must be text, got null"),
        ({"instruction": "Hi?", "input": 5, "output": "x"}, "'input' must be text, got a number"),
        ({"prompt": "Hi?", "completion": ""}, "'completion' is empty"),
        ({"prompt": True, "completion": "x"}, "'prompt' must be text, got true or false"),
        ({"prompt": turns(USER), "completion": "x"}, "'prompt' must be text, got a list"),
        ({"prompt": "Hi?", "completion": turns(ASSISTANT)}, "'completion' must be text, got a list"),
        ({"conversation": "Hi"}, "'conversation' must be a list of turns, got text"),
        ({"conversation": {"mesages": []}}, "has no 'messages', did you mean 'mesages'?"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "turn 0: a part of type 'text'"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "turn 0: a part of type None"),
        ({"messages": [{"role": "User", "content": "x"}]}, "turn 0: unknown role 'User', did you mean 'user'?"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(record: Any, message: str) -> None:
    (row,) = convert(record)
    assert isinstance(row, RejectedRow)
    assert row.reason.startswith(message)


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "parts"])
def test_a_later_row_without_the_keys_of_its_shape_is_a_bad_row(kind: str) -> None:
    shape, record, _ = SHAPES[kind]
    first, second, third = convert(record, {"text": "Hi?"}, record)
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert isinstance(second, RejectedRow)
    key = {"sharegpt": "conversations", "alpaca": "instruction", "prompt_completion": "prompt"}.get(shape, shape)
    assert second.reason == f"has no '{key}'"


def test_an_empty_chat_among_those_of_sharegpt_is_reported_as_empty() -> None:
    _, empty, _ = convert(SHAPES["ShareGPT"][1], {"conversations": []}, SHAPES["ShareGPT"][1])
    assert isinstance(empty, RejectedRow)
    assert empty.reason == "the conversation is empty"


def test_turns_may_be_spelled_in_either_way() -> None:
    first, other = convert(SHAPES["ShareGPT"][1], SHAPES["conversations"][1])
    assert isinstance(first, Row)
    assert isinstance(other, Row)
    assert first.value == other.value


def test_what_says_nothing_new_of_a_turn_is_no_obstacle() -> None:
    answer = {**turns(ASSISTANT)[0], "tool_calls": None, "train": True, "weight": 1, "id": "7"}
    (row,) = convert({"messages": [*turns(USER), answer], "tools": None, "source": "web"})
    assert isinstance(row, Row)


def test_a_named_shape_is_not_guessed() -> None:
    both = {"messages": turns(USER, ASSISTANT), "instruction": "Other", "output": "Another"}
    (row,) = convert({"instruction": "Hi?", "output": "Yo."}, shape="messages")
    assert isinstance(row, RejectedRow)
    (row,) = convert(both, shape="messages")
    assert isinstance(row, Row)


def read(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns role and text of each turn of a record."""
    (row,) = to_values([Row(record, Source("d", "f", 1))])
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
    ("record", "message"),
    [
        ({"messages": CHAT, "system": {"a": 1}}, "'system' must be text, got an object"),
        ({"messages": [{"role": "system", "content": "T"}, *CHAT], "system": "S"}, "and they differ"),
        ({"messages": CHAT, "history": [["q", "a"]]}, "has 'history', which is only read with instruction and output"),
        ({"prompt": "Q", "completion": "A", "system": "S"}, "'system', but a prompt of plain text has no system turn"),
        ({"prompt": "Q", "completion": "A", "history": [["q", "a"]]}, "has 'history'"),
        ({"instruction": "Q", "output": "A", "history": ["q"]}, "'history' must be a list of pairs of text"),
        ({"instruction": "Q", "output": "A", "history": "q"}, "'history' must be a list of pairs, got text"),
        ({"instruction": "Q", "output": "A", "history": [["q", 1]]}, "'history' must be a list of pairs of text"),
    ],
)
def test_a_system_or_history_that_has_no_place_makes_a_bad_row(record: dict[str, Any], message: str) -> None:
    (row,) = to_values([Row(record, Source("d", "f", 1))])
    assert isinstance(row, RejectedRow)
    assert message in row.reason


IMAGE = ContentItem(type=Type.IMAGE_PATH, content="a.png")
WITH_IMAGE = [IMAGE, ContentItem(type=Type.TEXT, content="Hi?")]
IMAGE_CHATS = {
    "beside the turns": {"messages": turns(USER, ASSISTANT), "images": ["a.png"]},
    "one beside the turns": {"messages": turns(USER, ASSISTANT), "image": {"path": "a.png", "bytes": None}},
    "marked": {"messages": turns(("user", "<image>Hi?"), ASSISTANT), "images": ["a.png"]},
    "a place for it": {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]},
            *turns(ASSISTANT),
        ],
        "images": ["a.png"],
    },
    "by number": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "Hi?"}]},
            *turns(ASSISTANT),
        ],
        "images": ["a.png"],
    },
    "in its place": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_path", "content": "a.png"}, {"type": "text", "content": "Hi?"}],
            },
            *turns(ASSISTANT),
        ],
    },
}


@pytest.mark.parametrize("kind", IMAGE_CHATS)
def test_images_stand_where_the_row_puts_them(kind: str) -> None:
    (row,) = convert(IMAGE_CHATS[kind])
    assert isinstance(row, Row), row
    assert row.value.messages[0].content == WITH_IMAGE
    assert Conversation.from_json(row.value.to_json()) == row.value


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, (Type.IMAGE_URL, "https://x.org/a.png")),
        ({"type": "image", "url": "https://x.org/a.png"}, (Type.IMAGE_URL, "https://x.org/a.png")),
        ({"type": "image_url", "content": "data:image/png;base64,eHl6"}, (Type.IMAGE_BINARY, b"xyz")),
        ({"type": "image_binary", "binary": "eHl6"}, (Type.IMAGE_BINARY, b"xyz")),
        ({"type": "image", "image": {"bytes": b"xyz", "path": None}}, (Type.IMAGE_BINARY, b"xyz")),
        ({"type": "image", "image": "file:///a.png"}, (Type.IMAGE_PATH, "/a.png")),
    ],
)
def test_a_image_may_be_a_path_a_url_or_bytes(image: Any, expected: tuple[Type, Any]) -> None:
    (row,) = convert({"messages": [{"role": "user", "content": [image]}, *turns(ASSISTANT)]})
    assert isinstance(row, Row), row
    (item,) = row.value.messages[0].content
    assert (item.type, item.binary or item.content) == expected
    assert Conversation.from_json(row.value.to_json()) == row.value


CALL = {"name": "f", "arguments": {"x": 1}}
CALLS = {
    "OpenAI": {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    "plain": {"role": "assistant", "content": "", "tool_calls": [CALL]},
    "arguments as text": {"role": "assistant", "content": "", "tool_calls": [{**CALL, "arguments": '{"x": 1}'}]},
    "all as text": {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
    "old": {"role": "assistant", "content": None, "function_call": CALL},
    "role": {"from": "function_call", "value": json.dumps(CALL)},
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_tool_call_is_one_however_it_is_spelled(kind: str) -> None:
    result = {"role": "tool", "content": "2"}
    (row,) = convert({"messages": [*turns(USER), CALLS[kind], result, *turns(ASSISTANT)], "tools": [{"name": "f"}]})
    assert isinstance(row, Row), row
    (call,) = row.value.messages[1].tool_calls
    assert (call.function.name, call.function.values()) == ("f", {"x": 1})
    (tool,) = row.value.tools
    assert tool.model_dump() == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "tools", [[{"name": "f"}], [{"type": "function", "function": {"name": "f"}}], '[{"name": "f"}]']
)
def test_tools_are_found_in_any_spelling(tools: Any) -> None:
    (row,) = convert({"messages": turns(USER, ASSISTANT), "tools": tools})
    assert [tool.function["name"] for tool in row.value.tools] == ["f"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_found_under_any_name(key: str) -> None:
    (row,) = convert({"messages": [*turns(USER), {**turns(ASSISTANT)[0], key: "hm"}]})
    assert row.value.messages[1].reasoning_content == "hm"


GOOD, WORSE = turns(USER, ASSISTANT), turns(USER, ("assistant", "No."))
PREFERENCES = {
    "texts": {"prompt": "Hi?", "chosen": "Yo.", "rejected": "No."},
    "turns": {"prompt": turns(USER), "chosen": GOOD[1:], "rejected": WORSE[1:]},
    "one turn each": {"prompt": turns(USER), "chosen": GOOD[1], "rejected": WORSE[1]},
    "whole chats": {"chosen": GOOD, "rejected": WORSE},
    "whole chats and the prompt": {"prompt": turns(USER), "chosen": GOOD, "rejected": WORSE},
    "messages inside": {"prompt": "Hi?", "chosen": {"messages": GOOD[1:]}, "rejected": {"messages": WORSE[1:]}},
    "ShareGPT": {
        "conversations": turns(("human", "Hi?"), role="from", content="value"),
        "chosen": {"from": "gpt", "value": "Yo."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "Alpaca": {"instruction": "Hi?", "input": "", "chosen": "Yo.", "rejected": "No."},
    "question": {"question": "Hi?", "chosen": "Yo.", "rejected": "No."},
}


@pytest.mark.parametrize("kind", PREFERENCES)
def test_a_preference_is_two_chats_that_begin_alike(kind: str) -> None:
    (row,) = convert(PREFERENCES[kind])
    assert isinstance(row, Row), row
    assert isinstance(row.value, Preference)
    texts = [
        [(str(message.role), message.text) for message in chat.messages]
        for chat in (row.value.chosen, row.value.rejected)
    ]
    assert texts == [[USER, ASSISTANT], [USER, ("assistant", "No.")]]


def test_judged_completions_prompts_and_texts_are_found() -> None:
    (judged,) = convert({"prompt": "Hi?", "completion": "Yo.", "label": False})
    assert judged.value == Judged(Completion("Hi?", "Yo."), False)
    (chats,) = convert({"prompt": turns(USER), "completion": turns(ASSISTANT), "label": True})
    assert chats.value.is_good
    (prompt,) = convert({"prompt": "Hi?", "answer": 3})
    assert ([message.text for message in prompt.value.messages], prompt.value.columns) == (["Hi?"], {"answer": 3})
    (text,) = convert({"text": "Once.", "url": "x"})
    assert text.value == Text("Once.")
