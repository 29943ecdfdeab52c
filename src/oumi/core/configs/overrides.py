# SPDX-License-Identifier: Apache-2.0
"""Applies values of the command line to the tree of a config file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from oumi.core.configs.base import Params, is_text_key
from oumi.core.configs.problems import holder_of, inside, split_key
from oumi.core.configs.tree import Node, TreeError, parse, walk
from oumi.core.errors import ConfigError, Problem

_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")


@dataclass(frozen=True)
class Override:
    """A value given on the command line."""

    key: str
    """Dotted, as `data.train.datasets[0].dataset_name`."""
    text: str
    """As the user wrote it."""
    flag: str
    """The argument as the user wrote it."""
    malformed: str = ""
    """The problem of an argument that sets no key at all."""


def override_of(argument: str) -> Override:
    """Returns the override in an argument such as `training.max_steps=10`."""
    key, equals, text = argument.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"argument '{argument}': expected key=value, such as training.max_steps=10")
    return Override(key, text, argument.partition("=")[0])


def apply(root: Node, override: Override, kind: type[Params]) -> list[Problem]:
    """Puts an override into the tree; a mapping is merged into an existing one.

    Args:
        root: The tree, which is changed in place.
        override: Its value is text as it stands if its key takes text, otherwise YAML.
        kind: Class of the config.

    Returns:
        Its problems; the key then keeps its value in the tree.
    """
    if override.malformed:
        return [Problem("", override.malformed, override.flag)]
    name = re.sub(r"\.(\d+)(?=\.|\[|$)", r"[\1]", override.key)  # OmegaConf writes `datasets.0` for `datasets[0]`
    if not _KEY.fullmatch(name):
        example = "training.max_steps or data.train.datasets[0].split"
        return [Problem(override.key, f"not a valid key; expected a name such as {example}", override.flag)]
    parts = split_key(name)
    try:
        value, problems = _value(override, _annotation_of(parts, kind))
    except TreeError as error:
        return [Problem(override.key, error.problem.message, override.flag)]
    # Walk down to the parent of the key; sections and lists on the way are created if they do not exist.
    parent = root
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if following is None:
            return problems + _put(parent, part, value, override)
        inner = _child(parent, part)
        if inner is None:
            inner = Node([] if isinstance(following, int) else {}, override.flag)
            if wrong := _put(parent, part, inner, override):
                return wrong
        parent = inner
    return problems


def _annotation_of(parts: Sequence[str | int], kind: type[Params]) -> Any:
    """Returns the annotation of a key, None if it is unknown."""
    annotation: Any = kind
    for part in parts:
        annotation = inside(holder_of(annotation), part)
    return annotation


def _value(override: Override, annotation: Any) -> tuple[Node, list[Problem]]:
    text = override.text
    if text.strip() in ("", "~", "null", "none", "None"):
        return Node(None if text.strip() else "", override.flag), []  # `--key=` is empty text, not null
    if is_text_key(annotation):
        return Node(text, override.flag), []
    value, problems = parse(text, override.flag)
    # YAML would drop what follows ` #` as a comment; of `#1` alone it makes an empty root.
    is_cut = value.text != text.strip() if value.text is not None else value.value == {} and text.strip() != "{}"
    if is_cut or (isinstance(value.value, str) and not text.lstrip().startswith(("'", '"'))):
        value = Node(text, override.flag)
    # Problems are reported at the flag, not at a line of its text.
    for _, node in walk(value):
        node.place = override.flag
        node.key_places = dict.fromkeys(node.key_places, override.flag)
    return value, problems


def _child(parent: Node, part: str | int) -> Node | None:
    """Returns a copy of a node inside another, which replaces it: an alias may have put the node elsewhere, too."""
    inner: Node | None
    if isinstance(parent.value, dict) and isinstance(part, str):
        inner = parent.value.get(part)
    elif isinstance(parent.value, list) and isinstance(part, int) and part < len(parent.value):
        inner = parent.value[part]
    else:
        return None
    if inner is None or inner.value is None:  # null is replaced by a section or a list
        return None
    own = replace(inner, value=copy(inner.value), key_places=dict(inner.key_places))
    inside: Any = parent.value
    inside[part] = own
    return own


def _put(parent: Node, part: str | int, value: Node, override: Override) -> list[Problem]:
    if isinstance(parent.value, dict) and isinstance(part, str):
        before = _child(parent, part)
        if before is not None and isinstance(before.value, dict) and isinstance(value.value, dict):
            _join(before, value)
        else:
            parent.value[part] = value
            parent.key_places[part] = override.flag
        return []
    if isinstance(parent.value, list) and isinstance(part, int) and part <= len(parent.value):
        parent.value[part : part + 1] = [value]  # the index after the last one appends
        return []
    message = f"'{part}' is inside a value that is not a section"
    if isinstance(parent.value, list):
        message = f"the list has {len(parent.value)} entries, so there is no [{part}]"
    return [Problem(override.key, message, override.flag)]


def _join(before: Node, after: Node) -> None:
    """Merges the keys of one mapping into another, recursively."""
    for key, item in after.value.items():
        own = _child(before, key)
        if own is not None and isinstance(own.value, dict) and isinstance(item.value, dict):
            _join(own, item)
        else:
            before.value[key] = item
            before.key_places[key] = after.key_places[key]
