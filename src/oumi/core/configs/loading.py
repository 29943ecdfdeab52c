# SPDX-License-Identifier: Apache-2.0
"""The only reader of config files: YAML, then overrides, then references, then types; every problem at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ValidationError

from oumi.core.configs.base import DEFAULT, Params, types_in
from oumi.core.configs.interpolation import interpolate
from oumi.core.configs.problems import Path as KeyPath
from oumi.core.configs.problems import (
    holder_of,
    inside,
    origin_of,
    place_of,
    real_path,
    section_of,
    semantic_problems,
    split_key,
    translate,
)
from oumi.core.configs.tree import MAX_BYTES, Node, TreeError, parse, plain, scalar, walk
from oumi.core.errors import ConfigError, Problem
from oumi.core.system.redact import redact

_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")


@dataclass(frozen=True)
class Override:
    """A value given on the command line."""

    key: str
    """Dotted, as `data.train.datasets[0].dataset_name`."""
    text: str
    """YAML text."""
    flag: str
    """As the user wrote it."""


class BaseConfig(Params):
    """A config that is a file of its own."""

    has_references: ClassVar[bool] = True
    """False where `${...}` belongs to another language, such as the shell."""
    other_kind: ClassVar[tuple[frozenset[str], str]] = (frozenset(), "")
    """Keys that only another kind of file begins with, and what to say of it."""

    @classmethod
    def from_yaml(cls, config_path: str | Path, ignore_interpolation: bool = False) -> Self:
        """Returns the config in a file; raises ConfigError with every problem in it."""
        path = Path(config_path)
        return cls._load(read_text(path), path.name, [], ignore_interpolation)

    @classmethod
    def from_str(cls, config_str: str) -> Self:
        """Returns the config in a text."""
        return cls._load(config_str, "text", [], False)

    @classmethod
    def from_yaml_and_arg_list(
        cls,
        config_path: str | Path | None,
        arg_list: Sequence[str],
        logger: logging.Logger | None = None,
        ignore_interpolation: bool = False,
    ) -> Self:
        """Returns the config in a file, changed by arguments such as `training.max_steps=10`."""
        overrides = [_from_argument(argument) for argument in arg_list if not argument.startswith("--local-rank")]
        return cls.load(config_path, overrides, ignore_interpolation)

    @classmethod
    def load(
        cls, config_path: str | Path | None, overrides: Sequence[Override], ignore_interpolation: bool = False
    ) -> Self:
        """Returns the config in a file, changed by overrides; raises ConfigError with every problem."""
        text = read_text(Path(config_path)) if config_path is not None else ""
        name = Path(config_path).name if config_path is not None else "command line"
        return cls._load(text, name, overrides, ignore_interpolation)

    def to_yaml(self, config_path: str | Path) -> None:
        """Writes every value to a file that `from_yaml` reads back."""
        Path(config_path).write_text(dump(self))

    def print_config(self, logger: logging.Logger | None = None) -> None:
        """Prints every value but secrets as YAML, or logs it."""
        (logger.info if logger is not None else print)(dump(self, hides_secrets=True))

    def origin_of(self, key: str) -> str:
        """Returns where the value of a dotted key comes from: `default`, `file:line:column`, a flag, Python."""
        return origin_of(self, split_key(key))

    def keys_set(self) -> set[str]:
        """Returns the dotted keys that somebody set."""
        return {key for key in leaves(self) if self.origin_of(key) != DEFAULT}

    @classmethod
    def _load(cls, text: str, name: str, overrides: Sequence[Override], ignore_interpolation: bool) -> Self:
        try:
            root, problems = parse(text, name)
            if not isinstance(root.value, dict):
                raise TreeError(Problem("", "a config is a mapping of keys to values", root.place))
            if cls.other_kind[0] & root.value.keys() and not cls.model_fields.keys() & root.value.keys():
                raise TreeError(Problem("", cls.other_kind[1], root.place))
        except TreeError as error:
            raise ConfigError([error.problem], name) from None
        for override in overrides:
            problems += _apply(root, override)
        if cls.has_references and not ignore_interpolation:
            problems += interpolate(root, leaves(cls()) if not problems else {})
        config: Self | None
        config, found = _typed(cls, root)
        problems += found
        if problems or config is None:
            raise ConfigError(_once(problems), name)
        return config


def read_text(path: Path) -> str:
    """Returns the text of a config file; raises ConfigError if it is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB, so it is no config")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def leaves(config: Params, prefix: str = "") -> dict[str, Any]:
    """Returns every value that is not a section, under its dotted key."""
    found: dict[str, Any] = {}
    for name, value in config:
        key = f"{prefix}{name}"
        if isinstance(value, Params):
            found |= leaves(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Params) for item in value):
            for i, item in enumerate(value):
                found |= leaves(item, f"{key}[{i}].")
        else:
            found[key] = value
    return found


def locate(config: Params, key: str) -> str:
    """Returns the file position or flag that set a dotted key, empty for a default."""
    return place_of(config, split_key(key))


