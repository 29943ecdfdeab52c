# SPDX-License-Identifier: Apache-2.0
"""Makes a config from the tree of a file. Invalid values are left out, so that all others are checked as well."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from oumi.core.configs.base import Params, ScalarText, is_text_key, types_in
from oumi.core.configs.problems import Path as KeyPath
from oumi.core.configs.problems import (
    follows,
    holder_of,
    in_order,
    inside,
    is_about,
    meant_keys,
    real_path,
    section_of,
    semantic_problems,
    split_key,
    translate,
)
from oumi.core.configs.tree import Node, plain, scalar, walk
from oumi.core.errors import Problem

ConfigT = TypeVar("ConfigT", bound=Params)

_MAX_ROUNDS = 6
"""Rounds of validation: leaving out a required key adds a placeholder, which may lack required keys of its own."""


@dataclass(frozen=True)
class Draft(Generic[ConfigT]):
    """The valid part of a config, and the problems of its text."""

    kind: type[ConfigT]
    config: ConfigT | None
    """The config with invalid values at their defaults, None if it cannot be made at all."""
    problems: Sequence[Problem]
    """Problems of spelling, types and meaning."""
    unset: Sequence[Problem]
    """References to environment variables that are not set on this machine; the config contains them unchanged."""
    left_out: frozenset[KeyPath]
    """Keys whose value in the config is not that of the text."""
    places: Mapping[KeyPath, str]
    """The place of each key in the text."""

    def joined(self, others: Iterable[Problem]) -> list[Problem]:
        """Returns these and other problems in the order of the file, without those that follow from left-out values."""
        own = [
            replace(problem, place=self.places.get(split_key(problem.key), problem.place))
            for problem in others
            if not follows(problem, self.left_out, self.kind)
        ]
        return in_order([*self.problems, *self.unset, *own])


def make_draft(cls: type[ConfigT], root: Node, unusable: Sequence[Problem], unset: Sequence[Problem]) -> Draft[ConfigT]:
    """Returns the draft of a config.

    Args:
        cls: Class of the config.
        root: Tree of the file, which is changed in place.
        unusable: Problems of values that are left out before validation.
        unset: Problems of references that cannot be resolved on this machine alone.
    """
    places = _places(root)
    restore_text(root, cls)
    values = plain(root)
    absent = {problem.key: problem for problem in unset}
    left_out = {_leave_out(values, split_key(problem.key), cls) for problem in unusable}
    problems: list[Problem] = list(unusable)
    config: ConfigT | None = None
    # Validate, leave out what is invalid, and validate the rest.
    for _ in range(_MAX_ROUNDS):
        try:
            config = cls.model_validate(values)
            break
        except ValidationError as refused:
            # A misspelled key was meant to set another one, which is then at its default.
            left_out |= {path for path in meant_keys(refused, cls) if path not in places}
            for problem in translate(refused, cls, places):
                if not is_about(split_key(problem.key), left_out):
                    # A number from an unset variable is invalid text; the variable is the better message.
                    problems.append(absent.pop(problem.key, problem))
            kinds = {real_path(error["loc"], cls): error["type"] for error in refused.errors(include_url=False)}
            # The deepest first, so that the paths of the others stay valid.
            for path in sorted(kinds, key=len, reverse=True):
                without = _leave_out(values, path, cls, is_missing=kinds[path] == "missing")
                if kinds[path] != "extra_forbidden":  # an unknown key has no default
                    left_out.add(without)
    left_out |= {split_key(key) for key in absent}
    if config is not None:
        _note_origins(config, places, ())
        meaning = semantic_problems(config, places)
        problems += [problem for problem in meaning if not follows(problem, left_out, cls)]
    return Draft(cls, config, in_order(problems), list(absent.values()), frozenset(left_out), places)


def _leave_out(values: Any, path: KeyPath, root: type[Params], is_missing: bool = False) -> KeyPath:
    """Removes a value from plain values, or adds a placeholder for a required one that is missing.

    Returns:
        The path of what was removed: of the whole list, if an entry has no default.
    """
    if not path:
        return path
    holder: Any = values
    annotation: Any = root
    for part in path[:-1]:
        if not _has(holder, part):
            return path
        holder, annotation = holder[part], holder_of(inside(annotation, part))
    last: Any = path[-1]
    if isinstance(holder, list):
        if not _has(holder, last) or section_of(inside(annotation, last)) is None:
            return _leave_out(values, path[:-1], root)
        holder[last] = {}  # not removed, which would shift the entries after it
    elif isinstance(holder, dict):
        holder.pop(last, None)
        if is_missing:
            # Any valid value: no further problem of this key is reported.
            expected = inside(annotation, last)
            choices = typing.get_args(expected) if typing.get_origin(expected) is typing.Literal else ()
            holder[last] = {} if section_of(expected) is not None else choices[0] if choices else ""
    return path


def _has(holder: Any, part: str | int) -> bool:
    if isinstance(holder, list):
        return isinstance(part, int) and part < len(holder)
    return isinstance(holder, dict) and part in holder


def restore_text(node: Node, annotation: Any) -> None:
    """Replaces values by those of the type that their key expects.

    Numbers become their text where text is expected, text of the environment becomes a number or a flag where one is
    expected, and null an empty section, list or mapping.
    """
    types = set(types_in(annotation))
    holder = holder_of(annotation)
    # A flag where text is expected stays a flag, which is then an error; a number is taken as text.
    is_text = not isinstance(node.value, bool) and not types & {int, float, Any}
    if node.text is not None and (annotation == ScalarText or (str in types and is_text)):
        node.value = node.text  # as written: a name `007` is not `7`
    elif node.is_text and isinstance(node.value, str) and not is_text_key(annotation) and Any not in types:
        node.value = scalar(node.value)
    elif node.value is None and holder is not None and NoneType not in types:
        node.value = [] if typing.get_origin(holder) is list else {}  # a key with nothing after it
    children = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
    for part, inner in children.items() if isinstance(children, dict) else ():
        expected = inside(holder, part)
        if expected is not None:
            restore_text(inner, expected)


def _places(root: Node) -> dict[KeyPath, str]:
    """Returns the place of each key and list entry."""
    places: dict[KeyPath, str] = {}
    for path, node in walk(root):
        places.setdefault(path, node.place)
        for key, place in node.key_places.items():
            places[(*path, key)] = place
    return places


def _note_origins(section: Params, places: Mapping[KeyPath, str], path: KeyPath) -> None:
    for name, value in section:
        here = (*path, name)
        if here in places:
            section._origins[name] = places[here]
        if isinstance(value, Params):
            _note_origins(value, places, here)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Params):
                    _note_origins(item, places, (*here, i))
