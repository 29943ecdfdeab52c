# SPDX-License-Identifier: Apache-2.0
"""The fields of a record, each checked as it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.errors import did_you_mean


class UnusableValue(Exception):  # noqa: N818  it says what a row is
    """A record that does not have the shape."""


def field_of(record: Mapping[str, Any], key: str) -> Any:
    """Returns a field; raises Unusable, with the nearest name, if there is none."""
    if key not in record:
        raise UnusableValue(f"has no '{key}'{did_you_mean(key, map(str, record))}")
    return record[key]


def list_of(record: Mapping[str, Any], key: str) -> list[Any]:
    """Returns a field that must be a list of turns."""
    value = field_of(record, key)
    if not isinstance(value, list):
        raise UnusableValue(f"'{key}' must be a list of turns, got {kind_of(value)}")
    return value


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Returns a field that must be text."""
    value = field_of(record, key)
    if not isinstance(value, str):
        raise UnusableValue(f"'{key}' must be text, got {kind_of(value)}")
    return value


def says_nothing(value: Any) -> bool:
    """Returns True for what a column holds in rows that do not use it."""
    return value is None or value == "" or (isinstance(value, list) and not value)


def kind_of(value: Any) -> str:
    """Returns what a value is, in the words of JSON."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
    }
    return names.get(type(value), "an object")
