# SPDX-License-Identifier: Apache-2.0
"""Definitions of tools reach the chat under any common name, or the row is refused; arguments are JSON objects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oumi.core.data.records.schemas import to_value
from oumi.core.types.example import RejectedRow, Row, Source

FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


def turns(arguments: Any = "{}") -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


def read(record: dict[str, Any]) -> Any:
    result = to_value(Row(record, Source("set", "x.jsonl", 1)), "messages")
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (None, "{}"), ("", "{}"), ("  ", "{}"), ({}, "{}"), ("null", "{}"), ('{"a": null}', '{"a": null}'),
        ({"a": "é"}, '{"a": "é"}'), ('{"a":1, "a":2}', '{"a": 2}'),
        ("rain", None), ('{"a"', None), ("[1]", None), ([1], None), ("5", None), (5, None),
    ],
)  # fmt: skip
def test_arguments_are_objects_or_refused(arguments: Any, expected: str | None) -> None:
    chat = read({"messages": turns(arguments)})
    if expected is None:
        assert chat.startswith("turn 1: arguments of a tool call")
    else:
        assert chat.messages[1].tool_calls[0].function.arguments == expected
