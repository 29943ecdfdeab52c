# SPDX-License-Identifier: Apache-2.0
"""Finds the data set of a name in a config: one that ships, one of the user, or any other on the Hub."""

from __future__ import annotations

import inspect
from functools import cache

from oumi.core.configs import DatasetParams
from oumi.core.data.datasets.any_schema import ShapedDataset
from oumi.core.data.datasets.base import BaseMapDataset
from oumi.core.data.datasets.table import NAMES, Named
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.log import logger
from oumi.core.registry import DATASETS, import_extra_files

DATASETS.add({name: named.part for name, named in NAMES.items()})
# Names match in any case; an id on the Hub keeps the spelling of the table.
_BY_LOWER = {name.lower(): (name, named) for name, named in NAMES.items()}


def dataset_for(params: DatasetParams, is_streamed: bool = False) -> BaseMapDataset:
    """Returns the data set of a config: a registered one, or any other, whose shape is detected.

    Args:
        params: The data set in the config.
        is_streamed: Stream rows of the Hub during training.

    Raises:
        ConfigError: The data set does not accept an argument, or has no rows to train on.
    """
    name, class_ = _class_of(params)
    if not (isinstance(class_, type) and issubclass(class_, BaseMapDataset)):
        raise ConfigError(f"data set '{name}': has no rows to train on: {class_.__name__} is not a BaseMapDataset")
    kwargs = dict(params.dataset_kwargs)
    hub_name = kwargs.pop("dataset_name_override", None)
    if not hub_name and params.dataset_name.lower() in _BY_LOWER:
        canonical, named = _BY_LOWER[params.dataset_name.lower()]
        hub_name = named.hub_name or canonical
    hub_name = hub_name or class_.default_dataset or params.dataset_name  # a class of the user may name its own id
    arguments = _arguments(class_)
    for key in kwargs:
        if key not in arguments:
            takes = f"; it takes {', '.join(sorted(arguments))}" if arguments else "; it takes none"
            hint = did_you_mean(key, arguments) or takes
            raise ConfigError(f"dataset_kwargs.{key}: unknown to data set '{params.dataset_name}'{hint}")
    preset = _BY_LOWER[name.lower()][1] if name.lower() in _BY_LOWER else Named("")
    if preset.is_script and params.dataset_path is None:
        _warn_of_script(hub_name)
    try:
        dataset = class_(
            **{
                "dataset_name": hub_name,
                "dataset_path": params.dataset_path,
                "split": params.split,
                "subset": params.subset,
                **preset.arguments,  # before those of the config, which override them
                **kwargs,
            }
        )
    except TypeError as error:  # those of the config are checked above, so it is about the other arguments
        raise ConfigError(f"data set '{name}': {class_.__name__}.__init__ must take **kwargs: {error}") from error
    dataset.is_streamed = is_streamed
    return dataset


def unread_arguments(params: DatasetParams) -> list[str]:
    """Returns the arguments in a config that change only the elements that user code reads, not the run."""
    _, class_ = _class_of(params)
    return sorted(params.dataset_kwargs.keys() & getattr(class_, "of_elements", frozenset()))


def _class_of(params: DatasetParams) -> tuple[str, type[BaseMapDataset]]:
    """Returns the registered name of a data set, that of its subset if there is one, and its class."""
    import_extra_files()
    # A subset may be registered as a data set of its own.
    full_name = f"{params.dataset_name}/{params.subset}"
    name = full_name if full_name in DATASETS else params.dataset_name
    return name, DATASETS.get(name) if name in DATASETS else ShapedDataset


@cache  # so that each name is reported once
def _warn_of_script(name: str) -> None:
    logger.warning(
        "%s: deprecated: its rows came from a script on the Hub, which `datasets` no longer runs; the data files there "
        "are read instead",
        name,
    )


_NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NOT_IN_A_CONFIG = {
    "dataset_name", "dataset_path", "split", "subset", "trust_remote_code", "transform_num_workers", "tokenizer",
    "processor",
}  # fmt: skip
"""Keys that the config has beside `dataset_kwargs`, and objects that a config cannot contain."""


def _arguments(kind: type[BaseMapDataset]) -> set[str]:
    """Returns the arguments of a class that may be in `dataset_kwargs`, inherited ones included."""
    named: set[str] = set()
    # Each `__init__` passes the arguments that it does not know on to the next one, so all of them count.
    for class_ in kind.__mro__:
        if class_ is not object and "__init__" in vars(class_):
            named |= {
                key
                for key, argument in inspect.signature(class_.__init__).parameters.items()
                if key != "self" and argument.kind in _NAMED
            }
    return named - _NOT_IN_A_CONFIG
