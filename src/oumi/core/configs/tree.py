# SPDX-License-Identifier: Apache-2.0
"""Parses YAML into a tree in which every key and value has its line. Refuses what is dangerous or ambiguous."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from oumi.core.errors import Problem

# Limits for hostile files, such as a few aliases that expand to billions of values.
MAX_BYTES = 5_000_000
MAX_DEPTH = 100
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
MAX_NODES = 200_000
_MAX_DIGITS = 1000

# The parser of libyaml is much faster, but not part of every build of PyYAML.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True)
class Node:
    """A value of a file: a scalar, a list of nodes, or a mapping of nodes, with its place."""

    value: Any
    place: str
    key_places: dict[str, str] = field(default_factory=dict)
    """Place of each key of a mapping."""
    size: int = 1
    """Number of nodes in it, with aliases expanded."""
    text: str | None = None
    """Text of a number or a flag as written."""
    is_text: bool = False
    """The value is the text of an environment variable, which is a number or a flag only if its key expects one."""


class TreeError(Exception):
    """A text that cannot be parsed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def parse(text: str, name: str) -> tuple[Node, list[Problem]]:
    """Returns the tree of a YAML text, and the problems of its duplicate keys.

    Raises:
        TreeError: Not YAML, nested too deeply, too large with aliases expanded, or with a tag that is refused.
    """
    # Events with a stack of our own: a deep file costs no recursion, and no tag constructs an object.
    builder = _Builder(name)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        raise TreeError(_syntax_problem(error, name, text)) from None
    # An empty file is an empty mapping, so that its missing keys are reported.
    root = builder.root or Node({}, f"{name}:1:1")
    return (Node({}, root.place) if root.value is None else root), builder.problems


def scalar(text: str) -> Any:
    """Returns the value of plain text by the core schema of YAML 1.2."""
    # Not by YAML 1.1 as PyYAML does: there `no` and `on` are flags, `1e5` is text, and `010` is 8.
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text.lower() in ("true", "false") and text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    # int() raises ValueError for more than 4,300 digits.
    if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text.replace("_", ""), 0) if text[:2] in ("0o", "0x") else int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def plain(node: Node) -> Any:
    """Returns the values of a tree as plain dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def walk(node: Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    """Yields a node and all nodes below it with their paths, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for key, item in node.value.items():
            yield from walk(item, (*path, key))
    elif isinstance(node.value, list):
        for i, item in enumerate(node.value):
            yield from walk(item, (*path, i))


class _Builder:
    """Builds a tree from the events of a YAML parser."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.problems: list[Problem] = []
        # For each open mapping or list: its node, its pending key with the key's place, and its anchor.
        self._stack: list[Node] = []
        self._keys: list[tuple[str, str] | None] = []
        self._open_anchors: list[str | None] = []
        self._anchors: dict[str, Node] = {}
        self._num_nodes = 0

    def take(self, event: Any) -> None:
        """Adds an event of the parser."""
        if isinstance(event, yaml.AliasEvent):
            # An anchor is known once its node is complete, so no node contains itself.
            node = self._anchors.get(str(event.anchor))
            if node is None:
                raise TreeError(
                    Problem("", f"alias '*{event.anchor}' is used inside or before its anchor", self._at(event))
                )
            self._place(node, event)
        elif isinstance(event, yaml.ScalarEvent):
            self._check_tag(event)
            is_plain = event.implicit[0]
            node = Node(scalar(event.value) if is_plain else event.value, self._at(event))
            if isinstance(node.value, int | float):  # True for a flag as well
                node.text = event.value
            if event.anchor:
                self._anchors[event.anchor] = node
            self._place(node, event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._check_tag(event)
            if len(self._stack) >= MAX_DEPTH:
                raise TreeError(Problem("", _TOO_DEEP, self._at(event)))
            node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], self._at(event))
            self._stack.append(node)
            self._keys.append(None)
            self._open_anchors.append(event.anchor)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            node = self._stack.pop()
            self._keys.pop()
            anchor = self._open_anchors.pop()
            if anchor:
                self._anchors[anchor] = node
            self._place(node, event)

    def _place(self, node: Node, event: Any) -> None:
        # An alias counts with all nodes of its anchor, so that exponential expansion is refused before it happens.
        self._num_nodes += node.size
        if self._num_nodes > MAX_NODES:
            raise TreeError(Problem("", f"more than {MAX_NODES:,} values once aliases are expanded", self._at(event)))
        if not self._stack:
            if self.root is not None:
                raise TreeError(Problem("", "a second document; expected a single one", self._at(event)))
            self.root = node
            return
        parent = self._stack[-1]
        parent.size += node.size
        if isinstance(parent.value, list):
            parent.value.append(node)
        # In a mapping, keys and values alternate.
        elif self._keys[-1] is None:
            if isinstance(node.value, (dict, list)):
                raise TreeError(Problem("", "a key must be text", node.place))
            if node.value == "<<":
                message = "merge keys are not supported; write the values out or use an alias"
                raise TreeError(Problem("<<", message, node.place))
            # A key is text as it is written: `1:` is "1", and `on:` is "on".
            key = str(event.value if isinstance(event, yaml.ScalarEvent) else node.value)
            self._keys[-1] = (key, self._at(event))
        else:
            key, place = self._keys[-1]
            self._keys[-1] = None
            if key in parent.value:
                first = parent.key_places[key]
                self.problems.append(Problem(self._dotted(key), f"duplicate key, first at {first}", place))
                parent.value[key] = _joined(parent.value[key], node)
                return
            parent.value[key] = node
            parent.key_places[key] = place

    def _dotted(self, key: str) -> str:
        """Returns the dotted name of a key of the innermost open mapping."""
        above = ""
        for node, open_key in zip(self._stack[:-1], self._keys[:-1], strict=True):
            above += f".{open_key[0]}" if open_key is not None else f"[{len(node.value)}]"
        return f"{above}.{key}".lstrip(".")

    def _check_tag(self, event: Any) -> None:
        if event.tag not in (None, "!") and event.tag not in _CORE_TAGS:
            short = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise TreeError(Problem("", f"tag '{short}' is refused: expected plain values only", self._at(event)))

    def _at(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"


def _joined(first: Node, second: Node) -> Node:
    """Returns the first of two values of a duplicate key; two sections are merged, so that both are checked."""
    if not isinstance(first.value, dict) or not isinstance(second.value, dict):
        return first
    places = {**second.key_places, **first.key_places}
    return replace(first, value={**second.value, **first.value}, key_places=places)


def _syntax_problem(error: yaml.YAMLError, name: str, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    message = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    start = getattr(error, "context_mark", None)
    rest = text.splitlines()[mark.line][mark.column :] if mark and mark.line < len(text.splitlines()) else ""
    # The parser's own messages for the most common mistakes do not say what to change.
    if rest.startswith("\t"):
        message = "a tab; YAML is indented with spaces"
    elif "maximum nesting depth" in str(message):  # newer versions of libyaml have a limit of their own
        return Problem("", _TOO_DEEP, place)
    elif "mapping values are not allowed" in str(message):
        message = (
            "a ':' that cannot be here: quote a value that contains one, "
            "and look for wrong indentation or a ':' without a space after it above"
        )
    elif start is not None and getattr(error, "context", None):
        message = f"{message} {error.context} that begins at line {start.line + 1}"  # type: ignore[attr-defined]
    return Problem("", f"not valid YAML: {message}", place)
