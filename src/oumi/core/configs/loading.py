# SPDX-License-Identifier: Apache-2.0
"""Reads config files: YAML, then overrides, then references, then types. Reports all problems together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, PrivateAttr

from oumi.core.configs.base import DEFAULT, SET_IN_PYTHON, Params
from oumi.core.configs.draft import Draft, make_draft, restore_text
from oumi.core.configs.interpolation import interpolate
from oumi.core.configs.overrides import Override, apply, override_of
from oumi.core.configs.problems import in_order, origin_of, place_of, section_of, split_key
from oumi.core.configs.tree import MAX_BYTES, TreeError, parse, scalar
from oumi.core.errors import ConfigError, Problem
from oumi.core.system.redact import redact


class BaseConfig(Params):
    """A config that has a file of its own."""

    has_references: ClassVar[bool] = True
    """False if `${...}` belongs to another language, such as that of the shell."""
    other_kind: ClassVar[tuple[frozenset[str], str]] = (frozenset(), "")
    """Top-level keys of another kind of file, and the message if a file has only those."""

    _unset: tuple[Problem, ...] = PrivateAttr(())

    @classmethod
    def from_yaml(cls, config_path: str | Path, ignore_interpolation: bool = False) -> Self:
        """Returns the config in a file; raises ConfigError with all of its problems."""
        path = Path(config_path)
        return cls._load(read_text(path), path.name, [], ignore_interpolation)

    @classmethod
    def from_str(cls, config_str: str) -> Self:
        """Returns the config in a YAML text; raises ConfigError with all of its problems."""
        return cls._load(config_str, "text", [], False)

    @classmethod
    def from_yaml_and_arg_list(
        cls,
        config_path: str | Path | None,
        arg_list: Sequence[str],
        logger: logging.Logger | None = None,
        ignore_interpolation: bool = False,
    ) -> Self:
        """Returns the config in a file with arguments such as `training.max_steps=10`; raises ConfigError.

        `logger` is not used; it is part of the interface of Oumi.
        """
        # Launchers of torch add --local-rank, which is no key.
        overrides = [override_of(argument) for argument in arg_list if not argument.startswith("--local-rank")]
        return cls.load(config_path, overrides, ignore_interpolation)

    @classmethod
    def load(
        cls, config_path: str | Path | None, overrides: Sequence[Override], ignore_interpolation: bool = False
    ) -> Self:
        """Returns the config in a file with overrides; raises ConfigError with all problems.

        The machine is not checked, such as whether data files exist: `oumi.core.plan.refusals` does that.
        """
        if config_path is None:
            return cls._load("", "command line", overrides, ignore_interpolation)
        path = Path(config_path)
        return cls._load(read_text(path), path.name, overrides, ignore_interpolation)

    @classmethod
    def draft(cls, config_path: str | Path, overrides: Sequence[Override] = ()) -> Draft[Self]:
        """Returns the valid part of the config in a file with overrides, and all problems.

        Raises:
            ConfigError: The text is not YAML, or not a config at all.
        """
        return cls._draft(read_text(Path(config_path)), Path(config_path).name, overrides, False)

    def to_yaml(self, config_path: str | Path) -> None:
        """Writes all values to a file that `from_yaml` can read."""
        Path(config_path).write_text(dump(self), encoding="utf-8")

    def print_config(self, logger: logging.Logger | None = None) -> None:
        """Prints or logs all values as YAML, with secrets masked."""
        (logger.info if logger is not None else print)(dump(self, hides_secrets=True))

    def origin_of(self, key: str) -> str:
        """Returns the origin of a dotted key: `default`, `file:line:column`, a flag, or `set in Python`."""
        return origin_of(self, split_key(key))

    def keys_set(self) -> set[str]:
        """Returns the dotted keys whose value is not left at its default."""
        return {key for key in leaves(self) if self.origin_of(key) != DEFAULT}

    def unset_variables(self) -> list[Problem]:
        """Returns the references to environment variables that were not set when the config was read."""
        # A value that was assigned since then replaced its reference.
        return [problem for problem in self._unset if locate(self, problem.key) != SET_IN_PYTHON]

    @classmethod
    def _load(cls, text: str, name: str, overrides: Sequence[Override], ignore_interpolation: bool) -> Self:
        draft = cls._draft(text, name, overrides, ignore_interpolation)
        if draft.problems or draft.config is None:
            raise ConfigError(draft.problems, name)
        return draft.config

    @classmethod
    def _draft(cls, text: str, name: str, overrides: Sequence[Override], ignore_interpolation: bool) -> Draft[Self]:
        try:
            root, duplicates = parse(text, name)
            if not isinstance(root.value, dict):
                raise TreeError(Problem("", "expected a mapping of keys to values", root.place))
            if cls.other_kind[0] & root.value.keys() and not cls.model_fields.keys() & root.value.keys():
                raise TreeError(Problem("", cls.other_kind[1], root.place))
        except TreeError as error:
            raise ConfigError([error.problem], name) from None
        # Overrides come before references, so that a reference sees the overridden value.
        unusable = [problem for override in overrides for problem in apply(root, override, cls)]
        unset: list[Problem] = []
        restore_text(root, cls)  # so that a reference to a name `007` within other text does not see the number 7
        if cls.has_references and not ignore_interpolation:
            unfilled, unset = interpolate(root, leaves(cls()))
            unusable += unfilled
        # A duplicate key does not invalidate the config, so it is only added to the problems.
        draft = make_draft(cls, root, unusable, unset)
        if draft.config is not None:
            draft.config._unset = tuple(draft.unset)
        return replace(draft, problems=in_order([*duplicates, *draft.problems]))


def read_text(path: Path) -> str:
    """Returns the text of a config file; raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB, so it is not a config")
        return path.read_bytes().decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def leaves(config: Params, prefix: str = "") -> dict[str, Any]:
    """Returns all values that are not sections, by dotted key."""
    values: dict[str, Any] = {}
    for name, value in config:
        key = f"{prefix}{name}"
        if isinstance(value, Params):
            values |= leaves(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Params) for item in value):
            for i, item in enumerate(value):
                values |= leaves(item, f"{key}[{i}].")
        else:
            values[key] = value
    return values


