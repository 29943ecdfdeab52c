# SPDX-License-Identifier: Apache-2.0
"""Resolves `${section.key}`, `${oc.env:VAR}` and `${oc.env:VAR,default}` in the values of a config, as in OmegaConf."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from oumi.core.configs.tree import Node, scalar, walk
from oumi.core.errors import Problem, did_you_mean

_REFERENCE = re.compile(r"(?<!\\)\$\{([^{}]*)\}")
_NESTED = re.compile(r"(?<!\\)\$\{[^}]*\$\{")
# Limits for hostile files, whose references double the text with each step or never end.
_MAX_LENGTH = 100_000
_MAX_CHAIN = 50


class UnsetVariableError(LookupError):
    """A reference to an environment variable that is not set; it may be set on the machine that trains."""


def interpolate(root: Node, defaults: Mapping[str, Any]) -> tuple[list[Problem], list[Problem]]:
    """Replaces every reference in the tree by its value; one that cannot be resolved stays unchanged.

    Args:
        root: The tree, which is changed in place.
        defaults: Values of dotted keys that the tree does not set.

    Returns:
        Problems of invalid references, and of environment variables that are not set.
    """
    problems: list[Problem] = []
    unset: list[Problem] = []
    references = _References(root, defaults)
    for path, node in walk(root):
        if isinstance(node.value, str) and "${" in node.value:
            try:
                references.fill(node)
            except LookupError as error:
                kind = unset if isinstance(error, UnsetVariableError) else problems
                kind.append(Problem(dotted(path), str(error.args[0]), node.place))
    return problems, unset


def dotted(path: tuple[str | int, ...]) -> str:
    """Returns `a.b[0].c` for the path of a value."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class _References:
    """Resolves the references of each node once: a value that contains `${` is never read as a reference again."""

    def __init__(self, root: Node, defaults: Mapping[str, Any]) -> None:
        self._root = root
        self._defaults = defaults
        self._filled: set[int] = set()

    def fill(self, node: Node, parents: tuple[str, ...] = ()) -> None:
        """Resolves the references in the text of a node; `parents` are the keys whose references led to it."""
        if id(node) in self._filled:
            return
        text = node.value
        if _NESTED.search(text):
            raise LookupError("nested references are not supported")
        # A reference that is the whole text keeps the type of its value; within other text it becomes text.
        if reference := _REFERENCE.fullmatch(text):
            node.value, node.is_text = self._value(reference[1].strip(), parents)
        else:
            filled = _REFERENCE.sub(lambda match: _written(self._value(match[1].strip(), parents)[0]), text)
            if len(filled) > _MAX_LENGTH:
                raise LookupError(f"longer than {_MAX_LENGTH:,} characters once references are replaced")
            node.value = filled.replace("\\${", "${")
        self._filled.add(id(node))

    def _value(self, name: str, parents: tuple[str, ...]) -> tuple[Any, bool]:
        """Returns the value of a reference, and whether it is text that only the key it fills gives a type."""
        if name.startswith("oc.env:"):
            variable, has_default, default = name.removeprefix("oc.env:").partition(",")
            if variable in os.environ:
                return os.environ[variable], True
            if not has_default:
                raise UnsetVariableError(
                    f"environment variable {variable} is not set; ${{oc.env:{variable},DEFAULT}} sets a default"
                )
            text = default.strip()
            return (None, False) if scalar(text) is None else (text, True)
        if name in parents:
            raise LookupError(f"circular reference: {' -> '.join([*parents, name])}")
        if len(parents) >= _MAX_CHAIN:
            raise LookupError(f"a chain of more than {_MAX_CHAIN} references")
        # A key that the file does not set has its default.
        node = _find(self._root, name)
        if node is None and name not in self._defaults:
            raise LookupError(f"'${{{name}}}' names no key of this config{did_you_mean(name, self._defaults)}")
        if node is not None and isinstance(node.value, str) and "${" in node.value:
            self.fill(node, (*parents, name))
        value = node.value if node is not None else self._defaults[name]
        if isinstance(value, (dict, list)):
            raise LookupError(f"'${{{name}}}' names a section or a list; expected the key of a single value")
        return value.name if isinstance(value, Enum) else value, node is not None and node.is_text


def _written(value: Any) -> str:
    """Returns a value as YAML text."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _find(root: Node, name: str) -> Node | None:
    node: Node | None = root
    for part in re.sub(r"\[(\d+)\]", r".\1", name).split("."):
        inside = node.value if node is not None else None
        if isinstance(inside, dict):
            node = inside.get(part)
        elif isinstance(inside, list) and part.isdigit() and int(part) < len(inside):
            node = inside[int(part)]
        else:
            return None
    return node
