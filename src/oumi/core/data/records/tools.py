# SPDX-License-Identifier: Apache-2.0
"""Reads the definitions and calls of functions of a row, in any common spelling, and finds those that are not read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oumi.core.data.records.fields import UnusableValue, as_list, json_of, kind_of, says_nothing
from oumi.core.data.sources.jsonl import DECODER, LAST_VALUE_DECODER
from oumi.core.types.conversation import FunctionCall, ToolCall, ToolDefinition

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn with the thought before its answer."""
TOOL_KEYS = ("tools", "functions", "tool_defs", "tool_definitions", "available_tools")
"""Names of the definitions of functions, in a row or in its system turn: OpenAI's, its older ones, and others'."""
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")
"""Keys of a function's definition with the schema of its arguments: OpenAI's, Anthropic's and that of MCP."""
_TEXT_COLUMNS = (
    "messages", "conversations", "conversation", "prompt", "question", "completion", "response", "chosen", "rejected",
    "instruction", "input", "output", "system", "history", "text",
)  # fmt: skip
_TEXT_KEYS = ("role", "from", "content", "value", "name", *REASONING_KEYS)
_CALL_KEYS = ("tool_calls", "function_call")
_READ_KEYS = frozenset((*_TEXT_COLUMNS, *_TEXT_KEYS, *_CALL_KEYS))
"""Keys of rows and turns that are read, in whose text definitions and calls of functions are words."""
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
"""Keys of a call with its arguments: OpenAI's, and those of Llama's templates, LangChain and Anthropic."""
_MAY_BE_FUNCTION = re.compile(rf'"(?:{"|".join((*_SCHEMA_KEYS, *_ARGUMENT_KEYS, "description"))})"')
"""Found in JSON text that is worth to be parsed."""
_MAX_ITEMS = 3
"""Items of a list that are examined: they are of one kind."""


def tools_of_row(record: Mapping[str, Any], first_turn: Mapping[str, Any]) -> list[ToolDefinition] | None:
    """Returns the tools of a row: from a column, or from its first turn; None if there are none.

    Raises:
        UnusableValue: A tool is invalid, or there are several lists of tools that differ.
    """
    definitions = dict[str, list[ToolDefinition] | None]()
    for place, owner in (("", record), (" of the first turn", first_turn)):
        for key in TOOL_KEYS:
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
    return any(_contains(record.get(key), _is_definition, 0) for key in TOOL_KEYS)


def check_no_tools_elsewhere(record: Mapping[str, Any], turns: Sequence[Any]) -> None:
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
        value = _json_or_text(value) if '"name"' in value and _MAY_BE_FUNCTION.search(value) else None
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


def calls_of(turn: Mapping[str, Any], index: int) -> list[ToolCall]:
    """Returns the tool calls of a turn: a list, the same as JSON text, or the older single `function_call`."""
    calls, older_call = turn.get("tool_calls"), turn.get("function_call")
    if says_nothing(calls):
        calls = [] if says_nothing(older_call) else [older_call]
    elif not says_nothing(older_call):
        raise UnusableValue(f"turn {index}: has 'tool_calls' and 'function_call'; expected one of them")
    if isinstance(calls, str):
        calls = as_list(json_of(calls, f"turn {index}: 'tool_calls'"))
    if not isinstance(calls, list):
        raise UnusableValue(f"turn {index}: 'tool_calls' must be a list, got {kind_of(calls)}")
    for key, value in turn.items():
        if not calls and key not in _READ_KEYS and _contains(value, _is_call):
            raise UnusableValue(f"turn {index}: has calls in '{key}', which is not read: name it 'tool_calls'")
    return [call_of(call, index) for call in calls]


def call_of(value: Any, index: int) -> ToolCall:
    """Returns a call of the turn with an index; raises UnusableValue if it has no name, or arguments that are lost."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableValue(f"turn {index}: a tool call must be an object with a 'name', got {str(value)[:40]}")
    fields = {**value, **function}
    key = next((key for key in _ARGUMENT_KEYS if fields.get(key) is not None), None)
    others = fields.keys() - {"name", "id", "type", "index", "function", *_ARGUMENT_KEYS}
    unread = next((name for name in sorted(others, key=str) if not says_nothing(fields[name])), None)
    if key is None and unread is not None:
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
