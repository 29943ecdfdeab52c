# SPDX-License-Identifier: Apache-2.0
"""Tables of parts by name; a part is imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from oumi.core.errors import ConfigError, Problem, did_you_mean

Part = TypeVar("Part")
NewPart = TypeVar("NewPart")


class Registry(Generic[Part]):
    """A table of parts by name, each given as an object or as `module:attribute`."""

    def __init__(self, kind: str, parts: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        # In lower case, as users write names of trainers and optimizers in either.
        self._parts: dict[str, str | Part] = {name.lower(): part for name, part in (parts or {}).items()}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._parts

    def add(self, parts: Mapping[str, str]) -> None:
        """Adds parts by `module:attribute`; a name that exists keeps its part."""
        # User code may have registered its own part under a name of the package before.
        self._parts = {name.lower(): part for name, part in parts.items()} | self._parts

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        return sorted(self._parts)

    def get(self, name: str) -> Part:
        """Returns the part of a name, in any case; raises ConfigError with the nearest names if there is none."""
        part = self._parts.get(name.lower())
        if part is None:
            hint = did_you_mean(name, self.names()) or f"; known: {', '.join(self.names())}"
            raise ConfigError([Problem("", f"unknown {self.kind} '{name}'{hint}")], self.kind)
        # Imported on first use, then kept.
        if isinstance(part, str):
            module, _, attribute = part.partition(":")
            part = cast(Part, getattr(import_module(module), attribute))
            self._parts[name.lower()] = part
        return part

    def register(self, name: str) -> Callable[[NewPart], NewPart]:
        """Returns a decorator that adds a part under `name`; raises ConfigError if the name exists."""
        if name in self:
            raise ConfigError(f"{self.kind} '{name}' is registered already")

        def add_part(part: NewPart) -> NewPart:
            self._parts[name.lower()] = cast(Part, part)
            return part

        return add_part


DATASETS: Registry[Any] = Registry("data set")
"""Data sets by name; `oumi.core.datasets` adds those of the package."""


class RegistryType(Enum):
    """The kinds of parts that user code can register."""

    DATASET = auto()


_TABLES: dict[RegistryType, tuple[Registry[Any], str]] = {RegistryType.DATASET: (DATASETS, "oumi.core.data.datasets")}
"""The table of each kind, and the module that adds the parts of the package."""


def register(name: str, registry_type: RegistryType) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that registers a part of a kind; raises ConfigError if the name exists."""
    return _table(registry_type).register(name)


def register_dataset(name: str, subset: str | None = None) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that registers the class of a data set, or of one of its subsets."""
    return register(f"{name}/{subset}" if subset else name, RegistryType.DATASET)


class AllParts:
    """The tables of all kinds, with the methods that code written for Oumi calls."""

    def contains(self, name: str, registry_type: RegistryType) -> bool:
        """Returns True if there is such a part."""
        return name in _table(registry_type)

    def get(self, name: str, registry_type: RegistryType) -> Any | None:
        """Returns a part, None if it does not exist."""
        table = _table(registry_type)
        return table.get(name) if name in table else None

    def get_all(self, registry_type: RegistryType) -> dict[str, Any]:
        """Returns every part of a kind, by name."""
        table = _table(registry_type)
        return {name: table.get(name) for name in table.names()}

    def register(self, name: str, registry_type: RegistryType, value: Any) -> None:
        """Registers a part."""
        _table(registry_type).register(name)(value)

    def get_dataset(self, name: str, subset: str | None = None) -> Any | None:
        """Returns the class of a data set, that of its subset if it has its own; None if it does not exist."""
        dataset = self.get(name, RegistryType.DATASET)
        return (self.get(f"{name}/{subset}", RegistryType.DATASET) or dataset) if subset else dataset


REGISTRY = AllParts()


def _table(registry_type: RegistryType) -> Registry[Any]:
    table, module = _TABLES[registry_type]
    # The parts of the package are registered when this module is imported; user code may come first.
    import_module(module)
    return table