def to_plain(value: Any) -> Any:
    """Returns a config as plain containers, enums by name."""
    if isinstance(value, BaseModel):
        return {name: to_plain(item) for name, item in value}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def dump(config: Params, hides_secrets: bool = False) -> str:
    """Returns every value of a config as YAML that is read back the same, secrets masked if they are to be hidden."""
    values = redact(to_plain(config)) if hides_secrets else to_plain(config)
    if isinstance(config, BaseConfig) and config.has_references:
        values = _escaped(values)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _escaped(value: Any) -> Any:
    """Returns plain values in which no text is a reference."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Quotes text that our reader would take for a number, such as `1e5`."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style=None if isinstance(scalar(text), str) else "'"
        )


_Dumper.add_representer(str, _Dumper.represent_text)


def _typed(cls: type[BaseConfig], root: Node) -> tuple[Any, list[Problem]]:
    """Returns the config of a tree, or None, and what is wrong with it.

    What cannot be typed is left out and the rest is checked all the same, so that all problems come at once.
    """
    places = _places(root)
    _spell(root, cls)
    values = plain(root)
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        problems = translate(error, cls, places)
        for one in sorted(error.errors(include_url=False), key=lambda one: len(one["loc"]), reverse=True):
            _drop(values, real_path(one["loc"], cls))
        try:
            rest = semantic_problems(cls.model_validate(values), places)
        except ValidationError:  # something required is missing, so there is nothing to check across
            rest = []
        named = {problem.key for problem in problems}
        return None, problems + [problem for problem in rest if problem.key not in named]
    _note_origins(config, places, ())
    return config, semantic_problems(config, places)


def _spell(node: Node, annotation: Any) -> None:
    """Makes a number text again, as it is written, where text is wanted: a name `007` is not `7`."""
    types = set(types_in(annotation))
    if node.text is not None and str in types and not types & {int, float, Any}:
        node.value = node.text
    holder = holder_of(annotation)
    children = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
    for part, inner in children.items() if isinstance(children, dict) else ():
        wanted = inside(holder, part)
        if wanted is not None:
            _spell(inner, wanted)


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


def _drop(values: Any, path: KeyPath) -> None:
    for part in path[:-1]:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if not inside:
            return
        values = values[part]
    if path and isinstance(values, dict):
        values.pop(path[-1], None)


def _apply(root: Node, override: Override) -> list[Problem]:
    """Puts an override into the tree; a mapping joins the mapping that is there."""
    name = re.sub(r"\.(\d+)(?=\.|\[|$)", r"[\1]", override.key)
    if not _KEY.fullmatch(name):
        wanted = "training.max_steps or data.train.datasets[0].split"
        return [Problem(override.key, f"cannot be the name of a key, such as {wanted}", override.flag)]
    try:
        value, problems = parse(override.text, override.flag)
    except TreeError as error:
        return [Problem(override.key, error.problem.message, override.flag)]
    if override.text.strip() in ("", "~", "null", "none", "None"):
        value = Node(None if override.text.strip() else "", override.flag)
    elif value.value == {} and override.text.strip() != "{}":
        value = Node(override.text, override.flag)
    for _, node in walk(value):
        node.place = override.flag
        node.key_places = dict.fromkeys(node.key_places, override.flag)
    parts = split_key(name)
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


def _child(parent: Node, part: str | int) -> Node | None:
    """Returns a node inside another, made the parent's own: an alias may have put it elsewhere too."""
    if isinstance(parent.value, dict) and isinstance(part, str):
        found: Node | None = parent.value.get(part)
    elif isinstance(parent.value, list) and isinstance(part, int) and part < len(parent.value):
        found = parent.value[part]
    else:
        return None
    if found is None or found.value is None:
        return None
    own = replace(found, value=copy(found.value), key_places=dict(found.key_places))
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
        parent.value[part : part + 1] = [value]
        return []
    if isinstance(parent.value, list):
        return [
            Problem(
                override.key,
                f"the list has {len(parent.value)} entries, so there is no [{part}]",
                override.flag,
            )
        ]
    return [Problem(override.key, f"'{part}' lies inside a value that is not a section", override.flag)]


def _join(before: Node, after: Node) -> None:
    """Puts the keys of one mapping into another; mappings in both join."""
    for key, item in after.value.items():
        own = _child(before, key)
        if own is not None and isinstance(own.value, dict) and isinstance(item.value, dict):
            _join(own, item)
        else:
            before.value[key] = item
            before.key_places[key] = after.key_places[key]


def _from_argument(argument: str) -> Override:
    key, equals, text = argument.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"argument '{argument}': wanted key=value, such as training.max_steps=10")
    return Override(key, text, argument.partition("=")[0])


def _once(problems: Sequence[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def keys_of(cls: type[Params], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dotted key that a config knows, with its field; `[]` stands for the index of a list."""
    for name, info in cls.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None:
            yield f"{prefix}{name}", info
        else:
            is_list = "list" in str(info.annotation)
            yield from keys_of(inner, f"{prefix}{name}{'[]' if is_list else ''}.")  # type: ignore[arg-type]  # ours
