# SPDX-License-Identifier: Apache-2.0
"""The base class of models that users write: how they are recorded, saved and loaded."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from oumi import __version__
from oumi.core.errors import ConfigError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_MAX_REASON = 400
"""Characters of a message of torch, which lists all weights."""


class BaseModel(torch.nn.Module, ABC):
    """A model of the user. Register it, to train it by its name: `@register("Name", RegistryType.MODEL)`.

    A subclass passes the arguments of its `__init__` to this one by name, so that a saved model can be built again.
    """

    def __init__(self, **init_kwargs: Any) -> None:
        """Records the arguments of the subclass; raises ConfigError for one that JSON cannot hold."""
        super().__init__()
        for name, value in init_kwargs.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{type(self).__name__}: argument '{name}' must be JSON: {error}") from error
        self.init_kwargs = init_kwargs

    @abstractmethod
    def forward(self, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Returns the outputs by name: `logits`, and `loss` where `labels` are given."""

    @property
    @abstractmethod
    def criterion(self) -> Callable[..., torch.Tensor]:
        """The loss of logits and labels."""

    def save_pretrained(self, save_directory: Path | str) -> None:
        """Writes `config.json` (the name of the class and its arguments) and `model.safetensors`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": type(self).__name__, "init_kwargs": self.init_kwargs, "oumi_version": __version__}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_model(self, str(folder / WEIGHTS), {"format": "pt"})  # a shared weight once

    @classmethod
    def from_pretrained(
        cls,
        load_directory: Path | str,
        override_kwargs: Mapping[str, Any] | None = None,
        map_location: str | torch.device = "cpu",
        weights_filename: str = WEIGHTS,
        config_filename: str = CONFIG,
    ) -> Self:
        """Returns the model of a directory, in the dtype in which the class builds it.

        Args:
            load_directory: Where `save_pretrained` wrote it.
            override_kwargs: Arguments that replace recorded ones.
            map_location: Device of the model.
            weights_filename: Name of the file with the weights.
            config_filename: Name of the file with the arguments.

        Raises:
            ConfigError: A file is missing or of another class, or its weights are not those of the model.
        """
        config_path, weights_path = Path(load_directory) / config_filename, Path(load_directory) / weights_filename
        for path in (config_path, weights_path):
            if not path.is_file():
                raise ConfigError(f"{load_directory} is not a saved model: it contains no {path.name}")
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
            kind, init_kwargs = config["model_type"], dict(config["init_kwargs"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{config_path}: not the config of a registered model: {error!r}") from error
        if kind != cls.__name__:
            raise ConfigError(f"{config_path}: the model is of class '{kind}', not {cls.__name__}")
        model = cls(**{**init_kwargs, **(override_kwargs or {})}).to(map_location)
        try:
            load_model(model, str(weights_path), strict=True, device=str(map_location))
        except (RuntimeError, SafetensorError) as error:
            reason = shorten(str(error), _MAX_REASON)
            raise ConfigError(f"{weights_path}: its weights are not those of {kind}: {reason}") from error
        return model
