# SPDX-License-Identifier: Apache-2.0
"""`${section.key}`, `${oc.env:VAR}` and `${oc.env:VAR,default}` in the values of a config."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from oumi.core.configs.tree import Node, plain, scalar, walk
from oumi.core.errors import Problem, did_you_mean

_REFERENCE = re.compile(r"(?<!\\)\$\{([^{}]*)\}")


def interpolate(root: Node, defaults: Mapping[str, Any]) -> list[Problem]:
    """Replaces every reference in the tree by the value it names, and returns what could not be replaced.

    Args:
        root: Changed in place.
        defaults: Values of dotted keys that the tree does not set.
    """
    problems: list[Problem] = []
    for path, node in walk(root):
        if isinstance(node.value, str) and "${" in node.value:
            try:
                node.value = _resolve(node.value, root, defaults, ())
            except LookupError as error:
                problems.append(Problem(dotted(path), str(error.args[0]), node.place))
    return problems


def dotted(path: tuple[str | int, ...]) -> str:
    """Returns `a.b[0].c` for the path of a value."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _resolve(text: str, root: Node, defaults: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    whole = _REFERENCE.fullmatch(text)
    if whole:
        return _value(whole[1].strip(), root, defaults, seen)
    filled = _REFERENCE.sub(lambda match: str(_value(match[1].strip(), root, defaults, seen)), text)
    return filled.replace("\\${", "${")


def _value(name: str, root: Node, defaults: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    if name.startswith("oc.env:"):
        variable, has_default, default = name.removeprefix("oc.env:").partition(",")
        if variable in os.environ:
            return scalar(os.environ[variable])
        if not has_default:
            raise LookupError(
                f"environment variable {variable} is not set; ${{oc.env:{variable},DEFAULT}} gives it a default"
            )
        return scalar(default.strip())
    if name in seen:
        raise LookupError(f"goes in a circle: {' -> '.join([*seen, name])}")
    node = _find(root, name)
    if node is None:
        if name in defaults:
            return defaults[name]
        raise LookupError(f"'${{{name}}}' names no key of this config{did_you_mean(name, defaults)}")
    value = plain(node)
    if isinstance(value, str) and "${" in value:
        return _resolve(value, root, defaults, (*seen, name))
    return value


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
