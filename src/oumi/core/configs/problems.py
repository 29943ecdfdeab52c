# SPDX-License-Identifier: Apache-2.0
"""Problems of a config in the user's terms: the key, the actual value, the expected one, the nearest valid name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from oumi.core.configs.interpolation import dotted
from oumi.core.errors import Problem, did_you_mean, nearest

Path = tuple[str | int, ...]
_MAX_PROBLEMS = 100


def translate(error: ValidationError, root: type[BaseModel], value_places: Mapping[Path, str]) -> list[Problem]:
    """Returns the errors of pydantic as problems, each at the place of its key or of the nearest one above it."""
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        if len(problems) >= _MAX_PROBLEMS:
            return [*problems.values(), Problem("", f"and more; only the first {_MAX_PROBLEMS} are shown")]
        path = real_path(detail["loc"], root)
        key = dotted(path)
        # The members of a union each have an error; the first one is enough, or one of an entry of a list.
        is_of_member = len(path) < len(detail["loc"])
        if key not in problems and not (is_of_member and any(other.startswith(f"{key}[") for other in problems)):
            problems[key] = Problem(key, _message(detail, path, root), nearest_place(path, value_places))
    return list(problems.values())


def real_path(loc: Path, root: type[BaseModel]) -> Path:
    """Returns the path of a pydantic error, without the names of union members in it."""
    path: list[str | int] = []
    holder: Any = root
    for part in loc:
        next_holder = inside(holder, part)
        # Either the name of a union member, or an unknown key of a section, which belongs to the path and ends it.
        if next_holder is None and _is_section(holder):
            if isinstance(part, str):
                path.append(part)
            break
        if next_holder is None:
            continue
        path.append(part)
        holder = holder_of(next_holder)
    return tuple(path)


def _is_section(holder: Any) -> bool:
    return isinstance(holder, type) and issubclass(holder, BaseModel)


def holder_of(annotation: Any) -> Any:
    """Returns the section, list or mapping in an annotation, None if there is none."""
    if _is_section(annotation) or typing.get_origin(annotation) in (list, dict):
        return annotation
    inner = (holder_of(holder) for holder in typing.get_args(annotation))
    return next((holder for holder in inner if holder is not None), None)


def inside(holder: Any, part: str | int) -> Any:
    """Returns the annotation of a part of a section, list or mapping, None if it has no such part."""
    if _is_section(holder):
        info = holder.model_fields.get(part)
        return info.annotation if info else None
    key_type = {list: int, dict: str}.get(typing.get_origin(holder))
    return typing.get_args(holder)[-1] if key_type is not None and isinstance(part, key_type) else None


def nearest_place(path: Path, places: Mapping[Path, str]) -> str:
    """Returns the place of a key, or of the nearest key above it that has one; empty if none has."""
    for length in range(len(path), -1, -1):
        if path[:length] in places:
            return places[path[:length]]
    return ""


def semantic_problems(config: Any, places: Mapping[Path, str] | None = None) -> list[Problem]:
    """Returns the problems of a config that no single value has, such as two keys that exclude each other."""
    problems = []
    for path, section in sections(config):
        for key, message in section.complaints():
            full = (*path, *split_key(key))
            # While a file is read, the places of its text; later, the origins that the config has recorded.
            place = nearest_place(full, places) if places is not None else place_of(config, full)
            problems.append(Problem(dotted(full), message, place))
    return problems


def sections(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields a config and every section below it, with their paths."""
    yield path, config
    for name, value in config:
        if isinstance(value, BaseModel):
            yield from sections(value, (*path, name))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from sections(item, (*path, name, i))


def place_of(config: Any, path: Path) -> str:
    """Returns the file position or flag that set a key or the nearest one above it, empty if all are defaults."""
    section: Any = config
    origin = ""
    # On the way down, the last origin that is no default is the nearest.
    for part in path:
        if isinstance(section, BaseModel) and isinstance(part, str):
            if part not in type(section).model_fields:
                return origin
            own = cast(Any, section).own_origin(part)
            origin = own if own != "default" else origin
            section = getattr(section, part)
        elif isinstance(section, list) and isinstance(part, int) and part < len(section):
            section = section[part]
        else:  # inside a dict, whose keys have no origin of their own
            return origin
    return origin


def origin_of(config: Any, path: Path) -> str:
    """Returns the origin of exactly this key: `default`, `file:line:column`, a flag, or `set in Python`."""
    *above, name = path
    section = config
    for part in above:
        section = section[part] if isinstance(part, int) else getattr(section, part)
    origin: str = section.own_origin(name)
    return origin


