# SPDX-License-Identifier: Apache-2.0
"""Definitions of tools reach the chat under any common name, or the row is refused; arguments are JSON objects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oumi.core.data.records.schemas import detect_shape, to_value
from oumi.core.types.example import RejectedRow, Row, Source

FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


def turns(arguments: Any = "{}") -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


def read(record: dict[str, Any]) -> Any:
    result = to_value(Row(record, Source("set", "x.jsonl", 1)), detect_shape(record))
    return result.reason if isinstance(result, RejectedRow) else result.value


@pytest.mark.parametrize("key", ["tools", "functions", "tool_defs", "tool_definitions", "available_tools"])
@pytest.mark.parametrize("value", [[FUNCTION], [TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
@pytest.mark.parametrize("is_in_turn", [False, True])
def test_tools_are_read_under_any_common_name(key: str, value: Any, is_in_turn: bool) -> None:
    system = {"role": "system", "content": "Be.", **({key: value} if is_in_turn else {})}
    chat = read({"messages": [system, *turns()], **({} if is_in_turn else {key: value})})
    assert [tool.function for tool in chat.tools] == [FUNCTION]


def test_tools_under_a_key_that_is_not_read_are_refused() -> None:
    for value in ([TOOL], json.dumps([FUNCTION])):
        assert read({"messages": turns(), "apis": value}) == (
            "has definitions of functions in 'apis', which is not read: name it 'tools'"
        )
    other = {**FUNCTION, "name": "time"}
    assert "and they differ" in read({"messages": turns(), "tools": [TOOL], "functions": [other]})
    # Names of functions are no definitions.
    assert read({"messages": turns(), "functions": ["weather"]}).tools is None


PLAIN = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"messages": PLAIN, "function_schemas": [FUNCTION]}, "function_schemas"),
        ({"messages": PLAIN, "schemas": [{"name": "a", "input_schema": {"type": "object"}}]}, "schemas"),
        ({"messages": turns(), "metadata": {"tools": [TOOL]}}, "metadata"),
        ({"messages": [PLAIN[0], {**PLAIN[1], "tools": [TOOL]}]}, "tools"),
        ({"messages": PLAIN, "apis": [TOOL]}, "apis"),
    ],
)
def test_definitions_of_functions_are_read_or_refused_whatever_calls_them(record: dict[str, Any], key: str) -> None:
    assert read(record) == f"has definitions of functions in '{key}', which is not read: name it 'tools'"


@pytest.mark.parametrize("record", [{"text": "Rain."}, {"prompt": "Rain?", "completion": "No."}, {"prompt": "Rain?"}])
def test_tools_are_refused_where_no_template_writes_them(record: dict[str, Any]) -> None:
    assert read({**record, "tools": [TOOL]}).startswith("has tools, ")
    for tools in ([], ["hammer"], "hammer, saw", [{"name": "f", "start": 1}]):
        # A prompt without an answer is a chat, whose tools are read.
        assert isinstance(read({**record, "tools": tools}), str) == (bool(tools) and record.keys() == {"prompt"})


DEFINITION = json.dumps({**FUNCTION, "description": "Tells it"})


@pytest.mark.parametrize(
    "record",
    [
        {"messages": PLAIN, "expected": [{"name": "weather", "parameters": {"city": "Oslo"}}]},
        {"messages": PLAIN, "by": {"name": "gpt", "description": "teacher", "parameters": {"temperature": 0.7}}},
        {"messages": PLAIN, "meta": '{"pipeline": {"name": "x", "parameters": {"type": "sft"}}}'},
        {"prompt": PLAIN[:1], "ground_truth": [FUNCTION]},
        {"prompt": PLAIN[:1], "completion": [{"role": "assistant", "content": DEFINITION}]},
        {"prompt": "Write a schema", "chosen": DEFINITION, "rejected": "I cannot."},
        {"instruction": "Describe it", "input": DEFINITION, "output": DEFINITION},
        {"system": DEFINITION, "messages": PLAIN},
        {"conversation": {"messages": [{"role": "user", "content": DEFINITION}, PLAIN[1]]}},
        {"messages": [PLAIN[0], {**PLAIN[1], "reasoning_content": DEFINITION}]},
        {"messages": [PLAIN[0], {**PLAIN[1], "thinking": '{"name": "f", "arguments": {"a": 1}}'}]},
        {"text": "def f()", "functions": [{"name": "f", "start": 1}]},
    ],
)
def test_words_and_other_columns_are_no_definitions(record: dict[str, Any]) -> None:
    assert not isinstance(read(record), str), read(record)


@pytest.mark.parametrize(
    "call",
    [
        {"name": "weather", "args": {"city": "Oslo"}},
        {"name": "weather", "input": {"city": "Oslo"}},
        {"name": "weather", "parameters": {"city": "Oslo"}},
        {"function": {"name": "weather"}, "arguments": '{"city": "Oslo"}'},
    ],
)
def test_arguments_are_read_under_any_common_name(call: dict[str, Any]) -> None:
    chat = read({"messages": [PLAIN[0], {"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert chat.messages[1].tool_calls[0].function.arguments == '{"city": "Oslo"}'


def test_calls_that_would_be_lost_are_refused() -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo"}}

    def reason(**turn: Any) -> Any:
        return read({"messages": [PLAIN[0], {"role": "assistant", "content": "Hm.", **turn}]})

    assert "has calls in 'additional_kwargs'" in reason(additional_kwargs={"tool_calls": [{"function": call}]})
    assert not isinstance(reason(additional_kwargs={"tool_calls": [call]}, tool_calls=[call]), str)
    for key in ("tool_call", "function_calls", "calls"):
        assert reason(**{key: [call]}) == f"turn 1: has calls in '{key}', which is not read: name it 'tool_calls'"
    assert "expected one of them" in reason(tool_calls=[call], function_call=call)
    unread = reason(tool_calls=[{"name": "weather", "argumnets": {"city": "Oslo"}}])
    assert unread == "turn 1: a tool call has no 'arguments', but 'argumnets', which is not read"


def test_json_text_in_a_row_is_held_to_the_same_rules_as_a_row() -> None:
    repeated = json.dumps([FUNCTION]).replace('"name"', '"name": "a", "name"')
    assert read({"messages": PLAIN, "tools": repeated}) == (
        "'tools': not valid JSON: an object has the key 'name' twice"
    )
    deep = '{"a":' * 20_000
    for text in ('{"a": NaN}', '{"a": 1e999}', deep, deep + "1" + "}" * 20_000):
        assert read({"messages": turns(text)}).startswith("turn 1: arguments of a tool call: not valid JSON: ")
        assert isinstance(read({"messages": PLAIN, "note": text}).messages, list)
    assert isinstance(read({"messages": turns({"a": float("nan")})}), str)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (None, "{}"), ("", "{}"), ("  ", "{}"), ({}, "{}"), ("null", "{}"), ('{"a": null}', '{"a": null}'),
        ({"a": "é"}, '{"a": "é"}'), ('{"a":1, "a":2}', '{"a": 2}'),
        ('{"a": {"b": 1, "b": 2}}', '{"a": {"b": 2}}'),
        ("rain", None), ('{"a"', None), ("[1]", None), ([1], None), ("5", None), (5, None),
    ],
)  # fmt: skip
def test_arguments_are_objects_or_refused(arguments: Any, expected: str | None) -> None:
    chat = read({"messages": turns(arguments)})
    if expected is None:
        assert chat.startswith("turn 1: arguments of a tool call")
    else:
        assert chat.messages[1].tool_calls[0].function.arguments == expected
