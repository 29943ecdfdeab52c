# SPDX-License-Identifier: Apache-2.0
"""From the tree of a file to a config: what is wrong is left out, so that everything else is checked all the same."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from oumi.core.configs.base import Params, ScalarText, types_in
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
from oumi.core.configs.tree import Node, plain, walk
from oumi.core.errors import Problem

ConfigT = TypeVar("ConfigT", bound=Params)

_MAX_ROUNDS = 6
"""A key that is left out may be a required one, which then gets a value of its own, and so on down the sections."""


@dataclass(frozen=True)
class Draft(Generic[ConfigT]):
    """A config as far as its text can be understood, and what is wrong with the text."""

    kind: type[ConfigT]
    config: ConfigT | None
    """What is wrong stands at its default; None if nothing can be made of the text."""
    problems: Sequence[Problem]
    """Of spelling, types and meaning."""
    unset: Sequence[Problem]
    """References to environment variables that are not set on this machine: the config holds them as they are written.
    """
    left_out: frozenset[KeyPath]
    """Keys whose value in the config is not the one that the text means."""
    places: Mapping[KeyPath, str]
    """Where each key stands."""

    def joined(self, others: Iterable[Problem]) -> list[Problem]:
        """Returns all problems in the order of the file; of the others, those that what was left out cannot explain."""
        own = [
            replace(problem, place=self.places.get(split_key(problem.key), problem.place))
            for problem in others
            if not follows(problem, self.left_out, self.kind)
        ]
        return in_order([*self.problems, *self.unset, *own])


def make_draft(cls: type[ConfigT], root: Node, unusable: Sequence[Problem], unset: Sequence[Problem]) -> Draft[ConfigT]:
    """Returns the config of a tree, as far as it has one.

    Args:
        cls: Of the config.
        root: Changed in place.
        unusable: What is wrong with values that cannot be used at all.
        unset: What is wrong with references that only this machine cannot fill.
    """
    places = _places(root)
    _spell(root, cls)
    values = plain(root)
    absent = {problem.key: problem for problem in unset}
    left_out = {_leave_out(values, split_key(problem.key), cls) for problem in unusable}
    problems: list[Problem] = list(unusable)
    config: ConfigT | None = None
    for _ in range(_MAX_ROUNDS):
        try:
            config = cls.model_validate(values)
            break
        except ValidationError as refused:
            left_out |= {path for path in meant_keys(refused, cls) if path not in places}
            for problem in translate(refused, cls, places):
                if not is_about(split_key(problem.key), left_out):
                    problems.append(absent.pop(problem.key, problem))
            kinds = {real_path(error["loc"], cls): error["type"] for error in refused.errors(include_url=False)}
            for path in sorted(kinds, key=len, reverse=True):
                without = _leave_out(values, path, cls, is_missing=kinds[path] == "missing")
                if kinds[path] != "extra_forbidden":  # which has no default
                    left_out.add(without)
    left_out |= {split_key(key) for key in absent}
    if config is not None:
        _note_origins(config, places, ())
        meaning = semantic_problems(config, places)
        problems += [problem for problem in meaning if not follows(problem, left_out, cls)]
    return Draft(cls, config, in_order(problems), list(absent.values()), frozenset(left_out), places)


def _leave_out(values: Any, path: KeyPath, root: type[Params], is_missing: bool = False) -> KeyPath:
    """Takes a value out of plain values, or puts something in the place of a required one that is missing.

    Returns:
        The path of what was left out: of the whole list, where an entry has no default.
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
        holder[last] = {}
    elif isinstance(holder, dict):
        holder.pop(last, None)
        if is_missing:
            holder[last] = _placeholder(inside(annotation, last))
    return path


def _has(holder: Any, part: str | int) -> bool:
    if isinstance(holder, list):
        return isinstance(part, int) and part < len(holder)
    return isinstance(holder, dict) and part in holder


def _placeholder(annotation: Any) -> Any:
    """Returns a value for a required key, which nothing is said about."""
    if section_of(annotation) is not None:
        return {}
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    return choices[0] if choices else ""


def _spell(node: Node, annotation: Any) -> None:
    """Gives a value the form that its key asks for.

    A number is text again, as it is written, where text belongs: a name `007` is not `7`. A section, list or mapping
    of which nothing is written is an empty one.
    """
    types = set(types_in(annotation))
    holder = holder_of(annotation)
    is_number = not isinstance(node.value, bool) and not types & {int, float, Any}
    if node.text is not None and (annotation == ScalarText or (str in types and is_number)):
        node.value = node.text
    elif node.value is None and holder is not None and NoneType not in types:
        node.value = [] if typing.get_origin(holder) is list else {}
    children = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
    for part, inner in children.items() if isinstance(children, dict) else ():
        expected = inside(holder, part)
        if expected is not None:
            _spell(inner, expected)


def _places(root: Node) -> dict[KeyPath, str]:
    """Returns where each key and list entry stands."""
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