def split_key(key: str) -> Path:
    """Returns the path of a dotted key such as `a.b[0].c`."""
    parts = re.findall(r"\[\d+\]|[^.\[\]]+", key)
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Returns the problems by line, without repetitions; those without a line come last."""
    unique: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        unique.setdefault((problem.key, problem.message), problem)

    def position(problem: Problem) -> tuple[float, int]:
        match = re.fullmatch(r".*:(\d+):(\d+)", problem.place)
        return (int(match[1]), int(match[2])) if match else (float("inf"), 0)

    return sorted(unique.values(), key=position)


def meant_keys(error: ValidationError, root: type[BaseModel]) -> Iterator[Path]:
    """Yields the keys that the unknown ones were probably meant to be."""
    for detail in error.errors(include_url=False)[:_MAX_PROBLEMS]:
        if detail["type"] == "extra_forbidden":
            path = real_path(detail["loc"], root)
            section, name = _meant(str(path[-1]), _section_at(path[:-1], root) or root, root)
            # In a list it is unknown which entry is meant.
            if name is not None and "[]" not in (section or ""):
                yield (*(path[:-1] if section is None else split_key(section)), name)


# Cached, since a file may have thousands of unknown keys, and each search compares it with all names.
@lru_cache(maxsize=1024)
def _meant(name: str, section: type[BaseModel], root: type[BaseModel]) -> tuple[str | None, str | None]:
    """Returns the section and the name that an unknown key was probably meant to be, both None if nothing is similar.

    The section is None for a key of the same section.
    """
    # In this order: the same name elsewhere, a similar name here, a similar name elsewhere.
    others = [(path, other) for path, other in _all_sections(root) if other is not section]
    for path, other in others:
        if name in other.model_fields:
            return path, name
    if near := nearest(name, section.model_fields):
        return None, near
    for path, other in others:
        if near := nearest(name, other.model_fields):
            return path, near
    return None, None


def follows(problem: Problem, left_out: Iterable[Path], root: type[BaseModel]) -> bool:
    """Returns True if a problem may only be due to the default of a key whose invalid value was left out."""
    if is_about(split_key(problem.key), left_out):
        return True
    # A message about several keys names them all, or their values. The plain search is fast and excludes most words.
    words = (word for path in left_out for word in _words(path, root) if word in problem.message)
    return any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", problem.message) for word in words)


def is_about(path: Path, keys: Iterable[Path]) -> bool:
    """Returns True if a key equals one of several keys, or is below or above one."""
    return any(path[: len(key)] == key[: len(path)] for key in keys if path and key)


def _words(path: Path, root: type[BaseModel]) -> Iterator[str]:
    """Yields the words by which a message may refer to a key that is at its default."""
    if not path:
        return
    yield dotted(path)
    name = str(path[-1])
    if "_" in name:  # other names may be ordinary words of a message, such as `compile`
        yield name
    section = _section_at(path[:-1], root)
    if section is not None and name in section.model_fields:
        yield from _default_words(section.model_fields[name].default)


def _default_words(default: Any) -> Iterator[str]:
    if isinstance(default, BaseModel):
        for _, value in default:
            yield from _default_words(value)
    elif isinstance(default, Enum):
        yield default.name
    elif isinstance(default, str):
        yield f"'{default}'"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the section in the annotation of a field, also inside a list or an optional; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        if inner is not types.NoneType and (section := section_of(inner)):
            return section
    return None


def _all_sections(root: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, root
    for name, info in root.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            is_list = "list" in str(info.annotation)
            yield from _all_sections(inner, f"{path}.{name}".lstrip(".") + ("[]" if is_list else ""))


def _section_at(path: Path, root: type[BaseModel]) -> type[BaseModel] | None:
    holder: Any = root
    for part in path:
        holder = holder_of(inside(holder, part))
    return holder if _is_section(holder) else None


def _message(error: Any, path: Path, root: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("extra_forbidden", "no_such_attribute"):
        name, section = str(path[-1]), _section_at(path[:-1], root) or root
        where, meant = _meant(name, section, root)
        if meant is None:
            fields = list(section.model_fields)
            return f"unknown key; known here: {', '.join(fields[:12])}{', ...' if len(fields) > 12 else ''}"
        if meant == name:
            return f"unknown key here; it belongs in '{where}'" if where else "unknown key here; it belongs at the top"
        return f"unknown key, did you mean '{meant}'{f' in {where!r}' if where else ''}?"
    if kind == "missing":
        return "required, but missing"
    if error["input"] is None and kind != "value_error":
        return f"has no value, must be {_expected(kind, context, path, root, error)}"
    return f"got {shown(error['input'])}, must be {_expected(kind, context, path, root, error)}"


def _expected(kind: str, context: Mapping[str, Any], path: Path, root: type[BaseModel], error: Any) -> str:
    # pydantic's error types; its own messages are for programmers.
    simple = {
        "float_parsing": "a number", "float_type": "a number", "int_parsing": "a whole number",
        "int_type": "a whole number", "int_from_float": "a whole number", "bool_parsing": "true or false",
        "bool_type": "true or false", "string_type": "text", "list_type": "a list",
        "dict_type": "a mapping of keys to values",
        "model_type": "a section with keys", "model_attributes_type": "a section with keys",
        "finite_number": "a finite number",
    }  # fmt: skip
    if kind in simple:
        return " or ".join([simple[kind], *_choices(path, root)])
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        sign = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}[kind]
        return f"{sign} {next(iter(context.values())):g}"
    # By name: a NamedEnum takes names and values, but the schema and the messages only show names.
    if kind in ("enum", "literal_error"):
        names = _choices(path, root) or [str(context.get("expected", ""))]
        hint = did_you_mean(str(error["input"]), names)
        return f"one of {', '.join(names)}{hint}"
    return str(error["msg"]).removeprefix("Value error, ")


def _choices(path: Path, root: type[BaseModel]) -> list[str]:
    """Returns the names that the field of a key allows, none if it is not an enum or a literal."""
    section = _section_at(path[:-1], root)
    info = section.model_fields.get(str(path[-1])) if section else None
    return list(_names(info.annotation)) if info else []


def _names(annotation: Any) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from (name.name for name in annotation)
    elif typing.get_origin(annotation) is typing.Literal:
        yield from (str(name) for name in typing.get_args(annotation))
    else:
        for inner in typing.get_args(annotation):
            yield from _names(inner)


def shown(value: Any) -> str:
    """Returns a value as text for a message, in at most 60 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    # The contents of containers could be long, and could include secrets.
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
