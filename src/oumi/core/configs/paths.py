# SPDX-License-Identifier: Apache-2.0
"""Keys whose value may be a path, in which `~` is the home directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args

from oumi.core.configs.base import Params
from oumi.core.errors import ConfigError, Problem


class _Path:
    """Marks the type of a field."""


PathText = Annotated[str, _Path()]
"""A path, or a name of the Hub."""

Section = TypeVar("Section", bound=Params)


def with_home(config: Section) -> Section:
    """Returns the config with the home directory in place of `~` in its paths; itself if none begins so.

    Raises:
        ConfigError: There is no such home directory; lists all keys.
    """
    if not any(_paths(config)):
        return config
    expanded = config.model_copy(deep=True)
    problems = []
    for key, section, name in _paths(expanded):
        value = getattr(section, name)
        path = os.path.expanduser(value)
        if path == value:
            home = value.partition("/")[0]
            problems.append(Problem(key, f"got '{value}', but there is no home directory {home}; write the whole path"))
        else:
            section.set_from(name, path, section.own_origin(name))
    if problems:
        raise ConfigError(problems)
    return expanded


def _paths(section: Params, prefix: str = "") -> Iterator[tuple[str, Params, str]]:
    """Yields the dotted key, the section and the name of each path that begins with `~`."""
    for name, value in section:
        field = type(section).model_fields[name]
        if isinstance(value, Params):
            yield from _paths(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value.startswith("~"):
            marks = (*field.metadata, *_metadata(field.annotation))
            if any(isinstance(mark, _Path) for mark in marks):
                yield f"{prefix}{name}", section, name


def _metadata(annotation: Any) -> Iterator[Any]:
    """Yields the marks of a type and of the types within it, such as in `PathText | None`."""
    for part in get_args(annotation):
        yield part
        yield from _metadata(part)
