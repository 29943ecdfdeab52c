# SPDX-License-Identifier: Apache-2.0
"""Tables of parts by name; a part is imported on first use."""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from oumi.core.errors import ConfigError, Problem, did_you_mean
from oumi.core.system.filesystem import expanded

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
MODELS: Registry[Any] = Registry(
    "model", {"MlpEncoder": "oumi.models:MLPEncoder", "CnnClassifier": "oumi.models:CNNClassifier"}
)
"""Classes of models by name: those of the package, and what user code registers."""
CLOUDS: Registry[Any] = Registry("cloud")
"""Functions that return a cloud, by its name; `oumi.core.launcher` adds those of the package."""


class RegistryType(Enum):
    """The kinds of parts that user code can register."""

    DATASET = auto()
    MODEL = auto()
    CLOUD = auto()


_TABLES: dict[RegistryType, tuple[Registry[Any], str]] = {
    RegistryType.DATASET: (DATASETS, "oumi.core.data.datasets"),
    RegistryType.MODEL: (MODELS, __name__),
    RegistryType.CLOUD: (CLOUDS, "oumi.core.launcher.clouds"),
}
"""The table of each kind, and the module that adds the parts of the package."""


def register(name: str, registry_type: RegistryType) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that registers a part of a kind; raises ConfigError if the name exists."""
    return _table(registry_type).register(name)


def register_dataset(name: str, subset: str | None = None) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that registers the class of a data set, or of one of its subsets."""
    return register(f"{name}/{subset}" if subset else name, RegistryType.DATASET)


def register_cloud_builder(name: str) -> Callable[[NewPart], NewPart]:
    """Returns a decorator that registers a function without arguments that returns a `BaseCloud`."""
    return register(name, RegistryType.CLOUD)


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

    def get_model(self, name: str) -> Any | None:
        """Returns the class of a model; None if it does not exist."""
        return self.get(name, RegistryType.MODEL)


REGISTRY = AllParts()


def _table(registry_type: RegistryType) -> Registry[Any]:
    table, module = _TABLES[registry_type]
    # The parts of the package are registered when this module is imported; user code may come first.
    import_module(module)
    return table


EXTRA_MODULE = "oumi_extra_"
"""Prefix of the module names of user files."""


@lru_cache(maxsize=1)  # so that each file runs once per process
def import_extra_files() -> None:
    """Imports the Python files listed in OUMI_EXTRA_DEPS_FILE, which register data sets and other parts of the user."""
    listing = os.environ.get("OUMI_EXTRA_DEPS_FILE")
    if not listing:
        return
    if not Path(listing).is_file():
        raise ConfigError(f"OUMI_EXTRA_DEPS_FILE: no file {listing}")
    for line in (line.partition("#")[0].strip() for line in Path(listing).read_text(encoding="utf-8").splitlines()):
        if not line:
            continue
        path = expanded(line)
        if not path.is_file():
            raise ConfigError(f"{listing}: no file {line}")
        # A unique name, so that a file `datasets.py` does not replace the library. The digest tells folders apart.
        name = f"{EXTRA_MODULE}{path.stem}_{zlib.crc32(str(path.absolute()).encode()):08x}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None, "a path has a spec"
        assert spec.loader is not None, "a path has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # before it runs: pickling and dataclasses look classes up by their module
        try:
            spec.loader.exec_module(module)
        except (SyntaxError, ImportError, AttributeError, NameError) as error:
            at = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
            raise ConfigError(f"{path}{at}: cannot be imported: {type(error).__name__}: {error}") from error
