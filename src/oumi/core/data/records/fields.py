# SPDX-License-Identifier: Apache-2.0
"""Reads fields of a record, and checks their types."""

from __future__ import annotations

from collections.abc import Mapping
from json import JSONDecodeError, JSONDecoder
from typing import Any

from oumi.core.data.sources.jsonl import DECODER, parsed
from oumi.core.errors import did_you_mean


class UnusableValue(Exception):  # noqa: N818  the message becomes the reason of a RejectedRow
    """A record that cannot be used, with the reason."""


def field_of(record: Mapping[str, Any], key: str) -> Any:
    """Returns a field; raises UnusableValue with the nearest name if it is missing."""
    if key not in record:
        raise UnusableValue(f"has no '{key}'{did_you_mean(key, map(str, record))}")
    return record[key]


def list_of(record: Mapping[str, Any], key: str) -> list[Any]:
    """Returns a field that must be a list of turns; raises UnusableValue otherwise."""
    value = field_of(record, key)
    if not isinstance(value, list):
        raise UnusableValue(f"'{key}' must be a list of turns, got {kind_of(value)}")
    return value


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Returns a field that must be text; raises UnusableValue otherwise."""
    value = field_of(record, key)
    if not isinstance(value, str):
        raise UnusableValue(f"'{key}' must be text, got {kind_of(value)}")
    return value


def json_of(value: Any, where: str, decoder: JSONDecoder = DECODER) -> Any:
    """Returns the value of JSON text, and any other value as it is; raises UnusableValue if the text is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value, decoder)
    except JSONDecodeError:
        raise UnusableValue(f"{where}: expected JSON, got {value[:40]}") from None
    except ValueError as error:
        raise UnusableValue(f"{where}: not valid JSON: {error}") from None


def as_list(value: Any) -> list[Any]:
    """Returns a list as it is, and any other value as a list of it."""
    return value if isinstance(value, list) else [value]


def says_nothing(value: Any) -> bool:
    """Returns True for the values of a column in rows that do not use it: null, empty text, an empty list."""
    return value is None or value == "" or (isinstance(value, list) and not value)


def kind_of(value: Any) -> str:
    """Returns the JSON type of a value, for messages."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
    }
    return names.get(type(value), "an object")
