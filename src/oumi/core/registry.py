# SPDX-License-Identifier: Apache-2.0
"""Names that reach parts: a part is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from oumi.core.errors import ConfigError, Problem, did_you_mean

Part = TypeVar("Part")
NewPart = TypeVar("NewPart")


class Registry(Generic[Part]):
    """A table of names, each of which stands for a part, or for `module:attribute` where it is found."""

    def __init__(self, kind: str, parts: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._parts: dict[str, str | Part] = {name.lower(): part for name, part in (parts or {}).items()}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._parts

    def add(self, parts: Mapping[str, str]) -> None:
        """Enters parts by `module:attribute`; names that are known keep theirs."""
        self._parts = {name.lower(): part for name, part in parts.items()} | self._parts

    def names(self) -> list[str]:
        """Returns the known names, sorted."""
        return sorted(self._parts)

    def get(self, name: str) -> Part:
        """Returns the part called `name`, in any case; raises ConfigError with near names on a miss."""
        part = self._parts.get(name.lower())
        if part is None:
            hint = did_you_mean(name, self.names()) or f"; known: {', '.join(self.names())}"
            raise ConfigError([Problem("", f"unknown {self.kind} '{name}'{hint}")], self.kind)
        if isinstance(part, str):
            module, _, attribute = part.partition(":")
            part = cast(Part, getattr(import_module(module), attribute))
            self._parts[name.lower()] = part
        return part

    def register(self, name: str) -> Callable[[NewPart], NewPart]:
        """Returns a decorator that enters a part under `name`; a taken name is an error."""
        if name in self:
            raise ConfigError(f"{self.kind} '{name}' is registered already")

        def enter(part: NewPart) -> NewPart:
            self._parts[name.lower()] = cast(Part, part)
            return part

        return enter


DATASETS: Registry[Any] = Registry("data set")
"""Data sets by name; `oumi.core.datasets` enters those that ship."""


class RegistryType(Enum):
    """Kinds of parts that code of one's own may enter."""

    DATASET = auto()


_TABLES: dict[RegistryType, tuple[Registry[Any], str]] = {RegistryType.DATASET: (DATASETS, "oumi.core.data.datasets")}
"""The table of each kind, and the module that enters the parts which ship."""


def register(name: str, registry_type: RegistryType) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that enters a part of some kind under a name; a taken name is an error."""
    return _table(registry_type).register(name)


def register_dataset(name: str, subset: str | None = None) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that enters the class of a data set under a name, or of one subset of it."""
    return register(f"{name}/{subset}" if subset else name, RegistryType.DATASET)


class AllParts:
    """The tables of every kind, as code written for Oumi asks for them."""

    def contains(self, name: str, registry_type: RegistryType) -> bool:
        """Returns True if there is such a part."""
        return name in _table(registry_type)

    def get(self, name: str, registry_type: RegistryType) -> Any | None:
        """Returns a part, None if there is none."""
        table = _table(registry_type)
        return table.get(name) if name in table else None

    def get_all(self, registry_type: RegistryType) -> dict[str, Any]:
        """Returns every part of a kind, by name."""
        table = _table(registry_type)
        return {name: table.get(name) for name in table.names()}

    def register(self, name: str, registry_type: RegistryType, value: Any) -> None:
        """Enters a part."""
        _table(registry_type).register(name)(value)

    def get_dataset(self, name: str, subset: str | None = None) -> Any | None:
        """Returns the class of a data set: that of the subset if it has one of its own; None if there is none."""
        dataset = self.get(name, RegistryType.DATASET)
        return (self.get(f"{name}/{subset}", RegistryType.DATASET) or dataset) if subset else dataset


REGISTRY = AllParts()


def _table(registry_type: RegistryType) -> Registry[Any]:
    table, home = _TABLES[registry_type]
    import_module(home)
    return table