def locate(config: Params, key: str) -> str:
    """Returns the file position or flag that set a dotted key or one above it, empty for a default."""
    return place_of(config, split_key(key))


def to_plain(value: Any) -> Any:
    """Returns a config as plain dicts and lists, with enums by name."""
    if isinstance(value, BaseModel):
        return {name: to_plain(item) for name, item in value}
    if isinstance(value, Enum):
        return value.name  # YAML has no enums, and a name is accepted in any case
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def dump(config: Params, hides_secrets: bool = False) -> str:
    """Returns all values of a config as YAML that is read back the same, optionally with secrets masked."""
    values = redact(to_plain(config)) if hides_secrets else to_plain(config)
    # Text that contains `${` was escaped in its file, and must be again.
    if isinstance(config, BaseConfig) and config.has_references:
        values = _escaped(values, keeps_variables=bool(config.unset_variables()))
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _escaped(value: Any, keeps_variables: bool) -> Any:
    """Returns plain values with every `${` escaped, except in references to variables that were not set."""
    if isinstance(value, dict):
        return {key: _escaped(item, keeps_variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item, keeps_variables) for item in value]
    if not isinstance(value, str) or (keeps_variables and "${oc.env:" in value):
        return value
    return value.replace("${", "\\${")


class _Dumper(yaml.SafeDumper):
    """Quotes text that our parser would read as a number, such as `1e5`, which PyYAML leaves unquoted."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style=None if isinstance(scalar(text), str) else "'"
        )


_Dumper.add_representer(str, _Dumper.represent_text)


def keys_of(cls: type[Params], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dotted key of a config class with its field; `[]` stands for the index of a list."""
    for name, info in cls.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None:
            yield f"{prefix}{name}", info
        else:
            is_list = "list" in str(info.annotation)
            yield from keys_of(inner, f"{prefix}{name}{'[]' if is_list else ''}.")  # type: ignore[arg-type]  # ours
