# SPDX-License-Identifier: Apache-2.0
"""YAML text as a tree whose every key and value knows its line. Refuses what is dangerous or ambiguous."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from oumi.core.errors import Problem

MAX_BYTES = 5_000_000
MAX_DEPTH = 100
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
MAX_NODES = 200_000
_MAX_DIGITS = 1000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True)
class Node:
    """A value of a file: a scalar, a list of nodes, or a mapping of nodes, and where it stands."""

    value: Any
    place: str
    key_places: dict[str, str] = field(default_factory=dict)
    """For a mapping: where each key stands."""
    size: int = 1
    text: str | None = None
    """For a number or a flag: as it is written."""


class TreeError(Exception):
    """The text cannot be made into a tree."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def parse(text: str, name: str) -> tuple[Node, list[Problem]]:
    """Returns the tree of a YAML text, and the duplicate keys and unsafe tags in it.

    Reads events with a stack of its own, so depth costs no recursion, and counts what aliases repeat.

    Raises:
        TreeError: Not YAML, too deep, or too large when aliases are written out.
    """
    builder = _Builder(name)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        raise TreeError(_syntax_problem(error, name, text)) from None
    root = builder.root or Node({}, f"{name}:1:1")
    return (Node({}, root.place) if root.value is None else root), builder.problems


def scalar(text: str) -> Any:
    """Returns the value of plain text by the core schema of YAML 1.2: `no` and `on` stay words."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text.lower() in ("true", "false") and text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text.replace("_", ""), 0) if text[:2] in ("0o", "0x") else int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def plain(node: Node) -> Any:
    """Returns the values of a tree without their places."""
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def walk(node: Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    """Yields every node below a node with its path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for key, item in node.value.items():
            yield from walk(item, (*path, key))
    elif isinstance(node.value, list):
        for i, item in enumerate(node.value):
            yield from walk(item, (*path, i))


class _Builder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._stack: list[tuple[Node, str | None]] = []
        self._keys: list[tuple[str, str] | None] = []
        self._anchors: dict[str, Node] = {}
        self._num_nodes = 0
        self._open_anchors: list[str | None] = []

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
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
            if isinstance(node.value, int | float):  # a flag, too
                node.text = event.value
            if event.anchor:
                self._anchors[event.anchor] = node
            self._place(node, event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._check_tag(event)
            if len(self._stack) >= MAX_DEPTH:
                raise TreeError(Problem("", _TOO_DEEP, self._at(event)))
            node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], self._at(event))
            self._stack.append((node, None))
            self._keys.append(None)
            self._open_anchors.append(event.anchor)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            node, _ = self._stack.pop()
            self._keys.pop()
            anchor = self._open_anchors.pop()
            if anchor:
                self._anchors[anchor] = node
            self._place(node, event)

    def _place(self, node: Node, event: Any) -> None:
        self._num_nodes += node.size
        if self._num_nodes > MAX_NODES:
            raise TreeError(
                Problem("", f"more than {MAX_NODES:,} values once aliases are written out", self._at(event))
            )
        if not self._stack:
            if self.root is not None:
                raise TreeError(Problem("", "a second document; a config is one", self._at(event)))
            self.root = node
            return
        parent, _ = self._stack[-1]
        parent.size += node.size
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif self._keys[-1] is None:
            self._keys[-1] = (self._key(node, event), self._at(event))
        else:
            key, place = self._keys[-1]
            self._keys[-1] = None
            if key in parent.value:
                first = parent.key_places[key]
                self.problems.append(Problem(self._dotted(key), f"given twice, first at {first}", place))
                parent.value[key] = _joined(parent.value[key], node)
                return
            parent.value[key] = node
            parent.key_places[key] = place

    def _dotted(self, key: str) -> str:
        """Returns the whole name of a key of the mapping that is being read."""
        above = ""
        for (node, _), open_key in zip(self._stack[:-1], self._keys[:-1], strict=True):
            above += f".{open_key[0]}" if open_key is not None else f"[{len(node.value)}]"
        return f"{above}.{key}".lstrip(".")

    def _key(self, node: Node, event: Any) -> str:
        if isinstance(node.value, (dict, list)):
            raise TreeError(Problem("", "a key must be text", node.place))
        if node.value == "<<":
            raise TreeError(Problem("<<", "merge keys are not read; write the values out or use an alias", node.place))
        return str(event.value if isinstance(event, yaml.ScalarEvent) else node.value)

    def _check_tag(self, event: Any) -> None:
        if event.tag not in (None, "!") and event.tag not in _CORE_TAGS:
            short = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise TreeError(Problem("", f"tag '{short}' is refused: a config holds plain values only", self._at(event)))

    def _at(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"


def _joined(first: Node, second: Node) -> Node:
    """Returns the first of two values of a key, with what only the second section holds, so that it is checked, too."""
    if not isinstance(first.value, dict) or not isinstance(second.value, dict):
        return first
    places = {**second.key_places, **first.key_places}
    return replace(first, value={**second.value, **first.value}, key_places=places)


def _syntax_problem(error: yaml.YAMLError, name: str, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    start = getattr(error, "context_mark", None)
    rest = text.splitlines()[mark.line][mark.column :] if mark and mark.line < len(text.splitlines()) else ""
    if rest.startswith("\t"):
        what = "a tab; YAML is indented with spaces"
    elif "maximum nesting depth" in str(what):  # newer parsers stop by themselves, and earlier than we see it
        return Problem("", _TOO_DEEP, place)
    elif "mapping values are not allowed" in str(what):
        what = (
            "a ':' that cannot be here: quote a value that holds one, "
            "and look for wrong indentation or a ':' without a space after it above"
        )
    elif start is not None and getattr(error, "context", None):
        what = f"{what} {error.context} that begins at line {start.line + 1}"  # type: ignore[attr-defined]
    return Problem("", f"not valid YAML: {what}", place)
